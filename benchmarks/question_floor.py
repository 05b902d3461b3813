"""Measure what a model learns from questions alone, on annotations whose videos nobody here has.

It writes a store in which every video is absent, trains AVST's question branch on it for some seeds, and prints the
accuracy per type beside the majority floors learnt from the same training questions. A trained model that does not
reach the majority per filled question has learnt less than a table. Every question is asked in the scenario `natural`,
for no video has anything.
Source of the criterion: this project's promise that the question-only reference is not below the filled majority.

    python benchmarks/question_floor.py --manifest data_manifests/music-avqa --seeds 3
"""

import argparse
import sys
from pathlib import Path

from pipeline.extraction import ExtractionPlan, describe
from pipeline.extractors import make_extractor
from pipeline.manifest import Manifest, load_manifest
from pipeline.questions import update_questions
from pipeline.store.reader import open_store
from pipeline.store.schema import State
from pipeline.store.writer import FeatureRecord, StoreWriter, VideoRecord
from pipeline.weights import WeightsSource
from train.features import FeatureBank
from train.fit import Progress
from train.missingness import NATURAL
from train.report.tables import Block, build_blocks
from train.report.text import markdown
from train.results import RESULTS_FILE, read_results
from train.sweep import Grid, list_cells, run_cells

OUT = Path("build/question-floor")
FEATURES = ("resnet18-map", "vggish")
SECONDS = 60
MODALITIES = ("audio", "visual")


def main() -> int:
    """Return 0 where every seed reaches the majority per filled question."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--manifest", type=Path, default=Path("data_manifests/music-avqa"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args()
    if not (given.manifest / "questions-train.jsonl").is_file():
        print(f"no training questions in {given.manifest}: build it with 'mavqa-manifest build'; nothing measured")
        return 0
    manifest = load_manifest(given.manifest)
    store = given.out / "store.zarr"
    write_store(manifest, store)
    grid = Grid.model_validate(
        {
            "preset": "avst",
            "settings": {"epochs": given.epochs, "decay_epochs": max(1, given.epochs - 2)},
            "methods": [{"name": "question-only", "inputs": "question"}],
        }
    )
    cells = list_cells(grid, range(given.seeds), str(given.manifest), str(store))
    documents = run_cells(cells, manifest, FeatureBank(open_store(store)), given.out / "runs", _say, given.jobs)
    rows = [row for run in documents for row in read_results(given.out / "runs" / run / RESULTS_FILE)]
    (block,) = [block for block in build_blocks(rows) if block.scenario == NATURAL]
    print(markdown([block]))
    return 0 if _reaches_the_floor(block) else 1


def write_store(manifest: Manifest, path: Path) -> None:
    """Write a store of the manifest's question tokens in which each video lacks sound and picture."""
    plan = ExtractionPlan(
        store=str(path),
        features=FEATURES,
        question_features=("tokens",),
        weights=WeightsSource("seeded"),
        decoder="pyav",
        device="cpu",
        seconds=SECONDS,
        short="pad",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    absent, nothing = dict.fromkeys(MODALITIES, State.ABSENT), dict.fromkeys(MODALITIES, 0)
    with StoreWriter(path, SECONDS, "mavqa benchmark") as writer:
        for name in FEATURES:
            writer.ensure_feature(describe(make_extractor(name), plan, ""))
        update_questions(writer, manifest, plan)
        known = set(writer.video_ids())
        writer.append_videos([video.video_id for video in manifest.videos if video.video_id not in known])
        rows = range(len(writer.video_ids()))
        reasons = dict.fromkeys(MODALITIES, "")
        writer.record_videos([VideoRecord(row, "", absent, nothing, reasons) for row in rows])
        writer.record_features([FeatureRecord(row, name, State.ABSENT) for name in FEATURES for row in rows])
        writer.consolidate()


def _say(run: str, said: Progress) -> None:
    if said.validation is not None:
        print(f"{run}  epoch {said.epoch}/{said.epochs}", file=sys.stderr)


def _reaches_the_floor(block: Block) -> bool:
    cells = {line.method: [row.accuracies.overall.accuracy for row in line.rows] for line in block.lines}
    return min(cells["reference"]) >= cells["filled-majority"][0]


if __name__ == "__main__":
    sys.exit(main())

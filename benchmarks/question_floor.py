"""Measure what a model learns from questions alone, on annotations whose videos nobody here has.

It writes a store in which every video is absent, trains AVST's question branch on it for some seeds, and prints the
accuracy per type beside the majority floors learnt from the same training questions; a model below the majority per
filled question has learnt less than a table. Every question is asked in the scenario `natural`, for no video has
anything. How much of the published training split the manifest holds, and how its types differ from the test
split's, stands above the accuracies.
Source of the criterion: this project's promise that the question-only reference is not below the filled majority.

    python benchmarks/question_floor.py --manifest data_manifests/music-avqa --seeds 3
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from pipeline.extractors.registry import make_extractor
from pipeline.extractors.weights import WeightsSource
from pipeline.manifests.manifest import Manifest, load_manifest
from pipeline.run.plan import ExtractionPlan, make_spec
from pipeline.run.questions import update_questions
from pipeline.store.reader import open_store
from pipeline.store.schema import MODALITIES, State
from pipeline.store.writer import FeatureRecord, StoreWriter, VideoRecord
from train.data.feature_bank import FeatureBank
from train.data.scenarios import NATURAL
from train.report.tables import Block, build_blocks
from train.report.text import markdown
from train.runs.results import RESULTS_FILE, read_results
from train.training.fit import Progress
from train.training.sweep import Grid, list_cells, run_cells

OUT = Path("build/question-floor")
FEATURES = ("resnet18-map", "vggish")
SECONDS = 60
# Source: MUSIC-AVQA's training log (json); 36,495 samples of the missing-modality release less its 4,568 of val.
PUBLISHED_TRAINING = {"json": 32_087, "json_update": 31_927}


def main() -> int:
    """Return 0 where every seed reaches the majority per filled question."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--manifest", type=Path, default=Path("data_manifests/music-avqa"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
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
            "settings": {
                "epochs": given.epochs,
                "decay_epochs": max(1, given.epochs - 2),
                "learning_rate": given.learning_rate,
            },
            "methods": [{"name": "question-only", "inputs": "question"}],
        }
    )
    cells = list_cells(grid, range(given.seeds), str(given.manifest), str(store))
    documents = run_cells(cells, manifest, FeatureBank(open_store(store)), given.out / "runs", _say, given.jobs)
    rows = [row for run in documents for row in read_results(given.out / "runs" / run / RESULTS_FILE)]
    (block,) = [block for block in build_blocks(rows) if block.scenario == NATURAL]
    print(describe_training(manifest))
    print(markdown([block]))
    return 0 if _reaches_the_floor(block) else 1


def describe_training(manifest: Manifest) -> str:
    """Return how many training questions there are of how many published, and each type's share beside the test's."""
    train, test = manifest.questions["train"], manifest.questions["test"]
    published = PUBLISHED_TRAINING.get(manifest.release)
    of_published = f", {100 * len(train) / published:.1f} % of the {published:,} published" if published else ""
    counts = [Counter(q.type for q in questions) for questions in (train, test)]
    rows = [
        f"| {kind} | {100 * counts[0][kind] / len(train):.1f} | {100 * counts[1][kind] / len(test):.1f} |"
        for kind in sorted(counts[0] | counts[1])
    ]
    head = ["| type | train, % | test, % |", "| --- | ---: | ---: |"]
    return "\n".join([f"{len(train):,} training questions{of_published}", "", *head, *rows, ""])


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
        padding="pad",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    absent, nothing = dict.fromkeys(MODALITIES, State.ABSENT), dict.fromkeys(MODALITIES, 0)
    with StoreWriter(path, SECONDS, "mavqa benchmark") as writer:
        for name in FEATURES:
            writer.ensure_feature(make_spec(make_extractor(name), plan, ""))
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
        score = said.validation[NATURAL]
        print(f"{run}  epoch {said.epoch}/{said.epochs}  val {score:.2f}", file=sys.stderr)


def _reaches_the_floor(block: Block) -> bool:
    cells = {line.method: [row.accuracies.overall.accuracy for row in line.rows] for line in block.lines}
    return min(cells["reference"]) >= cells["filled-majority"][0]


if __name__ == "__main__":
    sys.exit(main())

"""Measure what a model learns from questions alone, on annotations without videos.

Writes a store in which all videos are absent, trains AVST's question branch on it with several seeds, and prints the
accuracy per question type together with the majority baselines of the same training questions. A model below the
majority per filled question has learnt less than a lookup table. All questions are evaluated in the scenario `natural`,
because no video has any modality. The output starts with the share of the published training split in the manifest and
with the question types of the training and test splits.
Source of the criterion: this project's promise that the question-only reference is not below the filled majority.

    python benchmarks/question_floor.py --manifest data_manifests/music-avqa --seeds 3
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from pipeline.errors import UserError
from pipeline.extractors.registry import make_extractor
from pipeline.extractors.weights import WeightsSource
from pipeline.manifests.manifest import Manifest, load_manifest
from pipeline.run.questions import find_missing_texts, load_questions, write_questions
from pipeline.run.settings import Settings, make_spec
from pipeline.store.reader import open_store
from pipeline.store.schema import MODALITIES, State
from pipeline.store.writer import FeatureRecord, StoreWriter, VideoRecord
from train.data.feature_bank import FeatureBank
from train.data.scenarios import NATURAL
from train.report.tables import Block, build_blocks
from train.report.text import markdown
from train.runs.results import RESULTS_FILE, read_results
from train.training.loop import Progress
from train.training.sweep import Grid, list_cells, run_cells

OUT = Path("build/question-floor")
FEATURES = ("resnet18-map", "vggish")
SECONDS = 60
# Source: MUSIC-AVQA's training log (json); the missing-modality release's 36,495 samples minus 4,568 of validation.
PUBLISHED_TRAINING = {"json": 32_087, "json_update": 31_927}


def main() -> int:
    """Return 0 if all seeds reach the majority per filled question, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--manifest", type=Path, default=Path("data_manifests/music-avqa"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    options = parser.parse_args()
    if not (options.manifest / "questions-train.jsonl").is_file():
        print(f"no training questions in {options.manifest}: build it with 'mavqa-manifest build'; nothing measured")
        return 0
    manifest = load_manifest(options.manifest)
    store = options.out / "store.zarr"
    write_store(manifest, store)
    grid = Grid.model_validate(
        {
            "preset": "avst",
            "settings": {
                "epochs": options.epochs,
                "decay_epochs": max(1, options.epochs - 2),
                "learning_rate": options.learning_rate,
            },
            "methods": [{"name": "question-only", "inputs": "question"}],
        }
    )
    cells = list_cells(grid, range(options.seeds), str(options.manifest), str(store))
    runs, bank = options.out / "runs", FeatureBank(open_store(store))
    outcome = run_cells(cells, manifest, bank, runs, _print_progress, options.jobs)
    if outcome.failures:
        raise UserError(f"some seeds failed: {outcome.failures}")
    rows = [row for run in outcome.documents for row in read_results(runs / run / RESULTS_FILE)]
    (block,) = [block for block in build_blocks(rows) if block.scenario == NATURAL]
    print(describe_training(manifest))
    print(markdown([block]))
    return 0 if _reaches_filled_majority(block) else 1


def describe_training(manifest: Manifest) -> str:
    """Return a report: the number of training questions, of published ones, and the shares of types in both splits."""
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
    """Write a store of the manifest's question tokens in which audio and visual are absent for all videos."""
    settings = Settings(str(path), FEATURES, WeightsSource("seeded"), "pyav", "cpu", SECONDS, "pad")
    path.parent.mkdir(parents=True, exist_ok=True)
    absent, no_steps = dict.fromkeys(MODALITIES, State.ABSENT), dict.fromkeys(MODALITIES, 0)
    with StoreWriter(path, "mavqa benchmark") as writer:
        writer.create(SECONDS)
        for name in FEATURES:
            writer.add_spec(make_spec(make_extractor(name), settings, ""))
        missing = find_missing_texts(writer, manifest, ["tokens"])
        write_questions(writer, manifest, load_questions(writer, missing, settings, ()))
        known = set(writer.video_ids())
        writer.append_videos([video.video_id for video in manifest.videos if video.video_id not in known])
        rows = range(len(writer.video_ids()))
        reasons = dict.fromkeys(MODALITIES, "")
        writer.record_videos([VideoRecord(row, "", absent, no_steps, reasons) for row in rows])
        writer.record_features([FeatureRecord(row, name, State.ABSENT) for name in FEATURES for row in rows])
        writer.consolidate()


def _print_progress(run: str, progress: Progress) -> None:
    if progress.validation is not None:
        score = progress.validation[NATURAL]
        print(f"{run}  epoch {progress.epoch}/{progress.epochs}  val {score:.2f}", file=sys.stderr)


def _reaches_filled_majority(block: Block) -> bool:
    cells = {line.method: [row.accuracies.overall.accuracy for row in line.rows] for line in block.lines}
    return min(cells["reference"]) >= cells["filled-majority"][0]


if __name__ == "__main__":
    sys.exit(main())

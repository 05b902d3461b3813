"""Measure whether trained runs read a missing modality, and whether they read the available one.

Each run of the demo answers the test split as evaluated, then again from altered stores. The missing modality's stored
values, steps and state are replaced, once by NaN, no steps and absent, once by random values, random steps and
complete. No bit of the logits may change, since a weak leak changes few answers. Then the available modality is swapped
between videos, which must change the answers (highest logits) of a run that sees it. The altered stores replace the
store's reader, so that everything above it is tested. Nothing is trained or written.
Source of the criteria: this project's promise that no missing modality is read, and 20 % changed answers.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest, load_manifest
from pipeline.store.reader import FeatureStore, open_store, read_steps
from pipeline.store.schema import MODALITIES, FeatureSpec, State
from train.data.batch import Batch
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.scenarios import SCENARIOS
from train.evaluation.predict import BATCH_SIZE, predict
from train.interfaces import MissingModalityMethod, inputs_of
from train.runs.folder import load_run

DEMO = Path("build/demo")
CHANGED_AT_LEAST_PERCENT = 20.0
RANDOM_DEVIATION = 10.0
MISSING_SCENARIOS = tuple(scenario for scenario, hidden in SCENARIOS.items() if hidden)


class Change(Protocol):
    """A change to one modality of a store. `state` and `steps` are [video]."""

    def state(self, state: np.ndarray) -> np.ndarray:
        """Return the states that the altered store reports."""
        ...

    def steps(self, steps: np.ndarray) -> np.ndarray:
        """Return the steps that the altered store reports."""
        ...

    def first_steps(self, firsts: np.ndarray) -> np.ndarray:
        """Return the first steps that the altered store reports."""
        ...

    def read(self, array: Any, spec: FeatureSpec, video: int, steps: np.ndarray) -> np.ndarray:
        """Return [step, ...]: the altered values of one video at `steps`."""
        ...


class Emptied:
    """The modality was never recorded: NaN, no steps, absent."""

    def state(self, state: np.ndarray) -> np.ndarray:
        """Return absent for every video."""
        return np.full_like(state, State.ABSENT)

    def steps(self, steps: np.ndarray) -> np.ndarray:
        """Return 0 for every video."""
        return np.zeros_like(steps)

    def first_steps(self, firsts: np.ndarray) -> np.ndarray:
        """Return 0 for every video."""
        return np.zeros_like(firsts)

    def read(self, array: Any, spec: FeatureSpec, video: int, steps: np.ndarray) -> np.ndarray:
        """Return NaN [step, ...]."""
        return np.full((len(steps), *spec.shape), np.nan, array.dtype)


@dataclass(frozen=True)
class Randomised:
    """Another modality was recorded: random values, 1 to `seconds` steps, complete. Same seed, same values."""

    seed: int
    seconds: int

    def state(self, state: np.ndarray) -> np.ndarray:
        """Return complete for every video."""
        return np.full_like(state, State.COMPLETE)

    def steps(self, steps: np.ndarray) -> np.ndarray:
        """Return a random number of steps for every video."""
        return np.random.default_rng(self.seed).integers(1, self.seconds + 1, len(steps)).astype(steps.dtype)

    def first_steps(self, firsts: np.ndarray) -> np.ndarray:
        """Return 0 for every video."""
        return np.zeros_like(firsts)

    def read(self, array: Any, spec: FeatureSpec, video: int, steps: np.ndarray) -> np.ndarray:
        """Return normally distributed values [step, ...]."""
        generator = np.random.default_rng((self.seed, video))
        values = generator.standard_normal((len(steps), *spec.shape), np.float32)
        return (RANDOM_DEVIATION * values).astype(array.dtype)


@dataclass(frozen=True)
class Swapped:
    """Each video has the modality of another video, `source` [video]."""

    source: np.ndarray

    def state(self, state: np.ndarray) -> np.ndarray:
        """Return the states of the sources."""
        return state[self.source]

    def steps(self, steps: np.ndarray) -> np.ndarray:
        """Return the steps of the sources."""
        return steps[self.source]

    def first_steps(self, firsts: np.ndarray) -> np.ndarray:
        """Return the first steps of the sources."""
        return firsts[self.source]

    def read(self, array: Any, spec: FeatureSpec, video: int, steps: np.ndarray) -> np.ndarray:
        """Return the values of the source [step, ...]."""
        source = int(self.source[video])
        return read_steps(array, slice(source, source + 1), steps)[0]


@dataclass(frozen=True)
class AlteredValues:
    """The part of an array [video, time, ...] that a feature bank reads: type, chunks, and steps of some videos."""

    dtype: np.dtype
    seconds: int
    read: Callable[[int, np.ndarray], np.ndarray]
    chunks: tuple[int, ...] = (1,)

    def __getitem__(self, key: tuple[int | slice, int | slice]) -> np.ndarray:
        videos, chosen = key
        if isinstance(videos, slice):
            return np.stack([self[video, chosen] for video in range(videos.start, videos.stop)])
        steps = np.arange(self.seconds)[chosen]
        return self.read(videos, steps) if steps.ndim else self.read(videos, steps[None])[0]


@dataclass(frozen=True)
class AlteredStore:
    """A `FeatureStore` with `changes` {modality: change}; all else is read from `store`.

    Videos that are not `selected` (bool [video]) are absent, so that a bank does not load them.
    """

    store: FeatureStore
    selected: np.ndarray
    changes: dict[str, Change] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def presence(self, modality: str) -> np.ndarray:
        """Return the states of `modality` [video]."""
        return self._state(modality, self.store.presence(modality))

    def state(self, feature: str) -> np.ndarray:
        """Return the states of `feature` [video]."""
        return self._state(self.store.spec(feature).modality, self.store.state(feature))

    def steps(self, modality: str) -> np.ndarray:
        """Return the steps of `modality` [video]."""
        steps = self.store.steps(modality)
        return self.changes[modality].steps(steps) if modality in self.changes else steps

    def first_steps(self, modality: str) -> np.ndarray:
        """Return the first steps of `modality` [video]."""
        firsts = self.store.first_steps(modality)
        return self.changes[modality].first_steps(firsts) if modality in self.changes else firsts

    def values(self, feature: str) -> Any:
        """Return the array of `feature`, with the change of its modality."""
        array, spec = self.store.values(feature), self.store.spec(feature)
        change = self.changes.get(spec.modality)
        if change is None:
            return array
        return AlteredValues(array.dtype, array.shape[1], lambda video, steps: change.read(array, spec, video, steps))

    def _state(self, modality: str, state: np.ndarray) -> np.ndarray:
        changed = self.changes[modality].state(state) if modality in self.changes else state
        return np.where(self.selected, changed, State.ABSENT)


@dataclass(frozen=True)
class Banks:
    """The features of one split as `stored`, and {scenario: bank} of each change.

    `swapped` has only the scenarios with an available modality.
    """

    stored: FeatureBank
    emptied: dict[str, FeatureBank]
    randomised: dict[str, FeatureBank]
    swapped: dict[str, FeatureBank]


class LogitRecorder:
    """A wrapper around a method that records its logits [answer] by question id."""

    def __init__(self, method: Any) -> None:
        self.method = method
        self.training = method.training
        self.logits: dict[str, Tensor] = {}

    def train(self, training: bool = True) -> None:
        """Set the training mode of the method."""
        self.method.train(training)

    def eval(self) -> None:
        """Set the method to evaluation mode."""
        self.method.eval()

    def predict(self, batch: Batch) -> Tensor:
        """Return the method's logits [batch, answer], and record them."""
        logits: Tensor = self.method.predict(batch)
        self.logits |= dict(zip(batch.question_id, logits, strict=True))
        return logits


@dataclass(frozen=True)
class Finding:
    """The number of `questions` whose prediction in `scenario` changes with each change of the store.

    `emptied`, `randomised`: questions whose logits change at all. `swapped`: questions whose answer changes, or whose
    logits change if the run must not see the swapped modality (not `sees_swapped`); None if no modality is available.
    """

    scenario: str
    questions: int
    emptied: int
    randomised: int
    swapped: int | None
    sees_swapped: bool

    @property
    def peeks(self) -> int:
        """The number of predictions that changed with a modality that the run must not read."""
        swapped = 0 if self.sees_swapped else self.swapped or 0
        return self.emptied + self.randomised + swapped

    @property
    def verdict(self) -> str:
        """The result of the criteria: "ok", or the one that is not met."""
        if self.peeks:
            return "PEEKS"
        if self.sees_swapped and self.swapped is not None and self.changed_percent < CHANGED_AT_LEAST_PERCENT:
            return f"changes less than {CHANGED_AT_LEAST_PERCENT:.0f} %"
        return "ok"

    @property
    def changed_percent(self) -> float:
        """The percentage of answers that the swap changed."""
        return 100 * (self.swapped or 0) / self.questions


def main() -> int:
    """Parse the options, measure every run, print the table; return 1 if a run reads a missing modality."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, default=DEMO / "data")
    parser.add_argument("--store", type=Path, default=DEMO / "store.zarr")
    parser.add_argument("--runs", type=Path, default=DEMO / "runs")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        runs = find_runs(options.runs, options.store, options.manifest)
        manifest = load_manifest(options.manifest)
        banks = open_banks(open_store(options.store), manifest, options.split, options.seed)
        print_head(options.split)
        peeks = 0
        for run in runs:
            method, config = load_run(run)
            findings = measure(method, config.inputs, banks, manifest, options.split, config.map_size)
            print_findings(run.name, findings)
            peeks += sum(finding.peeks for finding in findings)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    return 1 if peeks else 0


def find_runs(runs: Path, store: Path, manifest: Path) -> list[Path]:
    """Return the folders of trained runs in `runs`; raise `UserError` if the runs or their data are missing."""
    folders = sorted(path.parent for path in runs.glob("*/checkpoint.safetensors"))
    checks = ((manifest, manifest.is_dir()), (store, store.is_dir()), (runs, folders))
    missing = [path for path, exists in checks if not exists]
    if missing:
        raise UserError(
            f"{missing[0]} is missing or empty: run 'make demo' first, or pass --manifest, --store and --runs"
        )
    return folders


def open_banks(store: FeatureStore, manifest: Manifest, split: str, seed: int) -> Banks:
    """Return the split's features, as stored and changed; they are read when a dataset needs them."""
    if not manifest.questions.get(split):
        raise UserError(f"manifest {manifest.name!r} has no questions in split {split!r}: pass another --split")
    videos = {question.video_id for question in manifest.questions[split]}
    selected = np.array([video_id in videos for video_id in store.video_ids])
    randomised = Randomised(seed, store.seconds)
    swapped = Swapped(rotate_videos(store, selected))

    def bank(modalities: Sequence[str], change: Change | None) -> FeatureBank:
        changes = {} if change is None else dict.fromkeys(modalities, change)
        altered: Any = AlteredStore(store, selected, changes)
        return FeatureBank(altered)

    available = {scenario: [m for m in MODALITIES if m not in SCENARIOS[scenario]] for scenario in MISSING_SCENARIOS}
    return Banks(
        stored=bank((), None),
        emptied={scenario: bank(SCENARIOS[scenario], Emptied()) for scenario in MISSING_SCENARIOS},
        randomised={scenario: bank(SCENARIOS[scenario], randomised) for scenario in MISSING_SCENARIOS},
        swapped={scenario: bank(modalities, swapped) for scenario, modalities in available.items() if modalities},
    )


def rotate_videos(store: FeatureStore, selected: np.ndarray) -> np.ndarray:
    """Return the source of each video, an index [video]: a rotation of the selected and complete videos by one."""
    complete = np.all([store.presence(modality) == State.COMPLETE for modality in MODALITIES], axis=0)
    rows = np.flatnonzero(selected & complete)
    source = np.arange(len(selected))
    source[rows] = np.roll(rows, 1)
    return source


def measure(
    method: MissingModalityMethod, inputs: str, banks: Banks, manifest: Manifest, split: str, map_size: int | None
) -> list[Finding]:
    """Return one finding per scenario with a missing modality; `inputs` as in `train.runs.config.TrainConfig`."""

    def open_dataset(bank: FeatureBank) -> QuestionDataset:
        return QuestionDataset(bank, manifest, split, inputs_of(method.backbone, map_size))

    stored = open_dataset(banks.stored)
    rows = np.flatnonzero(stored.naturally_complete)
    findings = []
    for scenario in MISSING_SCENARIOS:
        expected = answer(method, stored, rows, scenario)

        def differ(altered: FeatureBank, scenario: str = scenario, expected: Tensor = expected) -> tuple[int, int]:
            return count_differences(method, open_dataset(altered), rows, scenario, expected)

        emptied, _ = differ(banks.emptied[scenario])
        randomised, _ = differ(banks.randomised[scenario])
        sees = sees_available(inputs, scenario)
        swapped = differ(banks.swapped[scenario])[int(sees)] if scenario in banks.swapped else None
        findings.append(Finding(scenario, len(rows), emptied, randomised, swapped, sees))
    return findings


def answer(method: MissingModalityMethod, dataset: QuestionDataset, rows: np.ndarray, scenario: str) -> Tensor:
    """Return the logits [row, answer] of `scenario` as evaluation computes them.

    Raises `UserError` if logits are not finite.
    """
    question_ids = [dataset.questions[row].question_id for row in rows]
    recorder: Any = LogitRecorder(method)
    predict(recorder, dataset, rows, dict.fromkeys(question_ids, SCENARIOS[scenario]), BATCH_SIZE, "cpu")
    return torch.stack([recorder.logits[question_id] for question_id in question_ids])


def count_differences(
    method: MissingModalityMethod, dataset: QuestionDataset, rows: np.ndarray, scenario: str, expected: Tensor
) -> tuple[int, int]:
    """Return the numbers of rows whose logits differ from `expected` [row, answer] at all, and whose answers do.

    All rows count if the logits are not finite, because a method read NaN.
    """
    try:
        logits = answer(method, dataset, rows, scenario)
    except UserError:
        return len(rows), len(rows)
    is_other_answer = logits.argmax(1) != expected.argmax(1)
    return int((logits != expected).any(1).sum()), int(is_other_answer.sum())


def sees_available(inputs: str, scenario: str) -> bool:
    """Return whether a run with `inputs` sees a modality that is available in `scenario`."""
    seen = MODALITIES if inputs == "all" else inputs.split(",")
    return any(m in seen and m not in SCENARIOS[scenario] for m in MODALITIES)


def print_head(split: str) -> None:
    """Print the meaning of the columns and their names."""
    print(f"{split} questions whose logits change when the missing modality is emptied (NaN, no steps, absent) or")
    print("randomised (random values and steps, complete): must be 0. Percentage of answers that change when the")
    print("available modality is swapped between videos: must be at least 20 % if the run sees it, else 0.\n")
    print(f"{'run':<28}{'scenario':<16}{'questions':>10}{'emptied':>9}{'randomised':>12}{'swapped':>10}  verdict")


def print_findings(run: str, findings: Sequence[Finding]) -> None:
    """Print one line per scenario of `run`."""
    for finding in findings:
        swapped = "-" if finding.swapped is None else f"{finding.changed_percent:.1f} %"
        counts = f"{finding.questions:>10}{finding.emptied:>9}{finding.randomised:>12}{swapped:>10}"
        print(f"{run:<28}{finding.scenario:<16}{counts}  {finding.verdict}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Measure whether trained runs read a modality that is absent, and whether they read the one that is there.

It trains nothing and writes nothing. Each run of the demo answers the test split as evaluated, then again from stores
that read otherwise: the absent modality's stored values, steps and state are replaced, once by NaN, no steps and
absent, once by random numbers, random steps and complete. No prediction may differ, to the last bit of its logits: a
weak leak moves few answers. Then the present modality is swapped between videos, which must change the answers (highest
logits) of a run that sees it. The stores are altered behind the reader, so that everything above it is under test.
Source of the criteria: this project's promise of no peek, and 20 % changed answers.
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
DRAWN_DEVIATION = 10.0
DEPRIVED = tuple(scenario for scenario, hidden in SCENARIOS.items() if hidden)


class Change(Protocol):
    """How one modality of a store reads otherwise. `state` and `steps` are [video]."""

    def state(self, state: np.ndarray) -> np.ndarray:
        """Return the states that the altered store reports."""
        ...

    def steps(self, steps: np.ndarray) -> np.ndarray:
        """Return the steps that the altered store reports."""
        ...

    def read(self, array: Any, spec: FeatureSpec, video: int, steps: np.ndarray) -> np.ndarray:
        """Return [step, ...], what the altered store holds of one video at `steps`."""
        ...


class Emptied:
    """The modality was never recorded: NaN, no steps, absent."""

    def state(self, state: np.ndarray) -> np.ndarray:
        """Return absent for every video."""
        return np.full_like(state, State.ABSENT)

    def steps(self, steps: np.ndarray) -> np.ndarray:
        """Return no step for every video."""
        return np.zeros_like(steps)

    def read(self, array: Any, spec: FeatureSpec, video: int, steps: np.ndarray) -> np.ndarray:
        """Return NaN [step, ...]."""
        return np.full((len(steps), *spec.shape), np.nan, array.dtype)


@dataclass(frozen=True)
class Drawn:
    """Another modality was recorded: random numbers, 1 to `seconds` steps, complete. Same seed, same numbers."""

    seed: int
    seconds: int

    def state(self, state: np.ndarray) -> np.ndarray:
        """Return complete for every video."""
        return np.full_like(state, State.COMPLETE)

    def steps(self, steps: np.ndarray) -> np.ndarray:
        """Return a random number of steps for every video."""
        return np.random.default_rng(self.seed).integers(1, self.seconds + 1, len(steps)).astype(steps.dtype)

    def read(self, array: Any, spec: FeatureSpec, video: int, steps: np.ndarray) -> np.ndarray:
        """Return normal numbers [step, ...]."""
        generator = np.random.default_rng((self.seed, video))
        drawn = generator.standard_normal((len(steps), *spec.shape), np.float32)
        return (DRAWN_DEVIATION * drawn).astype(array.dtype)


@dataclass(frozen=True)
class Rotated:
    """Each video has what another one has: `source` [video] says which."""

    source: np.ndarray

    def state(self, state: np.ndarray) -> np.ndarray:
        """Return the states of the sources."""
        return state[self.source]

    def steps(self, steps: np.ndarray) -> np.ndarray:
        """Return the steps of the sources."""
        return steps[self.source]

    def read(self, array: Any, spec: FeatureSpec, video: int, steps: np.ndarray) -> np.ndarray:
        """Return what the source holds [step, ...]."""
        source = int(self.source[video])
        return read_steps(array, slice(source, source + 1), steps)[0]


@dataclass(frozen=True)
class AlteredValues:
    """What a feature bank reads of an array [video, time, ...]: its type, its chunks, and the steps of some videos."""

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
    """The reader's face over a store of which `changes` {modality: change} read otherwise; the rest is the store's.

    Videos that are not `asked` (bool [video]) read as absent, so that a bank does not load them.
    """

    store: FeatureStore
    asked: np.ndarray
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

    def values(self, feature: str) -> Any:
        """Return the array of `feature`, or what reads like it with the change made."""
        array, spec = self.store.values(feature), self.store.spec(feature)
        change = self.changes.get(spec.modality)
        if change is None:
            return array
        return AlteredValues(array.dtype, array.shape[1], lambda video, steps: change.read(array, spec, video, steps))

    def _state(self, modality: str, state: np.ndarray) -> np.ndarray:
        changed = self.changes[modality].state(state) if modality in self.changes else state
        return np.where(self.asked, changed, State.ABSENT)


@dataclass(frozen=True)
class Banks:
    """The features of one split as `stored`, and {scenario: bank} of each alteration (`swapped`: one-sided ones)."""

    stored: FeatureBank
    emptied: dict[str, FeatureBank]
    drawn: dict[str, FeatureBank]
    swapped: dict[str, FeatureBank]


class Recording:
    """A method that keeps the logits [answer] it gives, by question id. It answers as the method does."""

    def __init__(self, method: Any) -> None:
        self.method = method
        self.training = method.training
        self.logits: dict[str, Tensor] = {}

    def train(self, training: bool = True) -> None:
        """Put the method into training mode, or out of it."""
        self.method.train(training)

    def eval(self) -> None:
        """Put the method into evaluation mode."""
        self.method.eval()

    def predict(self, batch: Batch) -> Tensor:
        """Return the method's logits [batch, answer]."""
        logits: Tensor = self.method.predict(batch)
        self.logits |= dict(zip(batch.question_id, logits, strict=True))
        return logits


@dataclass(frozen=True)
class Finding:
    """How many of `questions` a run predicts otherwise in `scenario` after each alteration.

    `emptied`, `drawn`: logits that differ at all. `swapped`: answers that differ, but logits where the run must not see
    what was swapped (not `sees_swapped`); None where nothing is present.
    """

    scenario: str
    questions: int
    emptied: int
    drawn: int
    swapped: int | None
    sees_swapped: bool

    @property
    def peeks(self) -> int:
        """The predictions that changed with what the run must not read."""
        unseen = 0 if self.sees_swapped else self.swapped or 0
        return self.emptied + self.drawn + unseen

    @property
    def verdict(self) -> str:
        """Whether the criteria are met."""
        if self.peeks:
            return "PEEKS"
        if self.sees_swapped and self.swapped is not None and self.changed_percent < CHANGED_AT_LEAST_PERCENT:
            return f"changes less than {CHANGED_AT_LEAST_PERCENT:.0f} %"
        return "ok"

    @property
    def changed_percent(self) -> float:
        """The share of answers that the swap changed."""
        return 100 * (self.swapped or 0) / self.questions


def main() -> int:
    """Parse the options, measure every run, print the table; return 1 where one peeks."""
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
    """Return the folders of runs in `runs`; UserError where the demo did not leave all that is needed."""
    found = sorted(path.parent for path in runs.glob("*/checkpoint.safetensors"))
    lacking = [
        path for path, there in ((manifest, manifest.is_dir()), (store, store.is_dir()), (runs, found)) if not there
    ]
    if lacking:
        raise UserError(
            f"{lacking[0]} is missing or empty: run 'make demo' first, or give --manifest, --store and --runs"
        )
    return found


def open_banks(store: FeatureStore, manifest: Manifest, split: str, seed: int) -> Banks:
    """Return the split's features as stored and altered; nothing is read before a dataset asks."""
    if not manifest.questions.get(split):
        raise UserError(f"manifest {manifest.name!r} has no questions in split {split!r}: give another --split")
    videos = {question.video_id for question in manifest.questions[split]}
    asked = np.array([video_id in videos for video_id in store.video_ids])
    drawn = Drawn(seed, store.seconds)
    rotated = Rotated(rotate_videos(store, asked))

    def bank(modalities: Sequence[str], change: Change | None) -> FeatureBank:
        changes = {} if change is None else dict.fromkeys(modalities, change)
        altered: Any = AlteredStore(store, asked, changes)
        return FeatureBank(altered)

    present = {scenario: [m for m in MODALITIES if m not in SCENARIOS[scenario]] for scenario in DEPRIVED}
    return Banks(
        stored=bank((), None),
        emptied={scenario: bank(SCENARIOS[scenario], Emptied()) for scenario in DEPRIVED},
        drawn={scenario: bank(SCENARIOS[scenario], drawn) for scenario in DEPRIVED},
        swapped={scenario: bank(there, rotated) for scenario, there in present.items() if there},
    )


def rotate_videos(store: FeatureStore, asked: np.ndarray) -> np.ndarray:
    """Return [video] -> video: each asked and complete video gets the one before it, the first gets the last."""
    complete = np.all([store.presence(modality) == State.COMPLETE for modality in MODALITIES], axis=0)
    chosen = np.flatnonzero(asked & complete)
    source = np.arange(len(asked))
    source[chosen] = np.roll(chosen, 1)
    return source


def measure(
    method: MissingModalityMethod, inputs: str, banks: Banks, manifest: Manifest, split: str, map_size: int | None
) -> list[Finding]:
    """Return one finding per scenario that lacks a modality; `inputs` as in `train.runs.config.TrainConfig`."""

    def open_dataset(bank: FeatureBank) -> QuestionDataset:
        return QuestionDataset(bank, manifest, split, inputs_of(method.backbone, map_size))

    stored = open_dataset(banks.stored)
    rows = np.flatnonzero(stored.naturally_complete)
    findings = []
    for scenario in DEPRIVED:
        expected = answer(method, stored, rows, scenario)

        def differ(altered: FeatureBank, scenario: str = scenario, expected: Tensor = expected) -> tuple[int, int]:
            return count_differences(method, open_dataset(altered), rows, scenario, expected)

        emptied, _ = differ(banks.emptied[scenario])
        drawn, _ = differ(banks.drawn[scenario])
        sees = sees_present(inputs, scenario)
        swapped = differ(banks.swapped[scenario])[int(sees)] if scenario in banks.swapped else None
        findings.append(Finding(scenario, len(rows), emptied, drawn, swapped, sees))
    return findings


def answer(method: MissingModalityMethod, dataset: QuestionDataset, rows: np.ndarray, scenario: str) -> Tensor:
    """Return the logits [row, answer] of `scenario` as evaluation computes them.

    Raises FloatingPointError for logits that are not finite.
    """
    asked = [dataset.questions[row].question_id for row in rows]
    recording: Any = Recording(method)
    predict(recording, dataset, rows, dict.fromkeys(asked, SCENARIOS[scenario]), BATCH_SIZE, "cpu")
    return torch.stack([recording.logits[question_id] for question_id in asked])


def count_differences(
    method: MissingModalityMethod, dataset: QuestionDataset, rows: np.ndarray, scenario: str, expected: Tensor
) -> tuple[int, int]:
    """Return how many logits [answer] differ from `expected` [row, answer] at all, and how many answers do.

    Where a method took in NaN and has no finite logits, all of them differ.
    """
    try:
        found = answer(method, dataset, rows, scenario)
    except FloatingPointError:
        return len(rows), len(rows)
    answers = found.argmax(1) != expected.argmax(1)
    return int((found != expected).any(1).sum()), int(answers.sum())


def sees_present(inputs: str, scenario: str) -> bool:
    """Return whether a run with `inputs` sees a modality that `scenario` leaves."""
    seen = MODALITIES if inputs == "all" else inputs.split(",")
    return any(m in seen and m not in SCENARIOS[scenario] for m in MODALITIES)


def print_head(split: str) -> None:
    """Print what the columns count."""
    print(f"{split} questions predicted otherwise after the absent modality was emptied (NaN, no steps, absent) or")
    print("drawn (random numbers and steps, complete), in any bit of their logits: must be 0; and the share of answers")
    print(
        "changed after the present modality was swapped between videos: 20 % at least where the run sees it, else 0\n"
    )
    print(f"{'run':<28}{'scenario':<16}{'questions':>10}{'emptied':>9}{'drawn':>7}{'swapped':>10}  verdict")


def print_findings(run: str, findings: Sequence[Finding]) -> None:
    """Print one line per scenario of `run`."""
    for found in findings:
        swapped = "-" if found.swapped is None else f"{found.changed_percent:.1f} %"
        counts = f"{found.questions:>10}{found.emptied:>9}{found.drawn:>7}{swapped:>10}"
        print(f"{run:<28}{found.scenario:<16}{counts}  {found.verdict}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

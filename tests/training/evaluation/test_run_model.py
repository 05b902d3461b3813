"""Runs against a model of what was trained and evaluated on what, over random orders of what their users do.

Train, stop after an epoch, resume, evaluate on other questions and stores, rename, move, copy, replace, sweep, report:
every number of a report must be that of the checkpoint, the questions and the features that it names.
"""

import csv
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tiny_run import Killed, tiny_config
from tiny_store import TinyStore, make_manifest, make_store

from pipeline.errors import UserError
from pipeline.manifests.manifest import Manifest
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.scenarios import SCENARIOS
from train.evaluation.evaluate_run import evaluate_run
from train.evaluation.predict import evaluate
from train.interfaces import inputs_of
from train.report.page import write_report
from train.runs.folder import load_run
from train.runs.identity import run_id
from train.runs.results import predictions_path, read_predictions, read_rows
from train.training.fit import fit
from train.training.sweep import Grid, list_cells, run_cells

SMALL = {"epochs": 2, "learning_rate": 0.01, "time_steps": 2}
LONG, SHORT = make_store(seconds=8), make_store(seconds=4)
CHANGED = make_store(seconds=8)
for _values in CHANGED.arrays.values():
    _values[3:] = _values[:2:-1].copy()  # the first three videos are incomplete
STORES = {"long": LONG, "short": SHORT, "changed": CHANGED}
FIRST = make_manifest(LONG)
SECOND = replace(FIRST, questions={**FIRST.questions, "test": FIRST.questions["test"][:6]})
MANIFESTS = {"first": FIRST, "second": SECOND}
# What a report refuses: it cannot pool two runs of a seed, nor show what a run was before it was trained further.
REFUSALS = ("share seed", "earlier checkpoint")

manifests, stores, seeds = st.sampled_from([*MANIFESTS]), st.sampled_from([*STORES]), st.integers(0, 1)
evaluated = st.sampled_from([[*SCENARIOS], ["complete"], ["audio-missing", "visual-missing"]])


def hash_of_questions(manifest: Manifest) -> str:
    """Return the hash that a report names for the test questions; all of them are on complete videos."""
    lines = sorted(
        json.dumps([q.question_id, q.video_id, q.text, q.answer])
        + json.dumps(["complete", q.type, q.modality, q.template])
        for q in manifest.questions["test"]
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Runs(RuleBasedStateMachine):
    """Run folders in a temporary folder, a copy of every checkpoint that was ever evaluated, and its numbers."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.numbers: dict[tuple[str, str, str], int] = {}
        self.trained_on: dict[Path, tuple[str, str]] = {}
        # {folder: (run, checkpoint, questions and features, scenario) of the rows that it must have}
        self.evaluated: dict[Path, set[tuple[str, str, str, str]]] = {}
        self.count = 0
        self.train(self.new_folder(), 0, "long", stop=True)

    def teardown(self) -> None:
        shutil.rmtree(getattr(self, "folder", ""), ignore_errors=True)

    def new_folder(self) -> Path:
        self.count += 1
        return self.folder / ("ab"[self.count % 2]) / f"run{self.count}"

    def pick(self, number: int) -> Path:
        runs = sorted(self.trained_on)
        return runs[number % len(runs)]

    def train(
        self, run: Path, seed: int, store: str, manifest: str = "first", *, stop: bool = False, resume: bool = False
    ) -> None:
        def report(progress: object) -> None:
            if stop and progress.validation is not None:
                raise Killed

        config = tiny_config(seed=seed, **SMALL)
        self.trained_on[run] = (store, manifest)
        try:
            fit(config, MANIFESTS[manifest], FeatureBank(STORES[store]), run, resume=resume, report=report)
        except Killed:
            # The first epoch's checkpoint is there, its state too.
            assert stop

    @rule(seed=seeds, store=stores, stop=st.booleans())
    def train_a_run(self, seed: int, store: str, stop: bool) -> None:
        self.train(self.new_folder(), seed, store, stop=stop)

    @precondition(lambda self: self.trained_on)
    @rule(number=st.integers(0, 99))
    def resume_a_run(self, number: int) -> None:
        run = self.pick(number)
        seed = json.loads((run / "config.json").read_text())["seed"]
        self.train(run, seed, *self.trained_on[run], resume=True)

    @precondition(lambda self: self.trained_on)
    @rule(number=st.integers(0, 99), seed=seeds)
    def train_another_run_in_its_folder(self, number: int, seed: int) -> None:
        run = self.pick(number)
        for name in ("config.json", "data.json", "checkpoint.safetensors", "last.safetensors"):
            (run / name).unlink(missing_ok=True)
        self.train(run, seed, *self.trained_on[run])

    @precondition(lambda self: self.trained_on)
    @rule(number=st.integers(0, 99), copies=st.booleans())
    def move_or_copy_a_run(self, number: int, copies: bool) -> None:
        run, new = self.pick(number), self.new_folder()
        new.parent.mkdir(exist_ok=True)
        shutil.copytree(run, new) if copies else run.rename(new)
        for known in (self.trained_on, self.evaluated):
            if run in known:
                known[new] = copy(known[run]) if copies else known.pop(run)

    @precondition(lambda self: self.trained_on)
    @rule(
        number=st.integers(0, 99),
        evaluations=st.lists(st.tuples(manifests, stores, evaluated, st.booleans()), min_size=1, max_size=3),
        elsewhere=st.booleans(),
    )
    def evaluate_a_run(self, number: int, evaluations: list[tuple[str, str, list[str], bool]], elsewhere: bool) -> None:
        run = self.pick(number)
        out = self.folder / "elsewhere" if elsewhere else run
        for manifest, store, scenarios, keep in evaluations:
            self.evaluate(run, out, MANIFESTS[manifest], STORES[store], scenarios, keep)

    def evaluate(
        self, run: Path, out: Path, manifest: Manifest, store: TinyStore, scenarios: list[str], keep: bool
    ) -> None:
        bank = FeatureBank(store)
        if store.seconds != STORES[self.trained_on[run][0]].seconds:
            with pytest.raises(UserError, match="seconds per video"):
                evaluate_run(run, manifest, bank, scenarios=scenarios, out=out, keep=keep)
            return
        rows = evaluate_run(run, manifest, bank, scenarios=scenarios, out=out, keep=keep)
        assert {row.subject.questions_sha256 for row in rows} == {hash_of_questions(manifest)}
        correct = {row.scenario: row.accuracies.overall.correct for row in rows if row.kind == "model"}
        assert correct == {scenario: self.remember(run, manifest, store, scenario) for scenario in scenarios}
        checkpoint, data = self.checkpoint(run), hash_of_questions(manifest) + store_hash(store)
        # Copies of a run that were trained further have its id, and replace its rows.
        known = {key for key in self.evaluated.get(out, ()) if key[0] != run_id(run) or key[1] == checkpoint}
        known = known if out != run else {key for key in known if key[0] == run_id(run)}
        self.evaluated[out] = known | {(run_id(run), checkpoint, data, scenario) for scenario in scenarios}

    @rule(seeds_of_sweep=st.sampled_from([(0,), (0, 1)]), manifest=manifests)
    def sweep(self, seeds_of_sweep: tuple[int, ...], manifest: str) -> None:
        grid = Grid(preset="demo", settings={**tiny_settings(), **SMALL}, methods=({"name": "zero-fill"},))
        out, data = self.folder / "sweep", MANIFESTS[manifest]
        cells = list_cells(grid, seeds_of_sweep, "", "", "cpu")
        found = run_cells(cells, data, FeatureBank(LONG), out)
        for cell in cells:
            is_on_others = self.trained_on.get(out / cell.name, ("", manifest))[1] != manifest
            assert ("other questions" in found.failures.get(cell.name, "")) == is_on_others
        for name, document in found.documents.items():
            self.trained_on[out / name] = ("long", manifest)
            for scenario, shown in document["scenarios"].items():
                correct = self.remember(out / name, data, LONG, scenario)
                assert round(shown["overall"] * shown["questions"] / 100) == correct

    @invariant()
    def every_reported_number_is_that_of_what_it_names(self) -> None:
        if not hasattr(self, "folder"):
            return
        evaluated = sorted(path.parent for path in self.folder.rglob("results.jsonl"))
        for runs in (*([run] for run in evaluated), evaluated):
            if runs:
                self.check_report(runs)

    @invariant()
    def what_was_evaluated_is_there_with_its_predictions(self) -> None:
        for folder, known in getattr(self, "evaluated", {}).items():
            rows = [row for row in read_rows(folder / "results.jsonl") if row.kind == "model"]
            keys = {(row.subject.checkpoint_sha256, row.subject.questions_sha256, row.scenario) for row in rows}
            assert keys >= {(checkpoint, data[:64], scenario) for _, checkpoint, data, scenario in known}
            assert len(rows) >= len(known)
            for row in rows:
                read_predictions(predictions_path(folder, row), row.accuracies.overall)

    def check_report(self, runs: list[Path]) -> None:
        with undrawn_reports():
            page = self.refusing_or(lambda: write_report(runs, self.folder / "report"))
        if page is None:
            return
        with (page.parent / "results.csv").open() as file:
            lines = [line for line in csv.DictReader(file) if line["role"] != "floor" and line["column"] == "All"]
        now = {self.checkpoint(run) for run in runs if (run / "checkpoint.safetensors").exists()}
        for line in lines:
            assert now >= set(line["checkpoints"].split()) or self.folder / "elsewhere" in runs
            options = [name for name, store in STORES.items() if str(store.seconds) == line["seconds"]]
            sums = {
                sum(
                    self.numbers.get(
                        (checkpoint, line["questions_sha256"] + store_hash(STORES[name]), line["scenario"]), -99
                    )
                    for checkpoint in line["checkpoints"].split()
                )
                for name in options
            }
            assert int(line["correct"]) in sums, (line, sums)

    @staticmethod
    def refusing_or(write: Callable[[], Path]) -> Path | None:
        try:
            return write()
        except UserError as refused:
            if any(reason in str(refused) for reason in REFUSALS):
                return None
            raise

    def remember(self, run: Path, manifest: Manifest, store: TinyStore, scenario: str) -> int:
        """Return the number of correct answers, computed without the results on disk."""
        key = (self.checkpoint(run), hash_of_questions(manifest) + store_hash(store), scenario)
        if key not in self.numbers:
            method, config = load_run(run)
            dataset = QuestionDataset(FeatureBank(store), manifest, "test", inputs_of(method.backbone, config.map_size))
            evaluation = evaluate(method, dataset, scenario, manifest.vocabulary.answers)
            self.numbers[key] = evaluation.accuracies.overall.correct
        return self.numbers[key]

    @staticmethod
    def checkpoint(run: Path) -> str:
        return hashlib.sha256((run / "checkpoint.safetensors").read_bytes()).hexdigest()


def store_hash(store: TinyStore) -> str:
    return store.digest_of("vggish", store.video_ids)


def tiny_settings() -> dict[str, object]:
    from tiny_run import TINY

    return {name: value for name, value in TINY.items() if name not in ("preset", "method", "device")}


@contextmanager
def undrawn_reports() -> Iterator[None]:
    """Write reports without their page: plots take most of the time."""
    with (
        patch("train.report.page._section", lambda blocks, folders: {"tested": (blocks[0], {})}),
        patch("train.report.page._render_page", lambda *parts: ""),
    ):
        yield


def run_machine(examples: int, steps: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_state_machine_as_test(
        Runs,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            phases=[Phase.generate],
        ),
    )
    torch.set_num_threads(threads)


def test_reported_numbers_are_of_what_they_name() -> None:
    run_machine(examples=10, steps=8)


@pytest.mark.nightly
def test_reported_numbers_are_of_what_they_name_in_long_orders() -> None:
    run_machine(examples=120, steps=25)

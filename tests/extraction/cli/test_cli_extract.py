"""`mavqa-extract`: the plan made from its options, and its progress lines."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

import pipeline.media.decoders.registry
import pipeline.run.coordinator
import pipeline.run.plan
from pipeline.cli.extract import extract
from pipeline.manifests.manifest import load_manifest
from pipeline.media.decoder_process import Limits
from pipeline.media.decoders.interface import DecoderLoadError
from pipeline.run.coordinator import Progress, Summary
from pipeline.run.plan import Plan
from pipeline.store.schema import tokens_name


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans of the runs that were started; nothing is extracted."""
    started: list[Plan] = []

    class FakeRun:
        def __init__(self, plan: Plan, *others: Any) -> None:
            self._plan, self._on_progress = plan, others[-1]

        def carry_out(self, accepted: Any) -> int:
            started.append(self._plan)
            for progress in (
                Progress(3, 45, unit="MB", file="net.pth"),
                Progress(64, 70, unit="questions"),
                Progress(70, 70, unit="questions"),
                Progress(0, None),
                Progress(0, 2),
                Progress(1, 2, note="a note"),
                Progress(2, 2, failed=1),
            ):
                self._on_progress(progress)
            return 0

    monkeypatch.setattr(pipeline.run.coordinator, "_Run", FakeRun)
    monkeypatch.setattr(pipeline.run.coordinator, "_summarise", lambda *arguments: Summary("store", 2))
    return started


def test_options_become_a_plan(toy_manifest: Path, tmp_path: Path, plans: list[Plan]) -> None:
    arguments = ["--manifest", str(toy_manifest), "--store", str(tmp_path / "s.zarr"), "--weights", "seeded"]
    assert CliRunner().invoke(extract, [*arguments, "--device", "cpu"]).exit_code == 0
    vocabulary = load_manifest(toy_manifest).vocabulary
    features = "clip-vit-b32, clip-vit-b32-words,r2plus1d,tokens"
    others = ["--normalisation", "trained", "--audio", "released", "--features", features, "--device", "cpu"]
    assert CliRunner().invoke(extract, [*arguments, *others]).exit_code == 0
    assert [plan.settings.normalisation for plan in plans] == ["published", "trained"]
    assert plans[0].features == ("resnet18-map", "vggish")
    assert plans[1].features == ("clip-vit-b32", "r2plus1d")
    assert [plan.settings.audio for plan in plans] == ["resampled", "released"]
    names = [part.spec.name for part in plans[1].questions]
    assert names == ["clip-vit-b32-words", tokens_name(vocabulary.tokens, vocabulary.question_length)]


def test_limits_of_decoding_are_in_the_plan(toy_manifest: Path, tmp_path: Path, plans: list[Plan]) -> None:
    arguments = ["--manifest", str(toy_manifest), "--store", str(tmp_path / "s.zarr"), "--weights", "seeded"]
    limits = ["--max-cpu-seconds", "900", "--max-memory-gb", "2.5", "--max-pixels", "100000000", "--max-file-gb", "30"]
    assert CliRunner().invoke(extract, [*arguments, "--device", "cpu"]).exit_code == 0
    assert CliRunner().invoke(extract, [*arguments, "--device", "cpu", *limits]).exit_code == 0
    assert [plan.settings.limits for plan in plans] == [
        Limits(),
        Limits(cpu_seconds=900, memory_bytes=2_500_000_000, max_pixels=100_000_000, file_bytes=30_000_000_000),
    ]


@pytest.mark.parametrize(("option", "value"), [("--padding", "cycle"), ("--short", "cycle"), ("--padding", "pad")])
def test_the_padding_is_in_the_plan_under_its_present_and_its_former_name(
    option: str, value: str, toy_manifest: Path, tmp_path: Path, plans: list[Plan]
) -> None:
    arguments = ["--manifest", str(toy_manifest), "--store", str(tmp_path / "s.zarr"), "--weights", "seeded"]
    ended = CliRunner().invoke(extract, [*arguments, "--device", "cpu", option, value])
    assert ended.exit_code == 0
    assert plans[0].settings.padding == value
    assert "--short" not in CliRunner().invoke(extract, ["--help"]).output


@pytest.mark.parametrize(
    ("device", "has_gpus", "expected"),
    [
        ("auto", True, ("cuda", "GPU")),
        ("auto", False, ("cpu", "")),
        ("cuda", False, ("cuda", "GPU")),
        ("cpu", True, ("cpu", "")),
    ],
)
def test_with_a_scheduler_videos_use_the_workers_gpus_and_questions_the_local_device(
    device: str,
    has_gpus: bool,
    expected: tuple[str, str],
    toy_manifest: Path,
    tmp_path: Path,
    plans: list[Plan],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.run.plan.offers_label", lambda scheduler, label: has_gpus)
    monkeypatch.setattr("pipeline.run.plan.sees_gpu", lambda: False)
    arguments = ["--manifest", str(toy_manifest), "--weights", "seeded", "--store", str(tmp_path / "s.zarr")]
    shown = CliRunner().invoke(extract, [*arguments, "--scheduler", "tcp://host:8786", "--device", device])
    assert shown.exit_code == 0, shown.output
    (plan,) = plans
    assert (plan.settings.device, plan.cluster.label) == expected
    assert plan.settings.decoding_processes == (4 if plan.settings.device == "cuda" else 1)
    assert plan.questions[0].spec.constants["machine"]["device"] == "cpu"
    assert plan.cluster.scheduler == "tcp://host:8786"


@pytest.mark.parametrize(
    ("options", "gpus", "expected"),
    [
        (("--device", "cpu"), 8, (10, 1, 0)),
        (("--device", "auto"), 1, (3, 4, 1)),
        (("--device", "auto"), 8, (8, 4, 8)),
        (("--device", "auto", "--workers", "2", "--decoding-processes", "7"), 8, (2, 7, 8)),
    ],
)
def test_gpu_workers_are_fewer_but_one_per_gpu_and_have_several_decoder_processes(
    options: tuple[str, ...],
    gpus: int,
    expected: tuple[int, int, int],
    toy_manifest: Path,
    tmp_path: Path,
    plans: list[Plan],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.run.plan.sees_gpu", lambda: True)
    monkeypatch.setattr("pipeline.run.plan.visible_gpus", lambda: tuple(map(str, range(gpus))))
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(10)), raising=False)
    arguments = ["--manifest", str(toy_manifest), "--weights", "seeded", "--store", str(tmp_path / "s.zarr"), *options]
    shown = CliRunner().invoke(extract, arguments)
    assert shown.exit_code == 0, shown.output
    (plan,) = plans
    assert plan.settings.device == ("cuda" if plan.cluster.gpus else "cpu")
    assert (plan.cluster.workers, plan.settings.decoding_processes, len(plan.cluster.gpus)) == expected


def test_workers_together_with_a_scheduler_are_refused(toy_manifest: Path, plans: list[Plan]) -> None:
    arguments = [
        "--manifest",
        str(toy_manifest),
        "--weights",
        "seeded",
        "--workers",
        "2",
        "--scheduler",
        "tcp://host:1",
    ]
    shown = CliRunner().invoke(extract, [*arguments, "--device", "cpu"])
    assert (shown.exit_code, plans) == (2, [])
    assert "pass only one of them" in shown.stderr


def test_questions_and_videos_have_separate_progress_lines(
    toy_manifest: Path, tmp_path: Path, plans: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cli.progress.SHORTEST_SECONDS", 0.0)
    arguments = ["--manifest", str(toy_manifest), "--store", str(tmp_path / "s.zarr"), "--weights", "seeded"]
    shown = CliRunner().invoke(extract, [*arguments, "--device", "cpu"]).stderr
    lines = [line.partition(" in ")[0] for line in shown.splitlines()]
    assert lines.index("encode: 70/70 questions") < lines.index("a note") < lines.index("extract: 2/2 videos")
    assert "extract: 2/2 videos in 0:00, 1 failed" in shown


def decoder_for(toy_manifest: Path, tmp_path: Path, plans: list[Plan], *more: str) -> tuple[str, str]:
    """Return the decoder of the plan made from these options, and the line that reports it."""
    arguments = ["--manifest", str(toy_manifest), "--store", str(tmp_path / "s.zarr"), "--weights", "seeded"]
    shown = CliRunner().invoke(extract, [*arguments, "--device", "cpu", *more])
    assert shown.exit_code == 0, shown.output
    return plans[-1].settings.decoder, next(line for line in shown.stderr.splitlines() if line.startswith("decoder: "))


def make_unavailable(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """Make one library fail to load, and replace all others with a fake."""

    def load(entry: str, **options: Any) -> Any:
        if library in entry:
            raise DecoderLoadError(library, "it is missing", "install it")
        return type("Fake", (), {"name": entry, "version": lambda self, modality="visual": "1"})()

    monkeypatch.setattr(pipeline.media.decoders.registry, "_load", load)


def test_auto_uses_the_best_decoder_that_loads_and_reports_it(
    toy_manifest: Path, tmp_path: Path, plans: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_unavailable(monkeypatch, "decord")
    name, line = decoder_for(toy_manifest, tmp_path, plans)
    assert name == "pyav"
    assert line.startswith("decoder: pyav, the default: fastest on dataset clips")


def test_auto_keeps_the_decoder_of_the_store(
    toy_manifest: Path, tmp_path: Path, plans: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_unavailable(monkeypatch, "torchcodec")
    choices = {"decoder": {"other": "decord"}, "padding": {}, "normalisation": {}, "audio": {}}
    monkeypatch.setattr(pipeline.run.plan, "stored_choices", lambda specs: choices)
    assert decoder_for(toy_manifest, tmp_path, plans) == (
        "decord",
        "decoder: decord, the store's decoder: 1",
    )
    assert decoder_for(toy_manifest, tmp_path, plans, "--decoder", "pyav")[0] == "pyav"


@pytest.mark.parametrize("name", ["torchcodec:cuda", "no_such_module:Decoder", "json:decoder", ":Decoder", "json:"])
def test_an_unknown_decoder_with_a_colon_is_one_line(
    name: str, toy_manifest: Path, tmp_path: Path, plans: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    arguments = ["--manifest", str(toy_manifest), "--store", str(tmp_path / "s.zarr"), "--weights", "seeded"]
    shown = CliRunner().invoke(extract, [*arguments, "--device", "cpu", "--decoder", name])
    assert (shown.exit_code, plans) == (2, [])
    (line,) = shown.stderr.splitlines()
    assert line.startswith(f"Error: decoder {name!r} ")
    assert line.endswith("choose one of decord, pyav, pyav-cuda, torchcodec, or the module:Class of your own")


def test_a_decoder_that_does_not_load_is_refused_before_any_work(
    toy_manifest: Path, tmp_path: Path, plans: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_unavailable(monkeypatch, "decord")
    arguments = ["--manifest", str(toy_manifest), "--store", str(tmp_path / "s.zarr"), "--weights", "seeded"]
    shown = CliRunner().invoke(extract, [*arguments, "--device", "cpu", "--decoder", "decord"])
    assert (shown.exit_code, plans) == (2, [])
    assert "decoder decord does not load: it is missing: install it" in shown.stderr

"""The rehearsal of a training: which rows are measured, what is timed, and what an epoch and a run follow from."""

import argparse
import json
import time
from pathlib import Path
from types import SimpleNamespace

import cost
import pytest
import rehearsal
import stand_ins
import timed_training
import torch
from rehearsal import Cost, Row, StageCost
from tiny_run import tiny_config
from tiny_store import make_manifest, make_store

from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.runs.config import PRECISIONS
from train.training.fit import measure_sizes
from train.training.loop import Progress

CPU = torch.device("cpu")
GIGABYTE = 10**9


def make_cost(method: str = "zero-fill", batch_size: int = 4, stages: tuple = (("joint", 20, 0.5),), **changes) -> Cost:
    facts = {
        "row": Row(backbone="avst", method=method, batch_size=batch_size),
        "stages": [StageCost(name=n, epochs=e, step_seconds=0.8 * s, loop_seconds=s) for n, e, s in stages],
        "loader_seconds": 0.002,
        "batch_bytes": 16_000_000,
        "steps_per_epoch": 7_982,
        "validation_seconds": 100.0,
        "memory": cost.Memory(GIGABYTE // 2, 3 * GIGABYTE),
        "parameters": GIGABYTE // 2 // 16,
        "operations": 10**12,
        "peak_speed": 1e13,
        "busy_share": None,
    }
    return Cost(**{**facts, **changes})


def test_cheap_rows_are_measured_first() -> None:
    rows = rehearsal.plan_rows(["pano", "avst"], ["zero-fill", "rmm-avr"], [64, 4])
    assert [(row.method, row.batch_size, row.backbone) for row in rows] == [
        (method, size, backbone)
        for method in ("zero-fill", "rmm-avr")
        for size in (4, 64)
        for backbone in ("pano", "avst")
    ]


def test_a_row_is_left_out_if_its_smaller_batch_says_that_the_memory_is_too_small() -> None:
    known = {measured.row: measured for measured in (make_cost(), make_cost(method="rmm-avr"))}
    large = Row(backbone="avst", method="zero-fill", batch_size=64)
    assert rehearsal.find_obstacle(large, known, 34 * GIGABYTE, 1.0) == ""
    assert rehearsal.find_obstacle(large, known, 32 * GIGABYTE, 1.0) == "needs about 33 GB of memory, 32 GB are free"
    assert rehearsal.find_obstacle(large, {}, 0, 1.0) == ""
    assert rehearsal.find_obstacle(large, {}, 0, -1.0) == "no time was left"


def test_a_row_that_outlasts_the_time_or_fails_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = make_cost().row
    program = tmp_path / "program.py"
    monkeypatch.setattr(rehearsal, "__file__", str(program))
    monkeypatch.setattr("sys.argv", ["rehearsal.py", "--steps", "3"])
    program.write_text("import time\ntime.sleep(60)")
    assert rehearsal.run_row(row, 0.3) == "took longer than the 0.0 minutes that were left"
    program.write_text("import sys\nprint('one', 'two', sep='\\n', file=sys.stderr)\nsys.exit(2)")
    assert rehearsal.run_row(row, 60) == "two"
    program.write_text(
        f"import sys\nassert sys.argv[1:3] == ['--steps', '3']\nprint({make_cost().model_dump_json()!r})"
    )
    assert rehearsal.run_row(row, 60) == make_cost()


def test_a_run_has_the_epochs_of_all_stages_and_their_validations() -> None:
    joint, staged = make_cost(), make_cost(stages=(("backbone", 10, 0.5), ("all", 10, 2.0)))
    assert joint.epoch_seconds == 7_982 * 0.5
    assert joint.run_seconds == 20 * (7_982 * 0.5 + 100)
    assert staged.epoch_seconds == 7_982 * 2
    assert staged.run_seconds == 10 * 7_982 * 2.5 + 20 * 100


def test_fewer_steps_are_timed_without_loading() -> None:
    assert [rehearsal.steps_alone(steps) for steps in (1, 5, 30, 300)] == [1, 5, 5, 50]


def test_durations_are_described_in_the_unit_that_fits() -> None:
    seconds = {8.1: "8.1 s", 52: "52 s", 100: "1.7 min", 3000: "50 min", 7200: "2.0 h", 10**5: "28 h", 10**6: "12 days"}
    assert {taken: rehearsal.describe(taken) for taken in seconds} == seconds


def test_the_tables_have_rates_memory_times_and_arithmetic() -> None:
    measured = make_cost()
    expected = "| `avst` | `zero-fill` | 4 | 2,000 | 10 | 8 | 3.0 | 67 min | 1.7 min | 23 h |"
    assert rehearsal.format_cost(measured, CPU) == expected
    assert " | 2.5 | " in rehearsal.format_cost(measured, torch.device("cuda"))  # without what was cached before
    assert rehearsal.format_arithmetic(measured) == "| `avst` | `zero-fill` | 4 | 1 | 25% | 16 | 8.0 |  |"
    assert rehearsal.format_arithmetic(make_cost(busy_share=0.634)).endswith("| 63% |")


def test_the_cost_of_table_1_is_that_of_its_timed_runs() -> None:
    both = [make_cost(), make_cost(method="rmm-avr"), make_cost(method="avr")]
    seconds = 3 * 2 * both[0].run_seconds
    assert rehearsal.describe_table_1(both) == (
        "Table 1 at batch 4: 6 of the 84 runs of the grid `table1` are timed above (3 seeds); one after the other they "
        f"take {rehearsal.describe(seconds)}."
    )


def test_the_tables_and_what_is_left_out_are_printed(capsys: pytest.CaptureFixture) -> None:
    names = {"preset": "paper", "variant": "recommended", "precision": "float32", "cache": "disk"}
    options = argparse.Namespace(**names, steps=5, videos=256)
    bare, full = make_cost(), make_cost(method="rmm-avr")
    missing = Row(backbone="avst", method="rmm-avr", batch_size=64)
    rehearsal.print_tables(options, CPU, {bare.row: bare, full.row: full}, {missing: "no time was left"})
    printed = capsys.readouterr().out
    assert "float32, variant recommended, preset paper (20 epochs), 5 timed steps, 256 videos, cache disk" in printed
    assert printed.count("| `avst` | `rmm-avr` | 4 |") == 2
    assert "Left out: avst, rmm-avr, batch 64: no time was left" in printed
    assert "6 of the 84 runs" in printed


def test_timed_are_the_steps_after_the_warm_up_of_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 2.0, 10.0, 20.0])
    monkeypatch.setattr(timed_training, "now", lambda device: next(clock))
    meter = timed_training.Meter(5, CPU, is_profiled=True)
    assert meter.all_steps == 7  # nothing is profiled on a CPU
    for epoch in (1, 2):
        for step in range(1, 8):
            meter(Progress(epoch, 2, step, 7))
        meter(Progress(epoch, 2, 7, 7, validation={}))
    assert meter.seconds == [0.2, 2.0]


@pytest.mark.parametrize("repeats_batch", [False, True])
def test_the_real_loop_is_timed_in_each_stage(repeats_batch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(videos=60)
    manifest, bank = make_manifest(store), FeatureBank(store)
    config = tiny_config(method="constant-fill", training="staged", epochs=2, batch_size=4)
    config = config.model_copy(update={"sizes": measure_sizes(config, manifest, bank)})
    gathered = []
    gather = QuestionDataset._gather
    monkeypatch.setattr(QuestionDataset, "_gather", lambda self, draw: gathered.append(draw) or gather(self, draw))
    meter, method = timed_training.time_training(config, manifest, bank, timed_training.Meter(3, CPU), repeats_batch)
    assert len(meter.seconds) == 2
    assert all(seconds > 0 for seconds in meter.seconds)
    kinds = [(len(draw.rows), draw.negatives is None) for draw in gathered]
    assert len(kinds) <= 2 * meter.all_steps + 3  # a few to prepare the method
    assert kinds.count((4, False)) == 1 if repeats_batch else kinds.count((4, False)) > 5
    validation = QuestionDataset(bank, manifest, "val", rehearsal.inputs_of(method.backbone, config.map_size))
    assert timed_training.time_validation(method, validation, 3, CPU) > 0
    seconds, batch, steps = timed_training.time_loading(validation, 4, 100, CPU)  # the split has fewer
    assert seconds > 0
    assert steps == -(-len(validation) // 4)
    maps, audio = batch.visual["resnet18-map"], batch.audio["vggish"]
    tokens = batch.question["tokens"]
    assert rehearsal.count_bytes(batch) == 2 * maps.nbytes + audio.nbytes + tokens.nbytes  # with negatives
    per_question = rehearsal.count_batch_operations(method.train(), batch.select(torch.arange(1)))
    assert rehearsal.count_batch_operations(method, batch) == len(batch) * per_question > 0


def test_videos_without_values_of_their_own_are_linked(tmp_path: Path) -> None:
    features = {
        "vggish": stand_ins.StoredFeature("audio", (128,), "float32"),
        "resnet18-map": stand_ins.StoredFeature("visual", (512, 5, 4), "float16"),
    }
    manifest = stand_ins.make_manifest(40, {"train": 100}, stand_ins.music_avqa(1).vocabulary)
    assert [q.video_id for q in manifest.questions["train"][::99]] == ["00000000", "00000039"]
    stand_ins.write_store(tmp_path / "store.zarr", manifest, features, {})
    store = rehearsal.open_store(tmp_path / "store.zarr")
    for name, feature in features.items():
        values = store.values(name)
        assert (values[37] == stand_ins.random_values(name, feature, 37 % 16)).all()
        files = list((tmp_path / "store.zarr" / "features" / name / "values").glob("c.*"))
        assert len({path.stat().st_ino for path in files}) == min(len(files), 16 if len(feature.shape) == 3 else 1)
    assert (values[37] == 0).mean() == pytest.approx(stand_ins.SHARE_OF_ZEROS, abs=0.01)


def test_memory_is_measured_and_scaled() -> None:
    with cost.measured_memory(CPU) as memory:
        held = torch.ones(25_000_000)
        time.sleep(0.1)
    assert memory.peak - memory.before == pytest.approx(held.nbytes, rel=0.5)
    assert cost.scaled_bytes(cost.Memory(10, 30), 4) == 90


def test_operations_and_kernels_are_counted() -> None:
    assert cost.count_operations(lambda: torch.ones(2, 3) @ torch.ones(3, 4)) == 48
    gpu = torch.autograd.DeviceType.CUDA

    def event(name: str, device: object, taken: int, is_annotation: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            name=name, device_type=device, self_device_time_total=taken, is_user_annotation=is_annotation
        )

    events = [
        event("gemm", gpu, 3000),
        event("Memcpy HtoD", gpu, 500),
        event("Optimizer.step", gpu, 700, is_annotation=True),
        event("aten::mm", torch.autograd.DeviceType.CPU, 3000),
        event("relu", gpu, 1000),
    ]
    assert cost.kernel_seconds(SimpleNamespace(events=lambda: events)) == 0.004


def test_precisions_differ_in_what_a_product_returns() -> None:
    dtypes = {}
    for precision in PRECISIONS:
        with cost.computing_in(precision, CPU):
            dtypes[precision] = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
            assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
    assert dtypes == {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.mark.nightly
def test_a_row_is_rehearsed_at_the_real_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    chosen = ["--backbones", "avst", "--methods", "zero-fill", "--batch-sizes", "2", "--steps", "1", "--device", "cpu"]
    places = ["--videos", "16", "--out", str(tmp_path / "out"), "--json", str(tmp_path / "measured.json")]
    monkeypatch.setattr("sys.argv", ["rehearsal.py", *chosen, *places])
    assert rehearsal.main() == 0
    assert "| `avst` | `zero-fill` | 2 |" in capsys.readouterr().out
    (measured,) = json.loads((tmp_path / "measured.json").read_text())
    assert measured["steps_per_epoch"] == 15_964
    assert measured["batch_bytes"] == pytest.approx(2 * 20 * 512 * 14 * 14 * 2, rel=0.01)
    assert 0.3e9 < measured["operations"] / 2 < 0.6e9

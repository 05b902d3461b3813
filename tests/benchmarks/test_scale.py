"""The cost of many videos: one file per map and no folders, lazy plans, and the benchmark `scale.py`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scale
from click.testing import CliRunner

from pipeline.cli.inspect import inspect
from pipeline.run.partitions import VideoTask, plan_partitions
from pipeline.store.reader import open_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale")
    scale.save_manifest(scale.make_dummies(40, 2), folder / "manifest")
    scale.write_store(folder / "manifest", folder / "store.zarr")
    return folder / "store.zarr"


def test_a_run_finds_the_linked_store_complete(store):
    result = CliRunner().invoke(inspect, [str(store), "--json"])
    features = json.loads(result.stdout)["features"]
    assert {name: feature["complete"] for name, feature in features.items()} == {"resnet18-map": 40, "vggish": 40}
    values = open_store(store).values("resnet18-map")
    assert np.array_equal(values[39], values[0])
    options = ["--manifest", store.parent / "manifest", "--store", store, "--weights", "seeded", "--device", "cpu"]
    command = [Path(sys.executable).with_name("mavqa-extract"), *options, "--json"]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert json.loads(run.stdout)["extracted"] == 0


def test_a_run_with_nothing_to_do_imports_no_torch_and_refuses_other_settings(store):
    options = ["--manifest", store.parent / "manifest", "--store", store, "--weights", "seeded"]
    program = (
        "import sys; from pipeline.cli.extract import extract\n"
        "try: extract(sys.argv[1:])\n"
        "finally: print(*{'torch', 'torchvision'} & set(sys.modules), 'imported')"
    )
    command = [sys.executable, "-c", program, *map(str, options)]
    idle = subprocess.run(command, capture_output=True, text=True, check=True)
    assert idle.stdout.splitlines()[-1] == "imported", idle.stdout
    other = subprocess.run([*command, "--normalisation", "trained"], capture_output=True, text=True)
    assert other.returncode == 2, other.stderr
    assert "resnet18-map" in other.stderr


def test_a_map_is_one_file_in_one_folder_and_vectors_share_files(store):
    maps, vectors = (store / "features" / name / "values" for name in ("resnet18-map", "vggish"))
    assert len([path for path in maps.rglob("*") if path.name != "zarr.json"]) == 40
    assert len([path for path in vectors.rglob("*") if path.name != "zarr.json"]) == 3


def test_the_plan_of_a_manifest_is_measured(tmp_path):
    scale.save_manifest(scale.make_dummies(100, 0), tmp_path / "manifest")
    cost = scale.measure_plan(tmp_path / "manifest")
    assert cost["partitions"] == 7
    assert cost["plan_seconds"] > 0


def test_partitions_are_planned_one_at_a_time():
    def tasks():
        for row in range(40):
            yield VideoTask(row, str(row), "", "", ())
        raise AssertionError("more tasks were taken than the partition needed")

    partitions = plan_partitions(tasks())
    assert [next(partitions).first_row for _ in range(2)] == [0, 16]


def test_a_failing_command_is_an_error():
    with pytest.raises(scale.UserError, match=r"exit code 2: .*no feature store"):
        scale.run([Path(sys.executable).with_name("mavqa-inspect"), "nothing.zarr"])


def test_what_a_training_does_beside_its_steps_is_measured(store):
    seconds = scale.measure_training(store.parent)
    assert list(seconds) == [
        "opening manifest and store",
        "80 questions, their videos and features",
        "the name of the maps' file in the cache",
        "the batches of an epoch, of 4 questions",
        "their masks and negatives, 20 batches",
    ]
    assert all(taken > 0 for taken in seconds.values())

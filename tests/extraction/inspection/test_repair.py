"""Corrupt rows are made pending, and extraction computes them again to the same digests."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from run_toys import run_toys

from pipeline.cli.inspect import inspect
from pipeline.inspection.verify import verify_store
from pipeline.store.reader import open_store
from pipeline.store.schema import State


@pytest.fixture
def store(extracted_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(extracted_store, tmp_path / "store.zarr"))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def run_inspect(store: Path, *options: str) -> tuple[int, str]:
    shown = CliRunner().invoke(inspect, [str(store), *options])
    return shown.exit_code, shown.stderr


def test_corrupt_rows_and_questions_are_extracted_again(store: Path, toy_manifest: Path) -> None:
    digest = open_store(store).digest
    (questions,) = (store / "questions").glob("tokens*/values/c*")
    damage(questions)
    damage(min((store / "features/toy-audio/values").glob("c*")))
    assert run_inspect(store, "--verify")[0] == 2
    code, shown = run_inspect(store, "--verify", "--repair")
    assert (code, shown.splitlines()[-1]) == (
        0,
        "16 rows and 1 question features are pending: run mavqa-extract again",
    )
    assert (open_store(store).state("toy-audio")[:16] == State.PENDING).all()
    assert run_toys(toy_manifest, store).extracted == 15  # the audio of one is absent
    repaired = open_store(store)
    assert verify_store(repaired) == []
    assert repaired.digest == digest


def test_a_resumed_run_extracts_the_other_rows_of_a_corrupt_chunk_again(store: Path, toy_manifest: Path) -> None:
    digest = open_store(store).digest
    damage(min((store / "features/toy-audio/values").glob("c*")))
    problems = [problem for problem in verify_store(open_store(store)) if problem.row == 0]
    assert len(problems) == 1
    from pipeline.inspection.repair import make_pending

    assert make_pending(open_store(store), problems) == (1, 0)
    run_toys(toy_manifest, store)
    repaired = open_store(store)
    assert verify_store(repaired) == []
    assert repaired.digest == digest


def test_a_store_whose_index_is_corrupt_is_not_repaired(store: Path) -> None:
    (store / "videos/steps_audio/c/0").unlink()
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    code, shown = run_inspect(store, "--verify", "--repair")
    assert code == 2
    assert "cannot be repaired (its metadata or index arrays" in shown
    assert before == {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert run_inspect(store, "--repair")[0] == 2

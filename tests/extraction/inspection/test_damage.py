"""Verification finds every flipped bit, and every file that is missing or in the place of another."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.errors import UserError
from pipeline.inspection.verify import verify_store
from pipeline.store.reader import open_store
from pipeline.store.schema import State


def is_found(store: Path) -> bool:
    try:
        return bool(verify_store(open_store(store)))
    except UserError:
        return True


@pytest.fixture
def store(extracted_store: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(extracted_store, tmp_path / "store.zarr"))
    assert verify_store(open_store(copy)) == []
    return copy


def files(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file())


def flip_bits(store: Path, count: int, seed: int) -> list[str]:
    """Flip one bit at a time, `count` times; return those that were not found. Each file is as likely as another."""
    draw, missed = random.Random(seed), []
    for _ in range(count):
        path = draw.choice(files(store))
        content = path.read_bytes()
        position, bit = draw.randrange(len(content)), draw.randrange(8)
        changed = bytearray(content)
        changed[position] ^= 1 << bit
        path.write_bytes(changed)
        if not is_found(store):
            missed.append(f"{path.relative_to(store)}: byte {position}, bit {bit}")
        path.write_bytes(content)
    return missed


def displace_files(store: Path, count: int, seed: int) -> list[str]:
    """Remove a file, or swap two with different content, `count` times; return those that were not found."""
    draw, missed = random.Random(seed), []
    for number in range(count):
        first, second = draw.sample(files(store), 2)
        contents = first.read_bytes(), second.read_bytes()
        if contents[0] == contents[1]:
            continue
        if number % 2:
            first.unlink()
        else:
            first.write_bytes(contents[1])
            second.write_bytes(contents[0])
        if not is_found(store):
            missed.append(f"{first.relative_to(store)} and {second.relative_to(store)}")
        first.write_bytes(contents[0])
        second.write_bytes(contents[1])
    return missed


def test_every_flipped_bit_is_found(store: Path) -> None:
    assert flip_bits(store, 12, seed=1) == []


def test_every_removed_or_swapped_file_is_found(store: Path) -> None:
    assert displace_files(store, 8, seed=1) == []


def test_rows_that_are_exchanged_with_valid_checksums_are_found_by_their_digests(store: Path) -> None:
    opened = open_store(store)
    complete = np.flatnonzero(opened.state("toy-audio") == State.COMPLETE)[:2]
    values = zarr.open_array(store / "features/toy-audio/values", mode="r+")
    values[complete[0]], values[complete[1]] = values[complete[1]], values[complete[0]]
    problems = verify_store(open_store(store))
    assert [(problem.feature, problem.row) for problem in problems] == [("toy-audio", row) for row in complete]
    assert all("their digest differs" in problem.message for problem in problems)


def test_a_chunk_of_values_in_the_place_of_an_index_chunk_is_found(store: Path) -> None:
    chunk, index = min((store / "features/toy-audio/values").glob("c*")), store / "features/toy-audio/digest/c/0"
    assert index.is_file()
    shutil.copy(chunk, index)
    assert is_found(store)


@pytest.mark.nightly
def test_three_hundred_flipped_bits_and_fifty_displaced_files_are_found(store: Path) -> None:
    assert flip_bits(store, 300, seed=2) == []
    assert displace_files(store, 50, seed=2) == []

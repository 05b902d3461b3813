"""The training cache: whole files only, whoever builds them and whatever ends the builder."""

import ctypes
import mmap
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from tiny_store import make_store, write_store

import train.data.cache_files as cache_files
from pipeline.errors import UserError
from pipeline.store.reader import FeatureStore, open_store
from pipeline.store.schema import State
from train.data.cache_files import cache_folder, list_cached, open_cached, remove_cached
from train.data.feature_bank import FeatureBank
from train.data.loading import CACHES, LARGEST_DECODED_AGAIN, LoadingSettings
from train.data.rows import MappedRows
from train.data.selected_feature import SelectedFeature

STEPS = (0, 2, 5)  # of a model with three time steps
FEATURES = ("vggish", "resnet18-map")


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    write_store(make_store(videos=40), tmp_path / "tiny.zarr")
    return open_store(tmp_path / "tiny.zarr")


def selected(store: FeatureStore, name: str = "resnet18-map") -> SelectedFeature:
    return SelectedFeature(store, name, STEPS, None)


def expected(store: FeatureStore, name: str = "resnet18-map") -> np.ndarray:
    feature = selected(store, name)
    return np.asarray(store.values(name)[:])[feature.videos][:, list(STEPS)]


def build(feature: SelectedFeature, folder: Path) -> np.ndarray:
    return open_cached(feature, folder, 2, lambda done: None)


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


@pytest.mark.parametrize("name", FEATURES)
def test_a_file_has_the_stored_values_of_the_selected_steps(store: FeatureStore, tmp_path: Path, name: str) -> None:
    values = build(selected(store, name), tmp_path / "cache")
    np.testing.assert_array_equal(values, expected(store, name))
    assert values.dtype == store.values(name).dtype
    assert isinstance(values, np.memmap)
    assert not values.flags.writeable


def test_a_second_opening_reads_nothing_from_the_store(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(selected(store), tmp_path / "cache")
    monkeypatch.setattr(SelectedFeature, "read_all", None)
    np.testing.assert_array_equal(build(selected(store), tmp_path / "cache"), first)


@pytest.mark.parametrize(
    "changed",
    [
        lambda store: SelectedFeature(store, "resnet18-map", (0, 2, 6), None),
        lambda store: SelectedFeature(store, "resnet18-map", (0, 5, 2), None),
        lambda store: SelectedFeature(store, "resnet18-map", STEPS, 2),
        lambda store: SelectedFeature(store, "vggish", STEPS, None),
    ],
    ids=["steps", "order of steps", "pooling", "feature"],
)
def test_another_selection_has_another_file(store: FeatureStore, tmp_path: Path, changed) -> None:
    assert changed(store).key != selected(store).key
    assert selected(open_store(store.path)).key == selected(store).key


def test_a_store_of_other_videos_or_values_has_other_files(store: FeatureStore, tmp_path: Path) -> None:
    build(selected(store), tmp_path / "cache")
    longer, other = make_store(videos=41), make_store(videos=40)
    other.arrays["resnet18-map"][7, 2] += 1
    for number, changed in enumerate((longer, other)):
        write_store(changed, tmp_path / f"{number}.zarr")
        opened = open_store(tmp_path / f"{number}.zarr")
        np.testing.assert_array_equal(build(selected(opened), tmp_path / "cache"), expected(opened))
    states = [file.state for file in list_cached(store, tmp_path / "cache")]
    assert sorted(states) == ["current", "outdated", "outdated"]


def _build_until(path: str, folder: Path, moment: str, reached: "multiprocessing.Event") -> None:  # type: ignore[valid-type]
    """Build a file, and stop at a moment: after its first block, when it is written, or before it gets its name."""
    feature = selected(open_store(path))
    read_all = feature.read_all

    def stop(*arguments: object) -> None:
        reached.set()
        time.sleep(60)

    def read_first(workers: int) -> Iterator[np.ndarray]:
        for block in read_all(workers):
            yield block[:1]
            stop()

    if moment == "first block":
        feature.read_all = read_first  # type: ignore[method-assign]
    else:
        setattr(*{"written": (os, "fsync"), "named": (Path, "replace")}[moment], stop)
    build(feature, folder)


@pytest.mark.parametrize("moment", ["first block", "written", "named"])
def test_after_a_killed_builder_the_next_one_builds_the_whole_file(
    store: FeatureStore, tmp_path: Path, moment: str
) -> None:
    context = multiprocessing.get_context("spawn")
    reached = context.Event()
    process = context.Process(target=_build_until, args=(store.path, tmp_path / "cache", moment, reached))
    process.start()
    assert reached.wait(60)
    (file,) = list_cached(store, tmp_path / "cache")
    assert file.state == "incomplete"
    with pytest.raises(UserError, match="is in use: a process is building a file of it, wait for it"):
        remove_cached([file], tmp_path / "cache")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    np.testing.assert_array_equal(build(selected(store), tmp_path / "cache"), expected(store))
    assert [file.state for file in list_cached(store, tmp_path / "cache")] == ["current"]


def test_two_builders_at_once_build_one_whole_file(store: FeatureStore, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        with filelock.FileLock(folder / ".lock"):
            results = [pool.apply_async(_build_and_sum, (store.path, folder)) for _ in range(2)]
            for result in results:
                result.wait(0.5)
            assert files_of(folder) == []
        sums, built = zip(*(result.get(60) for result in results), strict=True)
    assert set(sums) == {float(np.nansum(expected(store), dtype=np.float64))}
    assert sum(built) == 1


def _build_and_sum(path: str, folder: Path) -> tuple[float, bool]:
    """Return the sum of the values, and whether this process built the file."""
    built = []
    values = open_cached(selected(open_store(path)), folder, 1, built.append)
    return float(np.nansum(values, dtype=np.float64)), bool(built)


DAMAGES = {
    "empty": lambda content: b"",
    "part of the header": lambda content: content[:60],
    "some values": lambda content: content[:200],
    "all but a byte": lambda content: content[:-1],
    "broken header": lambda content: content.replace(b"{", b"(", 1),
    "other order": lambda content: content.replace(b"False", b"True ", 1),
    "another file": lambda content: b"PK" + content[2:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_built_again(store: FeatureStore, tmp_path: Path, damage: str) -> None:
    build(selected(store), tmp_path / "cache")
    (name,) = files_of(tmp_path / "cache")
    path = tmp_path / "cache" / name
    content = path.read_bytes()
    path.write_bytes(DAMAGES[damage](content))
    np.testing.assert_array_equal(build(selected(store), tmp_path / "cache"), expected(store))
    assert path.read_bytes() == content


def test_a_full_disk_leaves_no_file(store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="no space is left"):
        build(selected(store), tmp_path / "cache")
    assert files_of(tmp_path / "cache") == []


def test_a_disk_without_room_is_refused_before_writing(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_files, "free_bytes", lambda folder: 10)
    with pytest.raises(UserError, match=r"has 0.0 GB free, the .* of resnet18-map needs 0.0 GB: free some,"):
        build(selected(store), tmp_path / "cache")
    assert files_of(tmp_path / "cache") == []


@pytest.mark.parametrize("removed", ["folder", "file"])
def test_what_is_removed_while_it_is_built_is_an_error(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: str
) -> None:
    feature, folder = selected(store), tmp_path / "cache"

    def remove_folder(done: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    if removed == "file":
        replace = Path.replace
        monkeypatch.setattr(Path, "replace", lambda path, target: replace(path, target).unlink())
    with pytest.raises(UserError, match="removed while it was built"):
        open_cached(feature, folder, 0, remove_folder if removed == "folder" else lambda done: None)


def test_a_damaged_store_gives_no_file(store: FeatureStore, tmp_path: Path) -> None:
    for file in (tmp_path / "tiny.zarr" / "features" / "vggish" / "values").glob("c.*"):
        file.unlink()
    with pytest.raises(UserError, match="has missing values"):
        build(selected(store, "vggish"), tmp_path / "cache")
    assert files_of(tmp_path / "cache") == []


def test_the_folder_is_beside_the_store_or_in_another_folder(tmp_path: Path) -> None:
    assert cache_folder(str(tmp_path / "a.zarr")) == tmp_path / "a.zarr.cache"
    assert cache_folder("s3://bucket/a.zarr", tmp_path) == tmp_path / "a.zarr.cache"
    with pytest.raises(UserError, match=r"not on this machine: pass a folder .* \(--cache-dir\)"):
        cache_folder("s3://bucket/a.zarr")


def test_stores_that_share_a_folder_keep_their_files(store: FeatureStore, tmp_path: Path) -> None:
    write_store(make_store(videos=30), tmp_path / "other.zarr")
    opened = [store, open_store(tmp_path / "other.zarr")]
    for one in opened:
        FeatureBank(one, LoadingSettings("disk", folder=tmp_path / "shared")).rows("vggish", STEPS, None)
    states = [file.state for one in opened for file in list_cached(one, cache_folder(one.path, tmp_path / "shared"))]
    assert states == ["current", "current"]


def test_a_builder_can_use_the_space_of_the_partial_file_that_a_killed_one_left(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature, folder = selected(store), tmp_path / "cache"
    build(feature, folder)
    (name,) = files_of(folder)
    (folder / name).rename(folder / f"{name}.partial")
    monkeypatch.setattr(
        cache_files, "free_bytes", lambda place: feature.nbytes - 1 + (2 if files_of(folder) == [] else 0)
    )
    np.testing.assert_array_equal(build(feature, folder), expected(store))


def test_mapped_rows_are_mapped_again_in_another_process(store: FeatureStore, tmp_path: Path) -> None:
    bank = FeatureBank(store, LoadingSettings("disk", folder=tmp_path))
    rows = bank.rows("resnet18-map", STEPS, None)
    content = pickle.dumps(rows)
    assert len(content) < selected(store).nbytes / 10
    asked = np.array([30, 5, 30]), np.array([2, 0, 1])
    again = pickle.loads(content)  # noqa: S301
    assert torch.equal(again.gather(*asked), rows.gather(*asked))


def count_pages_in_memory(values: np.ndarray) -> int:
    """Return how many pages of mapped `values` are in memory; nothing is read."""
    start = values.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    length = values.ctypes.data + values.nbytes - start
    pages = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(length), pages) == 0
    return sum(page & 1 for page in pages)


def test_rows_that_are_not_in_memory_are_read_at_once(tmp_path: Path) -> None:
    values = np.arange(16 * 2**18, dtype=np.float32).reshape(4, 4, 2**18)  # rows of a megabyte
    np.save(tmp_path / "rows.npy", values)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    row = mapped[2, 1]
    with (tmp_path / "rows.npy").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if count_pages_in_memory(row):
        pytest.skip("the file system keeps the file in memory")
    rows = MappedRows(mapped, np.arange(4))
    rows._read_ahead(np.array([9]))
    deadline = time.monotonic() + 10
    while count_pages_in_memory(row) < 256 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert count_pages_in_memory(row) >= 256
    gathered = rows.gather(np.array([2, 0, 2]), np.array([3, 1, 3]))
    np.testing.assert_array_equal(gathered, values[[2, 0, 2], [3, 1, 3]])


def test_removed_files_stay_readable_where_they_are_mapped(store: FeatureStore, tmp_path: Path) -> None:
    values = build(selected(store), tmp_path / "cache")
    files = list_cached(store, tmp_path / "cache")
    assert remove_cached(files, tmp_path / "cache") == files[0].nbytes > values.nbytes
    np.testing.assert_array_equal(values, expected(store))
    assert list_cached(store, tmp_path / "cache") == []
    assert remove_cached([], tmp_path / "none") == 0


def test_auto_takes_memory_where_it_fits_else_the_disk(store: FeatureStore, tmp_path: Path) -> None:
    places: list[str] = []
    size = selected(store, "vggish").nbytes
    bank = FeatureBank(store, LoadingSettings(memory_bytes=size, folder=tmp_path / "cache"))
    bank.on_caching = lambda feature, place, done, total: places.append(f"{feature} {place.split(',')[0]} {done}")
    for name in FEATURES:
        bank.rows(name, STEPS, None)
    videos = len(selected(store).videos)
    assert [place for place in places if place.endswith((" 0", f" {videos}"))] == [
        *("vggish memory 0", f"vggish memory {len(selected(store, 'vggish').videos)}"),
        *("resnet18-map disk 0", f"resnet18-map disk {videos}"),
    ]
    with pytest.raises(UserError, match=r"needs .* GB are left for cached features: pass --cache disk, or a larger"):
        FeatureBank(store, LoadingSettings("memory", memory_bytes=size - 1)).rows("vggish", STEPS, None)


@pytest.mark.parametrize("cache", CACHES)
def test_a_feature_that_no_video_has_needs_no_file(tmp_path: Path, cache: str) -> None:
    silent = make_store(videos=20)
    silent.states["audio"][:] = State.ABSENT
    write_store(silent, tmp_path / "tiny.zarr")
    bank = FeatureBank(open_store(tmp_path / "tiny.zarr"), LoadingSettings(cache))
    assert bank.rows("vggish", STEPS, None).gather(np.array([], int), np.array([], int)).shape[0] == 0


def test_processes_share_the_memory() -> None:
    assert LoadingSettings(memory_bytes=100).shared_by(4).memory_bytes == 25
    alone, shared = (LoadingSettings("memory").shared_by(processes).memory_bytes for processes in (1, 4))
    assert alone is not None
    assert shared == pytest.approx(alone / 4, rel=0.1)


def test_large_features_are_not_decoded_by_each_of_several_processes() -> None:
    assert LoadingSettings(memory_bytes=10**12).shared_by(1).memory_bytes == 10**12
    assert LoadingSettings(memory_bytes=10**12).shared_by(2).memory_bytes == LARGEST_DECODED_AGAIN

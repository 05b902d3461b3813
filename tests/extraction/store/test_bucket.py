"""A store in a bucket of a real S3 server process: creation, resuming, reading, locks, failed requests."""

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import botocore.retryhandler
import paths
import pytest
import s3fs
from run_toys import contents, run_toys
from s3_process import BUCKET, S3, s3
from writing import writing

from pipeline.errors import UserError
from pipeline.inspection.verify import summarise_store, verify_store
from pipeline.store.location import locate
from pipeline.store.reader import open_store
from pipeline.store.schema import FeatureSpec

DRIVER = paths.EXTRACTION / "run_toys.py"


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3() as started, pytest.MonkeyPatch.context() as patch:
        for name, value in started.environment.items():
            patch.setenv(name, value)
        # The client retries without waiting for up to a second before.
        patch.setattr(botocore.retryhandler, "delay_exponential", lambda base, growth_factor, attempts: 0)
        s3fs.S3FileSystem.clear_instance_cache()
        yield started


@pytest.fixture(scope="module")
def local(toy_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("local") / "store.zarr"
    run_toys(toy_manifest, store)
    return store


def stored(url: str) -> dict[str, str]:
    """Return {key: digest} of every object of a store, except its lock."""
    files = s3fs.S3FileSystem(use_listings_cache=False)
    prefix = url.removeprefix("s3://") + "/"
    return {name.removeprefix(prefix): hashlib.sha256(files.cat_file(name)).hexdigest() for name in files.find(prefix)}


def put_folder(files: s3fs.S3FileSystem, key: str) -> None:
    """Put an empty object whose key ends in a slash, as bucket consoles do to create a folder."""
    files.call_s3("put_object", Bucket=BUCKET, Key=key, Body=b"")


def has_lock(url: str) -> bool:
    return bool(s3fs.S3FileSystem(use_listings_cache=False).exists(f"{url}.lock"))


def test_a_store_in_a_bucket_equals_one_in_a_folder_even_if_every_ninth_request_fails(
    toy_manifest: Path, local: Path, server: S3
) -> None:
    url = f"s3://{BUCKET}/store.zarr"
    server.set_proxy(fail_every=9)
    assert run_toys(toy_manifest, url).is_complete
    assert server.set_proxy(fail_every=0) > 5
    assert stored(url) == contents(local)
    assert not has_lock(url)
    assert run_toys(toy_manifest, url).extracted == 0
    opened = open_store(url)
    assert verify_store(opened) == []
    assert summarise_store(opened) == summarise_store(open_store(local))


@pytest.mark.nightly
def test_a_lost_connection_is_a_one_line_error_and_the_next_run_ends_in_the_same_bytes(
    toy_manifest: Path, local: Path, server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{BUCKET}/lost.zarr"
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    s3fs.S3FileSystem.clear_instance_cache()
    server.set_proxy(die_after=150)
    with pytest.raises(UserError, match=r"object store s3://bucket/lost.zarr: .* run again to resume"):
        run_toys(toy_manifest, url)
    assert server.has_proxy_died()
    server.start_proxy()
    assert 0 < len(stored(url)) < len(contents(local))
    assert run_toys(toy_manifest, url, break_lock=True).is_complete
    assert stored(url) == contents(local)


@pytest.mark.nightly
def test_the_lock_of_a_killed_run_refuses_the_next_one_until_it_is_broken(
    toy_manifest: Path, local: Path, server: S3
) -> None:
    url = f"s3://{BUCKET}/killed.zarr"
    arguments = [str(toy_manifest), url, "values", "after", "5"]
    killed = subprocess.run([sys.executable, str(DRIVER), *arguments], cwd=paths.ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(UserError, match=r"process \d+ of .* holds s3://bucket/killed.zarr.lock\).*--break-lock"):
        run_toys(toy_manifest, url)
    assert run_toys(toy_manifest, url, break_lock=True).is_complete
    assert stored(url) == contents(local)
    assert not has_lock(url)


def test_a_second_writer_and_a_server_that_ignores_conditions_are_refused(server: S3) -> None:
    url = f"s3://{BUCKET}/two.zarr"
    with writing(url, 5):
        with pytest.raises(UserError, match="is being written by another run"), writing(url, 5):
            pass
        assert has_lock(url)
    assert not has_lock(url)
    server.set_proxy(ignore_conditions=1)
    with pytest.raises(UserError, match="the server ignores 'If-None-Match'"), writing(url, 5):
        pass
    server.set_proxy(ignore_conditions=0)
    assert not has_lock(url)


def test_a_lock_created_without_confirmation_is_recognised_as_own(server: S3) -> None:
    url = f"s3://{BUCKET}/unconfirmed.zarr"
    server.set_proxy(lose_writes=1)
    with writing(url, 5):
        assert has_lock(url)
    assert not has_lock(url)


def test_a_writer_whose_lock_was_broken_does_not_delete_the_new_lock(server: S3) -> None:
    url = f"s3://{BUCKET}/broken.zarr"
    with writing(url, 5):
        other = writing(url, 5, break_lock=True)
        other.__enter__()
    assert has_lock(url)
    other.__exit__(None, None, None)
    assert not has_lock(url)


def test_break_lock_without_a_lock_is_allowed(server: S3) -> None:
    url = f"s3://{BUCKET}/free.zarr"
    with writing(url, 5, break_lock=True):
        assert has_lock(url)
    assert not has_lock(url)


def test_objects_written_by_others_are_listed_at_once(server: S3) -> None:
    location, another = locate(f"s3://{BUCKET}/shared.zarr"), s3fs.S3FileSystem(skip_instance_cache=True)
    for names in ({"a"}, {"a", "b"}):
        for name in names:
            another.pipe_file(f"{location.address}/{name}", b"x")
        assert location.names() == names


def test_an_incomplete_feature_is_removed_and_foreign_objects_are_kept(server: S3) -> None:
    url, files = f"s3://{BUCKET}/incomplete.zarr", s3fs.S3FileSystem(use_listings_cache=False)
    put_folder(files, "incomplete.zarr/")
    with writing(url, 5) as writer:
        writer.append_videos(["a"])
        writer.add_spec(FeatureSpec("loudness", "audio", ("channel",), (3,), "float32", {}))
    for foreign in ("Thumbs.db", "notes/mine.txt"):
        files.pipe_file(f"{url}/features/{foreign}", b"")
    before = stored(url)
    complete, incomplete = f"{url}/features/loudness", f"{url}/features/incomplete"
    metadata = files.cat_file(f"{complete}/zarr.json")
    files.pipe_file(f"{incomplete}/values/zarr.json", files.cat_file(f"{complete}/values/zarr.json"))
    files.pipe_file(f"{incomplete}/zarr.json", json.dumps(json.loads(metadata) | {"attributes": {}}).encode())
    with writing(url, 5) as writer:
        assert writer.feature_names() == ["loudness"]
    assert stored(url) == before


def test_a_program_that_read_a_bucket_ends_without_output(server: S3) -> None:
    with writing(f"s3://{BUCKET}/read.zarr", 5):
        pass
    program = f"from pipeline.store.reader import open_store; open_store('s3://{BUCKET}/read.zarr')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=paths.ROOT)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_missing_stores_and_invalid_urls_are_one_line_errors(server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no feature store at s3://bucket/none.zarr"):
        open_store(f"s3://{BUCKET}/none.zarr")
    with pytest.raises(UserError, match="bucket does not exist"), writing("s3://no-such/none.zarr", 5):
        pass
    for invalid in ("gs://bucket/a.zarr", "s3://bucket", "s3:///a.zarr"):
        with pytest.raises(UserError, match=r"use a path or a URL such as s3://bucket/name.zarr"):
            locate(invalid)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"pip install 'mavqa\[s3\]'"):
        locate(f"s3://{BUCKET}/a.zarr")

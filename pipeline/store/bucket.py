"""A feature store in a bucket, through s3fs, which finds credentials, region and endpoint as AWS's own clients do.

Guarantees of a bucket: an object is written completely or not at all and is read as last written, so that there are no
staging names and no partial objects. Only one writer can create the lock object if the server honours `If-None-Match`.
Limits: the lock of a killed writer remains (`--break-lock`), and no lock stops a worker that outlives its run.
The client retries failed requests; a request that still fails ends the run, and the next run resumes from the store.
"""

import atexit
import json
import os
import platform
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import zarr

from pipeline.errors import UserError, one_line

# Listings are not cached, because other writers and workers change them.
_OPTIONS = {"use_listings_cache": False}

_closed_at_exit: set[Any] = set()


class Bucket:
    """A store under a prefix of a bucket, `s3://bucket/name.zarr`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = f"{url}.lock"
        try:
            import s3fs
        except ModuleNotFoundError:
            raise UserError(f"store {url} needs the object-store client: pip install 'mavqa[s3]'") from None
        self._client = s3fs.S3FileSystem

    @property
    def address(self) -> str:
        """The URL."""
        return self._url

    @cached_property
    def _files(self) -> Any:
        return self._client(**_OPTIONS)

    def zarr_store(self) -> Any:
        """Return the zarr store of the prefix."""
        files = self._client(asynchronous=True, **_OPTIONS)
        if files not in _closed_at_exit:
            _closed_at_exit.add(files)
            atexit.register(_close_session, files)
        return _BucketStore(files, path=self._url.removeprefix("s3://"))

    def names(self, path: str = "") -> set[str]:
        """Return the names of the objects and prefixes directly under `path`, without a console's folder marker."""
        prefix = f"{self._url}/{path}".rstrip("/")
        with _reporting_failures(self._url):
            try:
                found = self._files.ls(prefix, detail=False)
            except FileNotFoundError:
                return set()
        return {name.rpartition("/")[2] for name in found} - {""}

    def read(self, path: str) -> bytes:
        """Return the content of the object at `path`."""
        with _reporting_failures(self._url):
            return bytes(self._files.cat_file(f"{self._url}/{path}"))

    def bytes_stored(self, path: str) -> int:
        """Return the size of all objects under `path`, in bytes."""
        with _reporting_failures(self._url):
            return int(self._files.du(f"{self._url}/{path}"))

    @contextmanager
    def hold(self, break_lock: bool) -> Iterator[bool]:
        """Create the lock object next to the store and delete it at the end; that of a killed writer remains.

        Yields True: a store that cannot be written is refused.

        Raises `UserError` if another writer holds the lock, or if the server ignores `If-None-Match`.
        """
        owner = {"host": platform.node(), "process": os.getpid(), "id": uuid.uuid4().hex}
        mine = json.dumps(owner).encode()
        with _reporting_failures(self._url):
            if break_lock:
                self._files.rm_file(self._lock)
            # After a lost answer the client creates the object again: the lock that exists may be ours.
            if not self._create_lock(mine) and (found := self._files.cat_file(self._lock)) != mine:
                other = json.loads(found)
                raise UserError(
                    f"store {self._url} is being written by another run (process {other['process']} of "
                    f"{other['host']} holds {self._lock}): wait for it, or, if it was killed, pass --break-lock"
                )
            if self._create_lock(mine):
                self._files.rm_file(self._lock)
                raise UserError(
                    f"store {self._url}: the server ignores 'If-None-Match', so two runs could write at the same time: "
                    "write to a folder and copy it there, or use a server that honours it"
                )
        try:
            yield True
        finally:
            with _reporting_failures(self._url):
                if self._files.cat_file(self._lock) == mine:
                    self._files.rm_file(self._lock)

    def _create_lock(self, content: bytes) -> bool:
        try:
            self._files.pipe_file(self._lock, content, mode="create")
        except FileExistsError:
            return False
        return True


def _close_session(files: Any) -> None:
    """Close the connections of zarr's event loop while the loop still runs; s3fs closes only those of its own."""
    from zarr.core.sync import sync

    if files._s3 is not None:
        sync(files._s3.close())


class _BucketStore(zarr.storage.FsspecStore):
    """The zarr store of a bucket; a failed request is a one-line `UserError`, a missing object is not a failure."""

    async def get(self, *arguments: Any, **keywords: Any) -> Any:
        with _reporting_failures(self.path):
            return await super().get(*arguments, **keywords)

    async def get_partial_values(self, *arguments: Any, **keywords: Any) -> Any:
        with _reporting_failures(self.path):
            return await super().get_partial_values(*arguments, **keywords)

    async def exists(self, key: str) -> Any:
        with _reporting_failures(self.path):
            return await super().exists(key)

    async def set(self, *arguments: Any, **keywords: Any) -> None:
        with _reporting_failures(self.path):
            await super().set(*arguments, **keywords)

    async def delete(self, key: str) -> None:
        with _reporting_failures(self.path):
            await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        with _reporting_failures(self.path):
            await super().delete_dir(prefix)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        with _reporting_failures(self.path):
            async for name in super().list_dir(prefix):
                yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        with _reporting_failures(self.path):
            async for key in super().list_prefix(prefix):
                yield key


@contextmanager
def _reporting_failures(where: str) -> Iterator[None]:
    """Raise a `UserError` for a request inside the block that still fails after the client's retries."""
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except (OSError, TimeoutError, ClientError, BotoCoreError) as error:
        raise UserError(
            f"object store s3://{where.removeprefix('s3://')}: {one_line(error)}. Check the bucket, the endpoint "
            "(AWS_ENDPOINT_URL) and the credentials, and run again to resume"
        ) from None

"""The media files of a folder: their paths and SHA-256; and the files that are left out, with the reasons.

Media are recognised by their suffix, files with another suffix by their first bytes.
"""

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pipeline.errors import UserError
from pipeline.files import LARGEST_FILE_BYTES
from pipeline.manifests.findings import Finding
from pipeline.manifests.media_names import check_name, split_suffix
from pipeline.manifests.near_names import NearNames
from pipeline.manifests.signatures import HEAD_BYTES, is_media

# The kinds of files that are left out as expected. Other kinds are media that cannot be used.
HARMLESS = ("not media", "hidden", "repeated folder")
HASHING_THREADS = 4

Progress = Callable[[int, int], None]
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Listing:
    """The media files of a folder: sorted paths relative to it, and what is left out."""

    paths: list[str]
    skipped: list[Finding]


def list_media(folder: Path) -> Listing:
    """Return the media files in `folder` and its subfolders, and what is left out.

    Links to folders are followed, each folder once. Raises `UserError` if the folder is missing or contains no media
    that can be used.
    """
    if not folder.is_dir():
        raise UserError(f"videos folder {str(folder)!r} does not exist: pass the folder of the videos")
    paths: list[str] = []
    skipped: list[Finding] = []
    for entry in _walk(folder):
        if isinstance(entry, Finding):
            skipped.append(entry)
        else:
            paths.append(entry)
    links = {path: _describe_link(folder, path, place) for path, place in _links_out(folder, paths)}
    skipped += [Finding("link out of the folder", path, message) for path, message in links.items()]
    paths = [path for path in paths if path not in links]
    refuse_unusable(folder, paths, skipped)
    return Listing(sorted(paths), skipped)


def refuse_unusable(folder: Path, paths: Collection[str], skipped: Iterable[Finding]) -> None:
    """Raise `UserError` if `paths` is empty, with the first reason why media of `folder` were left out."""
    if paths:
        return
    unusable = [finding for finding in skipped if finding.kind not in HARMLESS]
    if not unusable:
        raise UserError(f"videos folder {str(folder)!r} contains no videos (.mp4, .mkv, .webm, ...): pass another")
    more = f" (and {len(unusable) - 1:,} more)" if len(unusable) > 1 else ""
    raise UserError(f"videos folder {str(folder)!r} contains no videos that can be used: {unusable[0].message}{more}")


def refuse_links_out(folder: Path, paths: Iterable[str]) -> None:
    """Raise `UserError` for the first of `paths`, relative to `folder`, that symbolic links lead out of `folder`.

    `folder` itself may be a link. Files need not exist: a broken link is refused if it leads out.
    """
    for path, place in _links_out(folder, paths):
        raise UserError(_describe_link(folder, path, place))


def _links_out(folder: Path, paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each of `paths` that symbolic links lead out of `folder`, and where to."""
    root = os.path.realpath(folder)
    known: dict[str, str] = {}
    for path in paths:
        parent = os.path.dirname(path)
        real = known.get(parent)
        if real is None:
            real = known[parent] = os.path.realpath(os.path.join(root, parent))
        place = os.path.join(real, os.path.basename(path))
        if os.path.islink(place):
            place = os.path.realpath(place)
        if os.path.commonpath((root, place)) != root:
            yield path, place


def _describe_link(folder: Path, path: str, place: str) -> str:
    return (
        f"video {path!r} in {str(folder)!r} is a link out of that folder, to {place!r}: replace it with the file, or "
        "pass the folder that contains the file"
    )


class MediaIndex:
    """An index of the media files of one folder by path, path without suffix, file name and stem."""

    def __init__(self, folder: Path) -> None:
        """List the media files of `folder`."""
        self.folder = folder
        listing = list_media(folder)
        self.unusable = [finding for finding in listing.skipped if finding.kind not in HARMLESS]
        self._by_key: dict[str, list[str]] = defaultdict(list)
        for path in listing.paths:
            stem = split_suffix(path)[0]
            for key in {path, stem, PurePosixPath(path).name, PurePosixPath(stem).name}:
                self._by_key[key].append(path)

    def find(self, name: str) -> str | None:
        """Return the relative path of the video `name`, None if it is missing; raise `UserError` if several match."""
        found = self._by_key.get(name, [])
        if name in found:
            return name
        if len(found) > 1:
            raise UserError(
                f"video {name!r} is ambiguous in {str(self.folder)!r} ({' or '.join(found)}): use its path there"
            )
        return found[0] if found else None

    def describe_near(self, names: Collection[str]) -> str:
        """Return how many of the missing `names` nearly equal the name of a file, and the first; "" if none does."""
        known = NearNames(self._by_key if names else ())
        near = [(name, *found) for name in names if (found := known.find(name))]
        if not near:
            return ""
        name, key, difference = near[0]
        path = self._by_key[key][0]
        return f"{len(near):,} nearly match a file: {name!r} and {path!r} differ in {difference}"


def hash_files(
    folder: Path, paths: Iterable[str], progress: Progress | None = None
) -> tuple[dict[str, str], list[Finding]]:
    """Return {path: SHA-256} of the files at `paths` in `folder`, and those that cannot be read.

    Files of more than `LARGEST_FILE_BYTES` are not hashed: their SHA-256 is "". `progress` is called with (files done,
    files in all).
    """
    paths = list(paths)
    digests: dict[str, str] = {}
    unreadable: list[Finding] = []
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        hashed = threads.map(lambda path: _read(folder, path, _digest), paths)
        for path, outcome in zip(paths, hashed, strict=True):
            if isinstance(outcome, Finding):
                unreadable.append(outcome)
            else:
                digests[path] = outcome
            if progress:
                progress(len(digests) + len(unreadable), len(paths))
    return digests, unreadable


def describe_unhashed(digests: dict[str, str]) -> tuple[str, ...]:
    """Return the note on files that `hash_files` did not hash; empty if there are none."""
    large = [path for path, digest in digests.items() if not digest]
    if not large:
        return ()
    size = f"{LARGEST_FILE_BYTES / 1e9:g} GB"
    return (f"{len(large)} files have more than {size} and were not hashed (first: {large[0]!r})",)


def _digest(file: BufferedReader) -> str:
    if os.fstat(file.fileno()).st_size > LARGEST_FILE_BYTES:
        return ""
    return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: Path, path: str, read: Callable[[BufferedReader], Outcome]) -> Outcome | Finding:
    """Return `read(file)` of an open file, or why the file cannot be read.

    Pipes and devices are not opened, because they may have no end.
    """
    place = os.path.join(folder, path)
    try:
        if not stat.S_ISREG(os.stat(place).st_mode):
            message = f"file {place!r} is not a regular file (a pipe or a device, say): remove it"
            return Finding("not a regular file", path, message)
        with open(place, "rb") as file:
            return read(file)
    except OSError as error:
        why = error.strerror
        if os.path.islink(place) and not os.path.exists(place):
            why = f"it is a link to {os.readlink(place)!r}, which does not exist"
        return Finding("unreadable", path, f"file {place!r} cannot be read ({why}): fix or remove it")


def _walk(folder: Path) -> Iterator[str | Finding]:
    """Yield the path of each media file, and what is left out."""
    unreadable: list[OSError] = []
    seen: set[str] = set()
    for current, folders, files in os.walk(folder, followlinks=True, onerror=unreadable.append):
        inside = PurePosixPath(Path(current).relative_to(folder).as_posix())
        real = os.path.realpath(current)
        if real in seen:
            folders.clear()
            yield Finding("repeated folder", str(inside), f"folder {str(inside)!r} is listed under another name")
            continue
        seen.add(real)
        for name in (*folders, *files):
            if name.startswith("."):
                yield Finding("hidden", str(inside / name), f"{str(inside / name)!r} is hidden")
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (_recognise(folder, str(inside / name)) for name in files if not name.startswith("."))
    for error in unreadable:
        path = os.path.relpath(error.filename, folder)
        message = f"folder {error.filename!r} cannot be read ({error.strerror}): fix or remove it"
        yield Finding("unreadable", path, message)


def _recognise(folder: Path, path: str) -> str | Finding:
    """Return `path` if it is a media file that can be used, else why it is left out."""
    if not split_suffix(path)[1]:
        head = _read(folder, path, lambda file: file.read(HEAD_BYTES))
        if isinstance(head, Finding) and head.kind == "unreadable":
            return head
        if isinstance(head, Finding) or not is_media(head):
            return Finding("not media", path, f"{path!r} has neither a suffix nor a signature of media")
    try:
        return check_name(path)
    except UserError as error:
        return Finding("invalid name", path, str(error))

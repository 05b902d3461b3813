"""The media files of a folder: which files count, which ids they get, where an id's file is, their SHA-256.

It opens no media (that is `pipeline.media.decoders`) and judges only by the file name's suffix.
"""

import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError
from pipeline.manifests.manifest import check_video_id

MEDIA_SUFFIXES = frozenset(
    (
        *(".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4"),
        *(".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".webm", ".wmv"),
        *(".aac", ".ac3", ".aif", ".aiff", ".au", ".flac", ".m4a", ".mka", ".mp2", ".mp3", ".oga", ".ogg"),
        *(".opus", ".wav", ".wma"),
    )
)
HASHING_THREADS = 4

Progress = Callable[[int, int], None]


def split_suffix(path: str) -> tuple[str, str]:
    """Return `path` as (what stands before its media suffix, that suffix); "" where it has none."""
    suffix = PurePosixPath(path).suffix
    if suffix.lower() in MEDIA_SUFFIXES:
        return path.removesuffix(suffix), suffix
    return path, ""


def check_text(path: str) -> str:
    """Return `path`, or raise `UserError` where it cannot stand in a manifest, as text that people read."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"video {path!a} has a name that is not UTF-8: rename the file") from None
    if any(unicodedata.category(character) == "Cc" for character in path):
        raise UserError(f"video {path!r} has a control character in its name: rename the file")
    return path


def list_media(folder: Path) -> list[str]:
    """Return the paths, relative to `folder`, of the media files in it and below, sorted.

    Hidden names are left out; links to folders in it are followed, each folder once. Raises `UserError` where the
    folder is missing or holds no media, where a link leads out of it, or where a name cannot stand in a manifest.
    """
    if not folder.is_dir():
        raise UserError(f"videos folder {str(folder)!r} is not there: name the folder that holds the videos")
    paths = sorted(_walk(folder))
    if not paths:
        raise UserError(f"videos folder {str(folder)!r} holds no videos (.mp4, .mkv, .webm, ...): name another")
    refuse_links_out(folder, paths)
    return paths


def refuse_links_out(folder: Path, paths: Iterable[str]) -> None:
    """Raise `UserError` for the first of `paths` in `folder` that links lead out of it; it may be a link itself.

    A file that is not there is no link: what it is to be, others say.
    """
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
            raise UserError(
                f"video {path!r} in {str(folder)!r} is a link out of that folder, to {place!r}: put the file itself "
                "there, or name the folder that it lies in"
            )


def name_videos(paths: Iterable[str]) -> dict[str, str]:
    """Return {path: video id}: the path without suffix, `/` as `__`; where two would clash the suffix stays.

    Raises `UserError` where they clash even so, or where an id is not a plain name.
    """
    paths = list(dict.fromkeys(paths))
    short = {path: split_suffix(path)[0].replace("/", "__") for path in paths}
    shared = Counter(short.values())
    ids = {path: short[path] if shared[short[path]] == 1 else path.replace("/", "__") for path in paths}
    owners: dict[str, str] = {}
    for path, video_id in ids.items():
        owner = owners.setdefault(check_video_id(video_id), path)
        if owner != path:
            raise UserError(f"videos {owner!r} and {path!r} would both be called {video_id!r}: rename one")
    return ids


class MediaIndex:
    """The media files of one folder, found by path, by path without suffix, by file name or by stem."""

    def __init__(self, folder: Path) -> None:
        """List the media of `folder` once."""
        self.folder = folder
        self._paths = list_media(folder)
        self._by_key: dict[str, list[str]] = defaultdict(list)
        for path in self._paths:
            stem = split_suffix(path)[0]
            for key in {path, stem, PurePosixPath(path).name, PurePosixPath(stem).name}:
                self._by_key[key].append(path)

    def find(self, name: str) -> str | None:
        """Return the relative path of the video `name`, or None; raise `UserError` where several fit."""
        found = self._by_key.get(name, [])
        if name in found:
            return name
        if len(found) > 1:
            where = str(self.folder)
            raise UserError(f"video {name!r} could be {' or '.join(found)} in {where!r}: name its whole path")
        return found[0] if found else None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal; raise `UserError` where it cannot be read.

    A pipe or a device is not even opened: it may have no end.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"file {str(path)!r} is no plain file (but a pipe or a device, say): remove it")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"file {str(path)!r} cannot be read ({error.strerror}): mend or remove it") from None


def hash_files(folder: Path, paths: Iterable[str], progress: Progress | None = None) -> dict[str, str]:
    """Return {path: SHA-256} of the files at `paths` in `folder`; `progress` hears (files done, in all)."""
    paths = list(paths)
    digests: dict[str, str] = {}
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        hashed = threads.map(sha256_of, (folder / path for path in paths))
        for path, digest in zip(paths, hashed, strict=True):
            digests[path] = digest
            if progress:
                progress(len(digests), len(paths))
    return digests


def _walk(folder: Path) -> Iterable[str]:
    seen: set[str] = set()
    for current, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(current)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and split_suffix(name)[1]:
                yield check_text(str(PurePosixPath(Path(current).relative_to(folder).as_posix()) / name))

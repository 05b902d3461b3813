"""The media files of a folder: their paths, video ids and SHA-256. Media are recognised by their suffix alone."""

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
    """Return (`path` without its media suffix, the suffix); the suffix is "" if there is none."""
    suffix = PurePosixPath(path).suffix
    if suffix.lower() in MEDIA_SUFFIXES:
        return path.removesuffix(suffix), suffix
    return path, ""


def check_text(path: str) -> str:
    """Return `path`; raise `UserError` if it is not UTF-8 or contains control characters."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"video {path!a} has a name that is not UTF-8: rename the file") from None
    if any(unicodedata.category(character) == "Cc" for character in path):
        raise UserError(f"video {path!r} has a control character in its name: rename the file")
    return path


def list_media(folder: Path) -> list[str]:
    """Return the sorted paths, relative to `folder`, of the media files in it and its subfolders.

    Hidden files are ignored; links to folders are followed, each folder once. Raises `UserError` if the folder is
    missing or contains no media, if a link leads out of it, or if a name is not UTF-8 or has control characters.
    """
    if not folder.is_dir():
        raise UserError(f"videos folder {str(folder)!r} does not exist: pass the folder of the videos")
    paths = sorted(_walk(folder))
    if not paths:
        raise UserError(f"videos folder {str(folder)!r} contains no videos (.mp4, .mkv, .webm, ...): pass another")
    refuse_links_out(folder, paths)
    return paths


def refuse_links_out(folder: Path, paths: Iterable[str]) -> None:
    """Raise `UserError` for the first of `paths`, relative to `folder`, that symbolic links lead out of `folder`.

    `folder` itself may be a link. Files need not exist: a broken link is refused if it leads out.
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
                f"video {path!r} in {str(folder)!r} is a link out of that folder, to {place!r}: replace it with "
                "the file, or pass the folder that contains the file"
            )


def name_videos(paths: Iterable[str]) -> dict[str, str]:
    """Return {path: video id}: the path without suffix, `/` replaced by `__`; ids that would clash keep the suffix.

    Raises `UserError` if ids clash even with their suffixes, or if an id is not a plain name.
    """
    paths = list(dict.fromkeys(paths))
    short = {path: split_suffix(path)[0].replace("/", "__") for path in paths}
    counts = Counter(short.values())
    ids = {path: short[path] if counts[short[path]] == 1 else path.replace("/", "__") for path in paths}
    owners: dict[str, str] = {}
    for path, video_id in ids.items():
        owner = owners.setdefault(check_video_id(video_id), path)
        if owner != path:
            raise UserError(f"videos {owner!r} and {path!r} would both get the id {video_id!r}: rename one")
    return ids


class MediaIndex:
    """An index of the media files of one folder by path, path without suffix, file name and stem."""

    def __init__(self, folder: Path) -> None:
        """List the media files of `folder`."""
        self.folder = folder
        self._paths = list_media(folder)
        self._by_key: dict[str, list[str]] = defaultdict(list)
        for path in self._paths:
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


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal; raise `UserError` if it cannot be read.

    Pipes and devices are not opened, because they may have no end.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"file {str(path)!r} is not a regular file (a pipe or a device, say): remove it")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"file {str(path)!r} cannot be read ({error.strerror}): fix or remove it") from None


def hash_files(folder: Path, paths: Iterable[str], progress: Progress | None = None) -> dict[str, str]:
    """Return {path: SHA-256} of the files at `paths` in `folder`; `progress` is called with (files done, in all)."""
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

"""The names of media files: their suffixes, the characters that they may contain, and the video ids made of them."""

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

from pipeline.errors import UserError
from pipeline.files import describe_odd_character
from pipeline.manifests.findings import Finding
from pipeline.manifests.manifest import check_video_id

MEDIA_SUFFIXES = frozenset(
    (
        *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".m1v", ".m2t", ".m2ts", ".m2v"),
        *(".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".qt"),
        *(".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv"),
        *(".aac", ".ac3", ".aif", ".aiff", ".amr", ".ape", ".au", ".caf", ".dts", ".eac3", ".flac", ".m4a", ".m4b"),
        *(".mka", ".mp2", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav", ".weba", ".wma", ".wv"),
    )
)


def split_suffix(path: str) -> tuple[str, str]:
    """Return (`path` without its media suffix, the suffix); the suffix is "" if there is none."""
    suffix = PurePosixPath(path).suffix
    if suffix.lower() in MEDIA_SUFFIXES:
        return path.removesuffix(suffix), suffix
    return path, ""


def check_name(path: str) -> str:
    """Return `path`; raise `UserError` if it is not UTF-8 or contains a backslash or a control character."""
    if odd := describe_odd_character(path.replace("/", "")):
        raise UserError(f"video {path!r} has {odd} in its name: rename the file")
    return path


def name_videos(paths: Iterable[str]) -> tuple[dict[str, str], list[Finding]]:
    """Return {path: video id}, and the paths that are left out because their id is that of an earlier one.

    An id is the path without suffix, `/` replaced by `__`; ids that would clash keep the suffix. Raises `UserError` if
    an id is not a plain name.
    """
    paths = list(dict.fromkeys(paths))
    short = {path: split_suffix(path)[0].replace("/", "__") for path in paths}
    counts = Counter(short.values())
    ids = {path: short[path] if counts[short[path]] == 1 else path.replace("/", "__") for path in paths}
    owners: dict[str, str] = {}
    repeated = []
    for path, video_id in ids.items():
        owner = owners.setdefault(check_video_id(video_id), path)
        if owner != path:
            message = f"videos {owner!r} and {path!r} would both get the id {video_id!r}: rename one"
            repeated.append(Finding("repeated id", path, message))
    return {path: video_id for video_id, path in owners.items()}, repeated

"""Where manifests come from: one file per dataset release, and this table of them.

A source reads its own files as they are published and returns a `Built`; it writes nothing.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.failure import UserError
from pipeline.manifest import Manifest, Video
from pipeline.media_files import MediaIndex, Progress, hash_files

SOURCES = {
    # Li et al., CVPR 2022; v2: Liu et al., "Tackling Data Bias in MUSIC-AVQA", WACV 2024
    "music-avqa": "pipeline.annotations.music_avqa:build",
    # anyone's questions, as CSV
    "table": "pipeline.annotations.table:build",
    # anyone's videos, without questions
    "folder": "pipeline.annotations.folder:build",
}


@dataclass(frozen=True)
class Built:
    """A manifest and what its user should know: `counts` of odd records, and `notes`, one sentence each."""

    manifest: Manifest
    counts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_source(name: str) -> Callable[..., Built]:
    """Return the builder called `name` in `SOURCES`."""
    module, _, function = SOURCES[name].partition(":")
    builder: Callable[..., Built] = getattr(importlib.import_module(module), function)
    return builder


def locate_videos(
    names: dict[str, str], folder: Path, progress: Progress | None = None
) -> tuple[tuple[Video, ...], tuple[str, ...]]:
    """Return the videos of {id: name to look up}, path and SHA-256 as found in `folder`, and the missing ids.

    A missing video keeps `<id>.mp4` as its path and no SHA-256. Raises `UserError` where not one is found.
    """
    index = MediaIndex(folder)
    found = {video_id: path for video_id, name in names.items() if (path := index.find(name))}
    if names and not found:
        example = next(iter(names.values()))
        raise UserError(f"none of the {len(names)} videos (first: {example!r}) is in {str(folder)!r}: name another")
    digests = hash_files(folder, dict.fromkeys(found.values()), progress)
    videos = (
        Video(video_id, found[video_id], digests[found[video_id]]) if video_id in found else unseen(video_id)
        for video_id in names
    )
    return tuple(videos), tuple(video_id for video_id in names if video_id not in found)


def unseen(video_id: str) -> Video:
    """Return the video of a file that was not looked for: where it will be expected, no SHA-256."""
    return Video(video_id, f"{video_id}.mp4")


def describe_missing(missing: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    """Return the sentence that says which videos were not found, or nothing."""
    if not missing:
        return ()
    return (f"{len(missing)} videos are not in {str(folder)!r} (first: {missing[0]!r})",)

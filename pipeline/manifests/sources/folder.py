"""A folder of videos without questions -> manifest."""

from pathlib import Path

from pipeline.manifests.manifest import Manifest, Video
from pipeline.manifests.media_files import Progress, hash_files, list_media, name_videos
from pipeline.manifests.sources.interface import Built, Option, Source


def build(name: str, videos: Path, progress: Progress | None = None) -> Built:
    """Return the manifest of all media files in the folder `videos` and its subfolders, with their SHA-256.

    A video id is the relative path without suffix, `/` replaced by `__`; ids that would clash keep the suffix.
    Raises `UserError` if the folder is missing or contains no media.
    """
    paths = list_media(videos)
    ids = name_videos(paths)
    digests = hash_files(videos, paths, progress)
    found = tuple(Video(ids[path], path, digests[path]) for path in paths)
    return Built(Manifest(name=name, release="folder", licence="unknown", videos=found))


SOURCE = Source(
    build,
    (Option("videos", "Folder of the videos, searched with its subfolders.", "folder", is_required=True),),
    """Build the manifest of a folder of videos, without questions.

    \b
    Example:
      mavqa-manifest build folder --videos clips --out data_manifests/clips
    """,
)

"""A folder of videos without questions -> manifest. Which files are media, `pipeline.manifests.media_files` says."""

from pathlib import Path

from pipeline.manifests.manifest import Manifest, Video
from pipeline.manifests.media_files import Progress, hash_files, list_media, name_videos
from pipeline.manifests.sources.interface import Built, Option, Source


def build(name: str, videos: Path, progress: Progress | None = None) -> Built:
    """Return the manifest of every media file in the folder `videos` and below, with its SHA-256.

    A video id is the relative path without suffix, `/` as `__`; where two would clash the suffix stays.
    Raises `UserError` for a folder that is missing or holds no media.
    """
    paths = list_media(videos)
    ids = name_videos(paths)
    digests = hash_files(videos, paths, progress)
    found = tuple(Video(ids[path], path, digests[path]) for path in paths)
    return Built(Manifest(name=name, release="folder", licence="unknown", videos=found))


SOURCE = Source(
    build,
    (Option("videos", "Folder of the videos, searched with all folders below.", "folder", is_required=True),),
    """Build a manifest of a folder of videos without questions, to extract features from.

    \b
    Example:
      mavqa-manifest build folder --videos clips --out data_manifests/clips
    """,
)

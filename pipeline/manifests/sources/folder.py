"""A folder of videos without questions -> manifest."""

from pathlib import Path

from pipeline.manifests.manifest import Manifest, Video
from pipeline.manifests.media_files import (
    Progress,
    describe_unhashed,
    hash_files,
    list_media,
    refuse_unusable,
)
from pipeline.manifests.media_names import name_videos
from pipeline.manifests.sources.interface import Built, Option, Source


def build(name: str, videos: Path, progress: Progress | None = None) -> Built:
    """Return the manifest of all media files in the folder `videos` and its subfolders, with their SHA-256.

    A video id is the relative path without suffix, `/` replaced by `__`; ids that would clash keep the suffix. Media
    that cannot be used are left out: those with invalid names or repeated ids, unreadable files, links out of the
    folder. Raises `UserError` if the folder is missing or contains no media that can be used.
    """
    listing = list_media(videos)
    ids, repeated = name_videos(listing.paths)
    digests, unreadable = hash_files(videos, ids, progress)
    skipped = (*listing.skipped, *repeated, *unreadable)
    refuse_unusable(videos, digests, skipped)
    found = tuple(Video(ids[path], path, digest) for path, digest in digests.items())
    manifest = Manifest(name=name, release="folder", licence="unknown", videos=found)
    return Built(manifest, notes=describe_unhashed(digests), skipped=skipped)


SOURCE = Source(
    build,
    (Option("videos", "Folder of the videos, searched with its subfolders.", "folder", is_required=True),),
    """Build the manifest of a folder of videos, without questions.

    Files that cannot be used, such as those with invalid names, are left out and listed. Exit code 3 if there are any.

    \b
    Example:
      mavqa-manifest build folder --videos clips --out data_manifests/clips
    """,
)

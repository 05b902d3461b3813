"""The sources of manifests by name: a dataset release each, tables and folders of one's own.

A source reads its own files as they are published and returns a `Built`; it writes nothing.
"""

import importlib
from collections.abc import Callable

from pipeline.manifests.sources.records import Built

SOURCES = {
    # Li et al., CVPR 2022; v2: Liu et al., "Tackling Data Bias in MUSIC-AVQA", WACV 2024
    "music-avqa": "pipeline.manifests.sources.music_avqa:build",
    # Yang et al., "AVQA: A Dataset for Audio-Visual Question Answering on Videos", ACM MM 2022
    "avqa": "pipeline.manifests.sources.avqa:build",
    # anyone's questions, as CSV
    "table": "pipeline.manifests.sources.table:build",
    # anyone's videos, without questions
    "folder": "pipeline.manifests.sources.folder:build",
}


def load_source(name: str) -> Callable[..., Built]:
    """Return the builder called `name` in `SOURCES`."""
    module, _, function = SOURCES[name].partition(":")
    builder: Callable[..., Built] = getattr(importlib.import_module(module), function)
    return builder

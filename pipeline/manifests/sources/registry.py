"""The manifest sources by name. Add one as a file and a line here, or as an entry point of `mavqa.datasets`."""

from pipeline.manifests.sources.interface import Source
from pipeline.plugins import load_plugin, with_installed

SOURCES = with_installed(
    "mavqa.datasets",
    {
        # Li et al., CVPR 2022; v2: Liu et al., "Tackling Data Bias in MUSIC-AVQA", WACV 2024.
        "music-avqa": "pipeline.manifests.sources.music_avqa:SOURCE",
        # Yang et al., "AVQA: A Dataset for Audio-Visual Question Answering on Videos", ACM MM 2022.
        "avqa": "pipeline.manifests.sources.avqa:SOURCE",
        # The user's own questions, as CSV.
        "table": "pipeline.manifests.sources.table:SOURCE",
        # The user's own videos, without questions.
        "folder": "pipeline.manifests.sources.folder:SOURCE",
    },
)


def load_source(name: str) -> Source:
    """Return the source `name`; raise `UserError` with the known names if it is unknown."""
    source: Source = load_plugin("dataset", SOURCES, name)
    return source

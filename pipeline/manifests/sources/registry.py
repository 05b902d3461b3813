"""The sources of manifests by name. A new one is one file and one line here, or an entry point `mavqa.datasets`."""

from pipeline.manifests.sources.interface import Source
from pipeline.plugins import load_plugin, with_installed

SOURCES = with_installed(
    "mavqa.datasets",
    {
        # Li et al., CVPR 2022; v2: Liu et al., "Tackling Data Bias in MUSIC-AVQA", WACV 2024.
        "music-avqa": "pipeline.manifests.sources.music_avqa:SOURCE",
        # Yang et al., "AVQA: A Dataset for Audio-Visual Question Answering on Videos", ACM MM 2022.
        "avqa": "pipeline.manifests.sources.avqa:SOURCE",
        # Questions of one's own, as CSV.
        "table": "pipeline.manifests.sources.table:SOURCE",
        # Videos of one's own, without questions.
        "folder": "pipeline.manifests.sources.folder:SOURCE",
    },
)


def load_source(name: str) -> Source:
    """Return the source called `name`; raise `UserError` naming the known ones where there is none."""
    source: Source = load_plugin("dataset", SOURCES, name)
    return source

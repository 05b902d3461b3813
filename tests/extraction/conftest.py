"""Fixtures of stage one: a small synthetic dataset, made once, and the decoders that load here."""

from pathlib import Path

import pytest

from pipeline.media.decoders.interface import Decoder, DecoderLoadError
from pipeline.media.decoders.registry import open_decoder


@pytest.fixture(scope="session")
def toy_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty clips of four seconds, some without sound or picture, with their questions."""
    from pipeline.synthetic import synthesize

    folder = tmp_path_factory.mktemp("toys") / "toys"
    synthesize(folder, videos=20, seconds=4, seed=3)
    return folder


@pytest.fixture(params=["pyav", "torchcodec", "decord"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    """Each decoder of the table that works on a processor, where it loads."""
    try:
        return open_decoder(request.param)
    except DecoderLoadError as error:
        pytest.skip(str(error))

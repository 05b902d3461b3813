"""Fixtures of stage one: a small synthetic dataset, created once, and the available decoders."""

from pathlib import Path

import pytest

from pipeline.media.decoders.interface import Decoder, DecoderLoadError
from pipeline.media.decoders.registry import open_decoder


@pytest.fixture(scope="session")
def toy_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty clips of four seconds, some without audio or video, with their questions."""
    from pipeline.synthetic import synthesize

    folder = tmp_path_factory.mktemp("toys") / "toys"
    synthesize(folder, videos=20, seconds=4, seed=3)
    return folder


@pytest.fixture(scope="session")
def extracted_store(toy_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the toy features of the toy dataset; tests copy it before they change it."""
    from run_toys import run_toys

    store = tmp_path_factory.mktemp("extracted") / "store.zarr"
    run_toys(toy_manifest, store)
    return store


@pytest.fixture(params=["pyav", "torchcodec", "decord"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    """Each decoder that runs on a CPU; skipped if it does not load."""
    try:
        return open_decoder(request.param)
    except DecoderLoadError as error:
        pytest.skip(str(error))

"""A dataset over a store on disk gives the batches of a dataset over the same values in memory."""

import numpy as np
import pytest
import torch
from tiny_store import SHAPES, SIZES, make_manifest, make_store, write_store

from pipeline.errors import UserError
from pipeline.store.reader import open_store, read_steps
from pipeline.store.schema import State
from train.backbones.registry import make_backbone
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.loading import LoadingSettings
from train.interfaces import inputs_of
from train.runs.folder import load_run
from train.training.fit import fit


@pytest.mark.parametrize("cache", ["memory", "device", "disk", "none"])
def test_a_store_on_disk_gives_the_batches_of_its_values(tmp_path, cache):
    tiny = make_store()
    write_store(tiny, tmp_path / "tiny.zarr")
    backbone, manifest = make_backbone("avst", SIZES), make_manifest(tiny)
    batches = []
    for store, used in ((open_store(tmp_path / "tiny.zarr"), cache), (tiny, "memory")):
        dataset = QuestionDataset(FeatureBank(store, LoadingSettings(used)), manifest, "train", inputs_of(backbone, 2))
        batches.append(dataset.batch(range(20), torch.Generator().manual_seed(1), {"9-audio": ("visual",)}))
    stored, expected = batches
    for name in ("audio", "visual", "negatives", "question"):
        for feature, values in getattr(expected, name).items():
            torch.testing.assert_close(getattr(stored, name)[feature], values, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(stored.audio_mask, expected.audio_mask)
    assert torch.equal(stored.visual_mask, expected.visual_mask)
    assert torch.equal(stored.answer, expected.answer)


@pytest.mark.parametrize("cache", ["memory", "device", "disk", "none"])
def test_missing_values_of_a_complete_video_are_reported(tmp_path, cache):
    tiny = make_store(incomplete=False)
    write_store(tiny, tmp_path / "tiny.zarr")
    backbone, manifest = make_backbone("avst", SIZES), make_manifest(tiny)
    for file in (tmp_path / "tiny.zarr" / "features" / "vggish" / "values").glob("c.*"):
        if file.is_file():
            file.unlink()
    bank = FeatureBank(open_store(tmp_path / "tiny.zarr"), LoadingSettings(cache))
    with pytest.raises(UserError, match=r"features/vggish/values has missing values for 'video\d+'.*corrupt"):
        QuestionDataset(bank, manifest, "train", inputs_of(backbone)).batch(range(4))


def test_a_run_trains_on_a_store_on_disk(tmp_path):
    from tiny_run import tiny_config

    tiny = make_store(videos=40)
    write_store(tiny, tmp_path / "tiny.zarr")
    store = open_store(tmp_path / "tiny.zarr")
    fit(tiny_config(epochs=1), make_manifest(tiny), FeatureBank(store), tmp_path / "run")
    _, config = load_run(tmp_path / "run")
    assert config.sizes.input_shapes == {"vggish": SHAPES["vggish"], "resnet18-map": (SHAPES["resnet18-map"][0], 2, 2)}


def test_videos_of_one_chunk_are_read_together(tmp_path, monkeypatch):
    write_store(make_store(videos=40), tmp_path / "s.zarr")
    reads = []

    def read(array, videos, steps):
        reads.append((videos.start, videos.stop))
        return read_steps(array, videos, steps)

    monkeypatch.setattr("train.data.selected_feature.read_steps", read)
    store = open_store(tmp_path / "s.zarr")
    rows = FeatureBank(store).rows("vggish", (0, 2), None)
    complete = np.flatnonzero(store.state("vggish") == State.COMPLETE)
    videos_per_chunk = store.values("vggish").chunks[0]
    assert videos_per_chunk > 1
    assert len(reads) == len(np.unique(complete // videos_per_chunk)) < len(complete)
    for video in complete:
        expected = store.values("vggish")[int(video)][[0, 2]]
        found = rows.gather(np.array([video, video]), np.array([0, 1])).numpy()
        np.testing.assert_array_equal(found, expected)

"""Batches are the same whatever cache they come from and however many threads gather them."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from product import make
from tiny_run import tiny_config
from tiny_store import SIZES, make_manifest, make_store, write_store

from pipeline.store.reader import open_store
from train.backbones.registry import make_backbone
from train.data.batch import Batch
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.data.loading import LoadingSettings
from train.data.prefetch import compute_ahead
from train.interfaces import SupportsStages, inputs_of, uses_negatives
from train.methods.registry import METHODS
from train.training.fit import fit


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order_and_items_are_taken_by_the_caller(workers: int) -> None:
    takers: set[int] = set()

    def items() -> Iterator[int]:
        for item in range(20):
            takers.add(threading.get_ident())
            yield item

    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(compute_ahead(work, items(), workers)) == [item * item for item in range(20)]
    assert takers == {threading.get_ident()}


@pytest.mark.parametrize("workers", [1, 3])
def test_few_results_are_computed_ahead_and_none_after_the_end(workers: int) -> None:
    computed: list[int] = []
    results = compute_ahead(computed.append, iter(range(100)), workers, ahead=2)
    next(results)
    time.sleep(0.05)
    assert len(computed) <= 2 * workers + 1
    results.close()
    assert len(computed) <= 2 * workers + 1


def test_the_error_of_an_item_is_raised_at_its_place() -> None:
    results = compute_ahead(lambda item: 1 // item, iter([1, 0, 1]), 2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prefetch") / "tiny.zarr"
    write_store(make_store(), path)
    return path


def tensors_of(batch: Batch) -> dict[str, torch.Tensor]:
    groups = {"question": batch.question, "audio": batch.audio, "visual": batch.visual, "negatives": batch.negatives}
    features = {f"{group}/{name}": values for group, of in groups.items() for name, values in (of or {}).items()}
    return {**features, "audio": batch.audio_mask, "visual": batch.visual_mask, "answer": batch.answer}


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("cache", ["none", "memory", "device", "disk"])
def test_the_same_seed_gives_the_same_batches(store_path: Path, cache: str, workers: int) -> None:
    """The batches are those of one question set after the other, gathered when they are asked for."""
    store, backbone, masks = open_store(store_path), make_backbone("avst", SIZES), {"9-audio": ("visual",)}
    settings = LoadingSettings(cache, workers=workers)
    dataset = QuestionDataset(FeatureBank(store, settings), make_manifest(make_store()), "train", inputs_of(backbone))
    plain = QuestionDataset(FeatureBank(make_store()), make_manifest(make_store()), "train", inputs_of(backbone))
    order = torch.Generator().manual_seed(4)
    expected = [plain.batch(rows, order, masks) for rows in plain.partition(5, order, masks)]
    found = list(dataset.batches(5, torch.Generator().manual_seed(4), masks))
    assert any(batch.negatives for batch in found)
    for one, other in zip(found, expected, strict=True):
        assert (one.question_id, one.video_id) == (other.question_id, other.video_id)
        torch.testing.assert_close(tensors_of(one), tensors_of(other), rtol=0, atol=0, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("cache", ["auto", "device", "memory", "disk"])
def test_batches_for_a_gpu_are_on_it_or_pinned(store_path: Path, cache: str) -> None:
    backbone, manifest = make_backbone("avst", SIZES), make_manifest(make_store())
    bank = FeatureBank(open_store(store_path), LoadingSettings(cache, workers=2), "cuda")
    dataset = QuestionDataset(bank, manifest, "train", inputs_of(backbone))
    plain = QuestionDataset(FeatureBank(make_store()), manifest, "train", inputs_of(backbone))
    for one, other in zip(dataset.batches(8), plain.batches(8), strict=True):
        assert all(values.is_cuda or values.is_pinned() for values in tensors_of(one).values())
        found = {name: values.cpu() for name, values in tensors_of(one.to("cuda")).items()}
        torch.testing.assert_close(found, tensors_of(other), rtol=0, atol=0, equal_nan=True)


def test_a_run_has_the_same_checkpoint_from_every_cache(store_path: Path, tmp_path: Path) -> None:
    contents = set()
    for cache, workers in (("none", 0), ("memory", 1), ("disk", 3)):
        bank, run = FeatureBank(open_store(store_path), LoadingSettings(cache, workers=workers)), tmp_path / cache
        fit(tiny_config(epochs=2), make_manifest(make_store()), bank, run)
        contents.add((run / "checkpoint.safetensors").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("name", METHODS)
def test_a_method_uses_negatives_unless_it_says_that_it_does_not(name: str) -> None:
    method = make(name, "avst")
    store = make_store(incomplete=False)
    dataset = QuestionDataset(FeatureBank(store), make_manifest(store), "train", inputs_of(method.backbone))
    for stage in [stage.name for stage in method.stages()] if isinstance(method, SupportsStages) else ["joint"]:
        if stage != "joint":
            method.enter(stage)
        losses = []
        for generator in (torch.Generator().manual_seed(1), None):
            torch.manual_seed(2)
            losses.append(method.train().training_loss(dataset.batch(range(8), generator))["total"].item())
        assert uses_negatives(method) == (losses[0] != losses[1]), stage

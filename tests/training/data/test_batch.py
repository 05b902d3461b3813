"""Batches: splitting by available modalities, merging predictions in order, removing a modality."""

from dataclasses import replace

import torch
from tiny_store import SIZES, make_manifest, make_store

from train.backbones.registry import make_backbone
from train.data.batch import Batch
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.interfaces import inputs_of


def mixed_batch(rows=range(12)) -> Batch:
    store = make_store()
    dataset = QuestionDataset(
        FeatureBank(store), make_manifest(store), "train", inputs_of(make_backbone("avst", SIZES))
    )
    masks = {"5-audio": ("audio", "visual")}
    return dataset.batch(rows, torch.Generator().manual_seed(0), masks)


def test_parts_are_homogeneous_and_cover_every_row_once():
    batch = mixed_batch()
    parts = list(batch.split_by_presence())
    assert sorted(part.available for _, part in parts) == [(), ("audio",), ("audio", "visual"), ("visual",)]
    assert sorted(row for rows, _ in parts for row in rows.tolist()) == list(range(12))
    for rows, part in parts:
        assert part.question_id == tuple(batch.question_id[row] for row in rows)
        assert torch.equal(part.answer, batch.answer[rows])
        for modality in part.available:
            assert part.mask(modality).any(1).all()
        for modality in {"audio", "visual"} - set(part.available):
            assert part.features(modality) is None
            assert not part.mask(modality).any()
        assert (part.negatives is not None) == ("visual" in part.available)


def test_predictions_are_in_the_order_of_the_rows():
    batch = mixed_batch()
    numbers = {question_id: float(row) for row, question_id in enumerate(batch.question_id)}
    predictions = batch.predict_by_presence(lambda part: torch.tensor([[numbers[i]] for i in part.question_id]))
    assert predictions.squeeze(1).tolist() == list(range(12))


def test_removing_a_modality_removes_its_features_mask_and_negatives():
    complete = mixed_batch([6, 7, 8])
    without = complete.without("visual")
    assert (without.visual, without.negatives) == (None, None)
    assert not without.visual_mask.any()
    assert torch.equal(without.audio["vggish"], complete.audio["vggish"])
    assert without.available == ("audio",)


def test_selecting_rows_selects_them_in_every_field():
    batch, rows = mixed_batch([6, 7, 8, 9]), torch.tensor([3, 1])
    selected = batch.select(rows)
    assert len(selected) == 2
    assert selected.video_id == ("video4", "video3")
    for name in ("audio", "visual", "negatives", "question"):
        for feature, values in getattr(selected, name).items():
            assert torch.equal(values, getattr(batch, name)[feature][rows])
    assert torch.equal(selected.audio_mask, batch.audio_mask[rows])


def test_batches_are_joined_with_what_a_part_does_not_have_marked():
    batch = replace(mixed_batch(), negatives=None)
    offered = replace(batch.select(torch.arange(3)), choices=torch.eye(3, dtype=torch.bool))
    joined = Batch.concatenate([offered, batch.select(torch.arange(3, 5)).without("audio"), batch])
    assert joined.question_id == (*batch.question_id[:5], *batch.question_id)
    assert joined.choices[:3].equal(torch.eye(3, dtype=torch.bool))
    assert joined.choices[3:].all()
    assert joined.audio["vggish"][3:5].isnan().all()
    assert not joined.audio_mask[3:5].any()
    torch.testing.assert_close(joined.visual["resnet18-map"][5:], batch.visual["resnet18-map"], equal_nan=True)
    assert joined.negatives is None
    assert Batch.concatenate([batch.without("audio"), batch.without("audio")]).audio is None


def test_choices_are_split_with_their_rows():
    without_choices = mixed_batch()
    batch = replace(without_choices, choices=torch.arange(36).reshape(12, 3) % 5 == 0)
    for rows, part in batch.split_by_presence():
        assert torch.equal(part.choices, batch.choices[rows])
    assert batch.to("meta").choices.device.type == "meta"
    assert all(part.choices is None for _, part in without_choices.split_by_presence())

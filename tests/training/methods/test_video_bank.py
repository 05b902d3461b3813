"""The video bank and the method that retrieves from it: neighbours and retrieved features."""

from dataclasses import replace

import pytest
import torch
from small_avqa import small_backbone, small_batch

from pipeline.errors import UserError
from pipeline.store.schema import MODALITIES
from train.interfaces import SupportsPreparation
from train.methods.retrieval_fill import RetrievalFill
from train.methods.video_bank import VideoBank, question_keys


def with_ids(batch, *names: str):
    return replace(batch, video_id=names)


def filled_bank(batch) -> VideoBank:
    bank = VideoBank(small_backbone())
    bank.fill([batch], [batch])
    return bank


@pytest.fixture
def batch():
    whole = small_batch()
    rows = torch.tensor([row for row in range(len(whole)) if (whole.audio_mask & whole.visual_mask)[row].any()])
    whole = whole.select(rows)
    return with_ids(whole, *(f"v{number}" for number in range(len(whole))))


@pytest.mark.parametrize("missing", MODALITIES)
def test_a_copy_with_another_id_retrieves_its_own_features(batch, missing):
    bank = filled_bank(batch)
    copies = with_ids(batch, *(f"copy of {name}" for name in batch.video_id)).without(missing)
    retrieved = bank.retrieve(missing, copies, 1, 0.0)
    mask = batch.mask(missing)
    for name, values in batch.features(missing).items():
        vector = values.float().mean((-2, -1), keepdim=True) if values.dim() == 5 else values.float()
        torch.testing.assert_close(retrieved[name][mask], vector.expand_as(values)[mask], rtol=2e-3, atol=2e-3)
        assert (retrieved[name][~mask] == 0).all()


@pytest.mark.parametrize("missing", MODALITIES)
def test_no_video_is_its_own_neighbour_whatever_the_question(batch, missing):
    bank = filled_bank(batch)
    for weight in (0.0, 100.0):
        nearest = bank._nearest(next(m for m in MODALITIES if m != missing), batch.without(missing), len(batch), weight)
        assert nearest.shape[1] == len(batch) - 1
        assert all(row not in videos for row, videos in enumerate(nearest.tolist()))


def test_videos_with_the_same_question_are_near(batch):
    tokens = batch.question["tokens"].clone()
    tokens[:] = 1
    tokens[0, 0] = 2
    tokens[2] = tokens[0]
    batch = replace(batch, question={"tokens": tokens})
    nearest = filled_bank(batch)._nearest("audio", batch.without("visual"), 1, 100.0)
    assert nearest[0, 0] == 2
    assert nearest[2, 0] == 0


def test_mean_of_neighbours_is_over_the_available_steps(batch):
    mask = torch.ones_like(batch.audio_mask)
    mask[1, -1] = False
    batch = replace(batch.select(torch.tensor([0, 1, 2])), visual_mask=mask[:3], audio_mask=torch.ones_like(mask[:3]))
    batch = replace(batch, **{m: {n: v.nan_to_num() for n, v in batch.features(m).items()} for m in MODALITIES})
    bank = filled_bank(batch)
    copies = with_ids(batch, "a", "b", "c").without("visual")
    (name,) = batch.visual
    retrieved = bank.retrieve("visual", copies, 2, 0.0)[name]
    values = bank.get_buffer(f"values_{name}").float()
    for row, videos in enumerate(bank._nearest("audio", copies, 2, 0.0).tolist()):
        available = [video for video in videos if video != 1]
        torch.testing.assert_close(retrieved[row, -1].mean((-2, -1)), values[available, -1].mean(0))
        torch.testing.assert_close(retrieved[row, 0].mean((-2, -1)), values[videos, 0].mean(0))


def test_bank_is_part_of_the_state_dict(batch):
    torch.manual_seed(0)
    method = RetrievalFill(small_backbone()).eval()
    method.prepare([batch], [batch])
    loaded = RetrievalFill(small_backbone()).eval()
    loaded.load_state_dict(method.state_dict())
    for hidden in ((), ("audio",), ("visual",), MODALITIES):
        assert torch.equal(loaded.predict(batch.without(*hidden)), method.predict(batch.without(*hidden)))


def test_an_empty_bank_and_a_bank_of_one_video_raise(batch):
    method = RetrievalFill(small_backbone())
    assert isinstance(method, SupportsPreparation)
    with pytest.raises(RuntimeError, match="video bank is empty: call `fill` before `retrieve`"):
        method.predict(batch.without("audio"))
    with pytest.raises(UserError, match="retrieval needs two complete training videos"):
        method.prepare([batch.select(torch.tensor([0]))], [batch])


def test_questions_on_videos_outside_the_bank_are_ignored(batch):
    bank = VideoBank(small_backbone())
    bank.fill([batch.select(torch.tensor([0, 1]))], [batch, batch])
    assert bank.about.tolist() == [0, 1, 0, 1]


def test_question_keys_count_words_or_average_vectors():
    keys = question_keys(torch.tensor([[2, 2, 1, 0, 9]]), 3)
    torch.testing.assert_close(keys, torch.tensor([[0.0, 1.0, 2.0]]) / 5**0.5)
    words = torch.tensor([[[3.0, 0.0], [5.0, 0.0], [torch.nan, torch.nan]]])
    torch.testing.assert_close(question_keys(words, 2), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(question_keys(torch.tensor([[0.0, 2.0]]), 2), torch.tensor([[0.0, 1.0]]))


def test_a_constant_channel_does_not_change_the_neighbours(batch):
    audio = {name: values.nan_to_num().clone() for name, values in batch.audio.items()}
    (name,) = audio
    audio[name][..., 0] = 0.1234567  # rounds in float16
    batch = replace(batch, audio=audio)
    copies = with_ids(batch, *(f"copy of {name}" for name in batch.video_id)).without("visual")
    nearest = filled_bank(batch)._nearest("audio", copies, 1, 0.0)
    assert nearest[:, 0].tolist() == list(range(len(batch)))

"""The bank of videos and the method that borrows from it: who is near, what is lent, that nobody lends to itself."""

from dataclasses import replace

import pytest
import torch
from small_avqa import small_backbone, small_batch

from pipeline.errors import UserError
from pipeline.store.schema import MODALITIES
from train.interfaces import SupportsPreparation
from train.methods.retrieval_fill import RetrievalFill
from train.methods.video_bank import VideoBank, question_keys


def named(batch, *names: str):
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
    return named(whole, *(f"v{number}" for number in range(len(whole))))


@pytest.mark.parametrize("missing", MODALITIES)
def test_a_twin_under_another_name_lends_its_own_features(batch, missing):
    bank = filled_bank(batch)
    twins = named(batch, *(f"twin of {name}" for name in batch.video_id)).without(missing)
    lent = bank.lend(missing, twins, 1, 0.0)
    mask = batch.mask(missing)
    for name, values in batch.features(missing).items():
        vector = values.float().mean((-2, -1), keepdim=True) if values.dim() == 5 else values.float()
        torch.testing.assert_close(lent[name][mask], vector.expand_as(values)[mask], rtol=2e-3, atol=2e-3)
        assert (lent[name][~mask] == 0).all()


@pytest.mark.parametrize("missing", MODALITIES)
def test_no_video_lends_to_itself_whatever_the_question(batch, missing):
    bank = filled_bank(batch)
    for weight in (0.0, 100.0):
        nearest = bank._nearest(next(m for m in MODALITIES if m != missing), batch.without(missing), len(batch), weight)
        assert nearest.shape[1] == len(batch) - 1
        assert all(row not in places for row, places in enumerate(nearest.tolist()))


def test_the_same_question_brings_videos_near(batch):
    tokens = batch.question["tokens"].clone()
    tokens[:] = 1
    tokens[0, 0] = 2
    tokens[2] = tokens[0]
    batch = replace(batch, question={"tokens": tokens})
    nearest = filled_bank(batch)._nearest("audio", batch.without("visual"), 1, 100.0)
    assert nearest[0, 0] == 2
    assert nearest[2, 0] == 0


def test_the_mean_of_neighbours_counts_only_seconds_that_are_there(batch):
    mask = torch.ones_like(batch.audio_mask)
    mask[1, -1] = False
    batch = replace(batch.select(torch.tensor([0, 1, 2])), visual_mask=mask[:3], audio_mask=torch.ones_like(mask[:3]))
    batch = replace(batch, **{m: {n: v.nan_to_num() for n, v in batch.features(m).items()} for m in MODALITIES})
    bank = filled_bank(batch)
    asked = named(batch, "a", "b", "c").without("visual")
    (name,) = batch.visual
    lent = bank.lend("visual", asked, 2, 0.0)[name]
    values = bank.get_buffer(f"values_{name}").float()
    for row, places in enumerate(bank._nearest("audio", asked, 2, 0.0).tolist()):
        there = [place for place in places if place != 1]
        torch.testing.assert_close(lent[row, -1].mean((-2, -1)), values[there, -1].mean(0))
        torch.testing.assert_close(lent[row, 0].mean((-2, -1)), values[places, 0].mean(0))


def test_a_bank_travels_with_the_weights(batch):
    torch.manual_seed(0)
    method = RetrievalFill(small_backbone()).eval()
    method.prepare([batch], [batch])
    again = RetrievalFill(small_backbone()).eval()
    again.load_state_dict(method.state_dict())
    for hidden in ((), ("audio",), ("visual",), MODALITIES):
        assert torch.equal(again.predict(batch.without(*hidden)), method.predict(batch.without(*hidden)))


def test_an_empty_bank_lends_nothing_and_one_video_is_none(batch):
    method = RetrievalFill(small_backbone())
    assert isinstance(method, SupportsPreparation)
    with pytest.raises(RuntimeError, match="before it was filled"):
        method.predict(batch.without("audio"))
    with pytest.raises(UserError, match="two complete"):
        method.prepare([batch.select(torch.tensor([0]))], [batch])


def test_questions_about_videos_that_are_not_in_the_bank_are_left_out(batch):
    bank = VideoBank(small_backbone())
    bank.fill([batch.select(torch.tensor([0, 1]))], [batch, batch])
    assert bank.about.tolist() == [0, 1, 0, 1]


def test_question_keys_count_words_or_average_vectors():
    keys = question_keys(torch.tensor([[2, 2, 1, 0, 9]]), 3)
    torch.testing.assert_close(keys, torch.tensor([[0.0, 1.0, 2.0]]) / 5**0.5)
    words = torch.tensor([[[3.0, 0.0], [5.0, 0.0], [torch.nan, torch.nan]]])
    torch.testing.assert_close(question_keys(words, 2), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(question_keys(torch.tensor([[0.0, 2.0]]), 2), torch.tensor([[0.0, 1.0]]))


def test_a_channel_that_never_varies_does_not_decide_who_is_near(batch):
    audio = {name: values.nan_to_num().clone() for name, values in batch.audio.items()}
    (name,) = audio
    audio[name][..., 0] = 0.1234567  # rounds in float16
    batch = replace(batch, audio=audio)
    twins = named(batch, *(f"twin of {name}" for name in batch.video_id)).without("visual")
    nearest = filled_bank(batch)._nearest("audio", twins, 1, 0.0)
    assert nearest[:, 0].tolist() == list(range(len(batch)))

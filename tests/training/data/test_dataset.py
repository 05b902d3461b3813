"""Batches from a store: rows, available modalities, negatives, order, memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_store import CLASSES, SIZES, TEXTS, WORDS, make_manifest, make_store, offer
from torch.utils.data import DataLoader

from pipeline.errors import UserError
from pipeline.store.schema import State, tokens_name
from train.backbones.registry import make_backbone
from train.data.dataset import ModelInputs, QuestionDataset, input_shapes
from train.data.feature_bank import FeatureBank
from train.data.loading import LoadingSettings
from train.data.selected_feature import strided_steps
from train.interfaces import inputs_of


def make_dataset(store=None, split="train", map_size=None, cache="memory", time_steps=4):
    store = make_store() if store is None else store
    backbone = make_backbone("avst", SIZES.model_copy(update={"time_steps": time_steps}))
    bank = FeatureBank(store, LoadingSettings(cache))
    return QuestionDataset(bank, make_manifest(store), split, inputs_of(backbone, map_size))


def test_a_model_reads_rows_spread_evenly_over_the_seconds():
    assert strided_steps(60, 10) == (0, 6, 12, 18, 24, 30, 36, 42, 48, 54)
    assert strided_steps(8, 10) == tuple(range(8))
    assert strided_steps(10, 4) == (0, 2, 5, 7)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_row_has_the_stored_steps_of_its_own_video(cache):
    store = make_store()
    batch = make_dataset(store, cache=cache).batch([9, 6, 20, 7])
    for row, video in enumerate((4, 3, 10, 3)):
        np.testing.assert_array_equal(batch.audio["vggish"][row], store.arrays["vggish"][video, ::2])
        np.testing.assert_array_equal(batch.visual["resnet18-map"][row], store.arrays["resnet18-map"][video, ::2])
    assert batch.video_id == ("video4", "video3", "video10", "video3")
    assert batch.question["tokens"].tolist() == [[1, word, 0] for word in (3, 2, 2, 3)]
    assert batch.answer.tolist() == [
        int(store.truth[m][v]) for v, m in ((4, "visual"), (3, "audio"), (10, "audio"), (3, "visual"))
    ]


def test_missing_modalities_and_steps_are_masked_and_nan():
    batch = make_dataset().batch([0, 2, 4, 6])
    assert batch.audio_mask.tolist() == [[False] * 4, [True] * 4, [True, True, False, False], [True] * 4]
    assert batch.visual_mask.tolist() == [[True] * 4, [False] * 4, [True, True, False, False], [True] * 4]
    for features, mask in (
        (batch.audio["vggish"], batch.audio_mask),
        (batch.visual["resnet18-map"], batch.visual_mask),
    ):
        assert features[mask].isfinite().all()
        assert features[~mask].isnan().all()


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_steps_before_the_first_one_are_masked_and_never_negatives(cache):
    store = make_store()
    store.arrays["resnet18-map"][:] = 1
    for modality, name in (("visual", "resnet18-map"), ("audio", "vggish")):
        store.firsts[modality] = np.zeros(24, np.int32)
        store.firsts[modality][3:14], store.arrays[name][3:14, :3] = 3, np.nan
    dataset = make_dataset(store, cache=cache)
    batch = dataset.batch([0, 6], torch.Generator().manual_seed(3))
    assert batch.visual_mask.tolist() == [[True] * 4, [False, False, True, True]]
    assert batch.audio_mask.tolist() == [[False] * 4, [False, False, True, True]]
    assert batch.visual["resnet18-map"][1].flatten(1).isnan().all(1).tolist() == [True, True, False, False]
    assert batch.audio["vggish"][1].isnan().all(1).tolist() == [True, True, False, False]
    assert dataset.naturally_complete[6]
    negatives = dataset.batch([8, 9, 20] * 20, torch.Generator().manual_seed(3)).negatives["resnet18-map"]
    assert (negatives == 1).all()


def test_a_modality_that_no_row_has_is_none():
    hidden = {q.question_id: ("audio",) for q in make_manifest(make_store()).questions["train"]}
    batch = make_dataset().batch([6, 7], masks=hidden)
    assert batch.audio is None
    assert batch.visual is not None
    assert not batch.audio_mask.any()


def test_a_hidden_modality_is_not_read():
    store = make_store()
    store.arrays["vggish"][4] = 99
    batch = make_dataset(store).batch([6, 8], masks={"4-audio": ("audio",)})
    assert not (batch.audio["vggish"] == 99).any()
    assert batch.audio_mask.any(1).tolist() == [True, False]
    assert batch.visual_mask.all()


def test_negatives_are_real_steps_of_other_videos_of_the_split():
    store = make_store()
    store.arrays["resnet18-map"][:] = np.nan
    for video in range(24):
        count = store.step_counts["visual"][video]
        store.arrays["resnet18-map"][video, :count] = video
    dataset = make_dataset(store)
    rows = [4, 6, 8, 9, 20] * 40
    sampled = dataset.batch(rows, torch.Generator().manual_seed(3)).negatives["resnet18-map"][:, :, 0, 0, 0]
    assert sampled.isfinite().all()
    own = torch.tensor([int(dataset.questions[row].video_id.removeprefix("video")) for row in rows])
    assert not (sampled == own[:, None]).any()
    assert set(sampled.unique().int().tolist()) == set(range(14)) - {1}
    assert dataset.batch(rows).negatives is None


def test_negatives_are_not_sampled_from_videos_whose_frames_are_hidden_from_every_question():
    store = make_store()
    for video in range(24):
        store.arrays["resnet18-map"][video] = video
    dataset = make_dataset(store)
    questions = {}
    for question in dataset.questions:
        questions.setdefault(int(question.video_id.removeprefix("video")), []).append(question.question_id)
    visible, half_hidden = {2, 4, 10}, 5
    masks = {q: ("visual",) for video, ids in questions.items() if video not in visible for q in ids}
    masks.pop(questions[half_hidden][0])
    rows = [r for r, q in enumerate(dataset.questions) if q.question_id not in masks] * 40
    sampled = dataset.batch(rows, torch.Generator().manual_seed(3), masks).negatives["resnet18-map"][:, :, 0, 0, 0]
    assert set(sampled.unique().int().tolist()) == {*visible, half_hidden}
    unmasked = dataset.batch(rows, torch.Generator().manual_seed(3)).negatives["resnet18-map"][:, :, 0, 0, 0]
    assert set(unmasked.unique().int().tolist()) > {*visible, half_hidden}


def test_the_same_generator_gives_the_same_order_and_negatives():
    dataset = make_dataset()
    runs = [list(dataset.batches(8, torch.Generator().manual_seed(5))) for _ in range(2)]
    other = list(dataset.batches(8, torch.Generator().manual_seed(6)))
    for left, right in zip(*runs, strict=True):
        assert left.question_id == right.question_id
        assert (left.negatives is None) == (right.negatives is None) == ("visual" not in left.available)
        if left.negatives is not None:
            assert torch.equal(left.negatives["resnet18-map"], right.negatives["resnet18-map"])
    assert [b.question_id for b in runs[0]] != [b.question_id for b in other]


def test_a_split_without_questions_has_no_batches():
    store = make_store()
    manifest = make_manifest(store)
    empty = replace(manifest, questions={**manifest.questions, "val": ()})
    dataset = QuestionDataset(FeatureBank(store), empty, "val", inputs_of(make_backbone("avst", SIZES)))
    assert len(dataset) == 0
    assert list(dataset.batches(8)) == []


def test_every_question_is_in_one_batch_and_smaller_batches_are_kept():
    dataset = make_dataset()
    batches = list(dataset.batches(8, torch.Generator().manual_seed(0)))
    assert sorted(len(b) for b in batches) == [2, 2, 8, 8, 8]
    assert sorted(i for b in batches for i in b.question_id) == sorted(q.question_id for q in dataset.questions)
    assert [i for b in dataset.batches(8) for i in b.question_id] == [q.question_id for q in dataset.questions]


def test_a_training_batch_has_the_same_modalities_in_every_row():
    dataset = make_dataset()
    hidden = {question.question_id: ("audio",) for question in dataset.questions[::2]}
    modalities = []
    for batch in dataset.batches(4, torch.Generator().manual_seed(3), hidden):
        assert len(list(batch.split_by_presence())) == 1
        modalities.append(batch.available)
    assert set(modalities) == {("audio", "visual"), ("audio",), ("visual",), ()}
    assert modalities != sorted(modalities)
    assert modalities != sorted(modalities, reverse=True)


def test_maps_are_average_pooled_to_the_map_size():
    store = make_store()
    pooled = make_dataset(store, map_size=2).batch([6]).visual["resnet18-map"]
    windows = store.arrays["resnet18-map"][3, ::2].astype(np.float32).reshape(4, 16, 2, 2, 2, 2).mean((3, 5))
    np.testing.assert_allclose(pooled[0], windows, atol=2e-3)
    needs = {"audio": ("vggish",), "visual": ("resnet18-map",)}
    assert input_shapes(store, needs, 2) == {"vggish": (8,), "resnet18-map": (16, 2, 2)}
    assert input_shapes(store, needs, None) == {"vggish": (8,), "resnet18-map": (16, 4, 4)}


def test_one_bank_reads_a_feature_once_for_every_split():
    store = make_store()
    backbone, bank, manifest = make_backbone("avst", SIZES), FeatureBank(store), make_manifest(store)
    for split in manifest.splits:
        QuestionDataset(bank, manifest, split, inputs_of(backbone))
    assert sorted(store.reads) == ["resnet18-map", "vggish"]


def test_naturally_complete_questions_are_marked():
    assert make_dataset().naturally_complete[:8].tolist() == [False] * 4 + [True] * 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_gives_every_question_once_with_missing_modalities_masked(workers):
    data = make_dataset(make_store(videos=10))
    loader = data.loader(4, shuffle=True, num_workers=workers)
    batches = list(loader)
    names = [name for batch in batches for name in batch.question_id]
    assert sorted(names) == sorted(question.question_id for question in data.questions)
    for batch in batches:
        rows = [[question.question_id for question in data.questions].index(name) for name in batch.question_id]
        expected = data.batch(rows)
        for modality in ("audio", "visual"):
            assert torch.equal(batch.mask(modality), expected.mask(modality))
            for name, values in (expected.features(modality) or {}).items():
                assert torch.equal(batch.features(modality)[name].nan_to_num(-9), values.nan_to_num(-9))
        assert torch.equal(batch.question["tokens"], expected.question["tokens"])
        assert torch.equal(batch.answer, expected.answer)
    with pytest.raises(IndexError):
        data[len(data)]


def test_a_data_loader_reads_each_batch_at_once_and_as_it_would_read_each_question():
    data = make_dataset(make_store(videos=10))
    at_once, one_by_one = next(iter(data.loader(6))), data.collate([data[row] for row in range(6)])
    assert at_once.question_id == one_by_one.question_id
    for modality in ("audio", "visual"):
        assert torch.equal(at_once.mask(modality), one_by_one.mask(modality))
        for name, values in (at_once.features(modality) or {}).items():
            assert torch.equal(values.nan_to_num(-9), one_by_one.features(modality)[name].nan_to_num(-9))
    gathered = []
    data.batch = lambda rows, batch=data.batch: gathered.append(len(rows)) or batch(rows)
    list(DataLoader(data, batch_size=6, collate_fn=data.collate))
    assert sum(gathered) == len(data)
    assert set(gathered[:-1]) == {6}


def test_a_failed_video_is_neither_whatever_the_numbers_of_features_per_modality():
    store = make_store()
    store.states["visual"][3] = State.FAILED
    features = {"question": ("tokens",), "audio": ("vggish",), "visual": ("resnet18-map", "clip-vit-b32")}
    data = QuestionDataset(FeatureBank(store), make_manifest(store), "train", ModelInputs(features, 4))
    failed = np.array([name == "video3" for name in data.batch(range(len(data))).video_id])
    assert failed.any()
    assert not (data.naturally_complete | data.naturally_incomplete)[failed].any()
    assert (data.naturally_complete | data.naturally_incomplete)[~failed].all()


def test_a_store_with_missing_or_unfinished_videos_questions_or_features_is_refused():
    pending = make_store()
    pending.states["visual"][5] = State.PENDING
    with pytest.raises(UserError, match="video5"):
        make_dataset(pending)
    shorter = make_store()
    manifest = make_manifest(shorter)
    shorter.video_ids = shorter.video_ids[:-2]
    with pytest.raises(UserError, match="video22"):
        QuestionDataset(FeatureBank(shorter), manifest, "test", inputs_of(make_backbone("avst", SIZES)))
    without_question = make_store()
    del without_question.question_rows[TEXTS["visual"]]
    with pytest.raises(UserError, match="What shows"):
        make_dataset(without_question)
    without_tokens = make_store()
    next(iter(without_tokens.questions.values()))[1] = -1
    with pytest.raises(UserError, match=r"tokens-\w+ is missing"):
        make_dataset(without_tokens)
    with pytest.raises(UserError, match="map size 9"):
        make_dataset(map_size=9)
    with pytest.raises(UserError, match="no split 'dev'"):
        make_dataset(split="dev")


def test_an_answer_outside_the_frozen_list_has_index_minus_one():
    store = make_store()
    store.truth["audio"] = store.truth["audio"].copy()
    manifest = make_manifest(store)
    manifest.questions["train"] = (replace(manifest.questions["train"][6], answer="kazoo"),)
    dataset = QuestionDataset(FeatureBank(store), manifest, "train", inputs_of(make_backbone("avst", SIZES)))
    assert dataset.answers.tolist() == [-1]


def test_choices_are_those_in_the_frozen_list_and_none_if_no_row_has_any():
    store = make_store()
    offered = {"3-audio": ("drum", "kazoo"), "3-visual": (), "5-audio": ("kazoo",), "6-audio": CLASSES}
    manifest = offer(make_manifest(store), offered)
    dataset = QuestionDataset(FeatureBank(store), manifest, "train", inputs_of(make_backbone("avst", SIZES)))
    choices = dataset.batch([6, 7, 8, 10, 12]).choices
    assert choices.dtype == torch.bool
    nothing, everything = [False] * 3, [True] * 3
    assert choices.tolist() == [[False, True, False], nothing, everything, nothing, everything]
    assert dataset.batch([8, 9]).choices is None
    assert make_dataset().batch([6, 7]).choices is None


def test_tokens_of_longer_questions_are_read_under_their_own_name():
    store = make_store()
    manifest = make_manifest(store)
    longer = replace(manifest, vocabulary=replace(manifest.vocabulary, question_length=20))
    with pytest.raises(KeyError, match="tokens-"):
        QuestionDataset(FeatureBank(store), longer, "train", inputs_of(make_backbone("avst", SIZES)))
    store.questions[tokens_name(WORDS, 20)] = np.full((2, 20), 3, np.int32)
    dataset = QuestionDataset(FeatureBank(store), longer, "train", inputs_of(make_backbone("avst", SIZES)))
    assert dataset.batch([6]).question["tokens"].shape == (1, 20)


@pytest.mark.parametrize(("changes", "name"), [({"time_steps": 0}, "time_steps"), ({"map_size": 0}, "map_size")])
def test_numbers_below_one_are_refused(changes, name):
    with pytest.raises(UserError, match=f"{name} is 0: pass at least 1"):
        ModelInputs(**{"features": {}, "time_steps": 4, **changes})


def test_a_dataset_and_its_manifest_are_described_in_one_line():
    dataset = make_dataset()
    features = "tokens, vggish, resnet18-map"
    assert repr(dataset) == f"<QuestionDataset: {len(dataset.questions)} questions, 4 steps; {features}>"
    assert repr(make_manifest(make_store())).startswith("<Manifest ")

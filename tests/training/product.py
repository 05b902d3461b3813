"""Every method on every backbone, and its predictions for stored batches."""

import itertools

import numpy as np
import torch
from tiny_store import SIZES, make_manifest, make_store, of_modality

from train.backbones.registry import BACKBONES, backbone_variants, make_backbone
from train.data.batch import Batch
from train.data.dataset import QuestionDataset
from train.data.feature_bank import FeatureBank
from train.interfaces import SupportsPreparation, inputs_of
from train.methods.registry import METHODS, make_method, method_variants

# A chain of ten steps of the full U-Net takes a hundred times as long as the rest of a tiny model.
SMALL_DIFFUSION = {"steps": 2, "dim": 8, "mults": [1], "stem_kernel": 3}
PRODUCT = list(itertools.product(METHODS, BACKBONES))


def make(method_name: str, backbone_name: str, variant: str | None = None):
    torch.manual_seed(1)
    backbone = make_backbone(backbone_name, SIZES, variant if variant in backbone_variants(backbone_name) else None)
    options = SMALL_DIFFUSION if method_name in ("avr", "rmm-avr") else {}
    variant = variant if variant in method_variants(method_name) else None
    method = make_method(method_name, backbone, variant, **options).eval()
    if isinstance(method, SupportsPreparation):
        train = QuestionDataset(
            FeatureBank(make_store()), make_manifest(make_store()), "train", inputs_of(method.backbone)
        )
        method.prepare([train.batch(np.flatnonzero(train.naturally_complete)[:9])], [train.batch(range(len(train)))])
    return method


def predict(method, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return batch.predict_by_presence(method.predict)


def stored_batch(method, hidden: tuple[str, ...], change: dict[str, float] | None = None) -> Batch:
    """Return a batch of complete videos with the modalities `hidden` masked.

    `change` {modality: value}: the value that replaces all stored features of the modality; NaN makes it absent.
    """
    store = make_store(incomplete=False)
    for modality, value in (change or {}).items():
        for name in of_modality(modality):
            store.arrays[name][:] = value
        if value != value:
            store.states[modality][:] = 2
            store.step_counts[modality][:] = 0
    dataset = QuestionDataset(FeatureBank(store), make_manifest(store), "test", inputs_of(method.backbone))
    masks = {question.question_id: hidden for question in dataset.questions}
    return dataset.batch(range(len(dataset)), masks=masks)

"""The variant of a backbone, chosen with that of the method or apart from it."""

import pytest
from tiny_store import SIZES

from pipeline.errors import UserError
from train.runs.config import make_config
from train.runs.folder import build_method


def test_the_variant_of_the_backbone_can_be_chosen_apart_from_the_method_s():
    def build(**settings):
        return build_method(make_config("avsd", method="rmm", **settings).model_copy(update={"sizes": SIZES}))

    paper = build(variant="paper").backbone.state_dict().keys()
    released = build(variant="released").backbone.state_dict().keys()
    assert paper != released
    mixed = build(variant="released", backbone_variant="paper")
    assert mixed.backbone.state_dict().keys() == paper
    assert mixed.memory.settings.addressing == "cosine"  # of the method's variant "released"
    with pytest.raises(
        UserError, match=r"has no variant 'papr' \(did you mean 'paper'\?\): set backbone_variant to one"
    ):
        build(backbone_variant="papr")

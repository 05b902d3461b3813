"""PSTP-Net against the released network: what it gave under weights and inputs by formula (golden/pstp.json).

`OFFICIAL_NAMES` says which module of the release is which of ours. A selecting attention of the release has one matrix
for queries, keys and values: its first two thirds are our `query` and `key`, its bias's first third is our `query`'s;
the rest of it reaches no output. The bias of `TempSegsSelect_Module.clip_fc` shifts all scores alike: we have none.
"""

import json

import paths
import pytest
import torch
import torch.nn.functional as F
from recipe import gaussian, pstp_batch, scattered
from torch import Tensor, nn

from train.backbones.registry import make_backbone
from train.backbones.sizes import ModelSizes
from train.networks.progressive_perception import Tokens

GOLDEN = json.loads((paths.GOLDEN / "pstp.json").read_text())
SIZES = ModelSizes(
    words=93,
    answers=42,
    input_shapes={"vggish": (128,), "clip-vit-b32": (50, 512)},
    question_shapes={"clip-vit-b32-sentence": (512,), "clip-vit-b32-words": (77, 512)},
    time_steps=60,
)
ATTENTION_LAYER = {
    "self_attn": "self_attention",
    "linear1": "feed_forward.0",
    "linear2": "feed_forward.3",
    "norm1": "attention_norm",
    "norm2": "output_norm",
}
OFFICIAL_NAMES = {
    "fc_a": "audio_stem",
    "fc_v": "visual_stem",
    "fc_q": "question_stem",
    "fc_word": "word_stem",
    **{f"GlobalSelf_Module.layers.0.{theirs}": f"fusion.0.{ours}" for theirs, ours in ATTENTION_LAYER.items()},
    "fc_answer_pred": "classifier",
    "fc_p": "perception.patch_stem",
    "TempSegsSelect_Module.clip_fc": "perception.segment_stem",
    "AudioGuidedVisualAttn.attn_audio_query": "perception.audio_guided.attention",
    "AudioGuidedVisualAttn.audio_query_linear1": "perception.audio_guided.feed_forward.0",
    "AudioGuidedVisualAttn.audio_query_linear2": "perception.audio_guided.feed_forward.3",
    "AudioGuidedVisualAttn.audio_query_visual_norm": "perception.audio_guided.norm",
    "GlobalLocal_Module.layers.0.cm_attn": "perception.global_local.0.cross_attention",
    **{
        f"GlobalLocal_Module.layers.0.{theirs}": f"perception.global_local.0.{ours}"
        for theirs, ours in ATTENTION_LAYER.items()
    },
}
OFFICIAL_SELECTORS = {
    "TempSegsSelect_Module.attn_qst_query": "perception.segment_selector",
    "SpatRegsSelect_Module.attn_qst_query": "perception.patch_selector",
}


def formula(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the values of the release's parameter `name`: norms about one, the rest by their fan-in."""
    salt = sum(position * ord(letter) for position, letter in enumerate(name, 1)) / 1_000
    values = scattered(torch.Size(shape).numel(), salt).reshape(shape).float()
    if "norm" in name and name.endswith("weight"):
        return 1 + values
    # Queries and keys as wide as these tell items apart, so that a choice does not hang on the last bits.
    wide = 1.5 if "qst_query" in name else 1.0
    return wide * 2 * (3 / shape[-1]) ** 0.5 * values


def official_weights(ours: nn.Module) -> dict[str, Tensor]:
    """Return {name in the release: values} of everything that `ours` has a place for."""
    places = {name: values for name, values in ours.state_dict().items() if "input_whitening" not in name}
    weights = {}
    for theirs, mine in OFFICIAL_NAMES.items():
        for name, values in places.items():
            if name.startswith(f"{mine}."):
                official = theirs + name.removeprefix(mine)
                weights[official] = formula(official, tuple(values.shape))
    for theirs, mine in OFFICIAL_SELECTORS.items():
        if f"{mine}.query.weight" in places:
            channels = places[f"{mine}.query.weight"].shape[0]
            weights[f"{theirs}.in_proj_weight"] = formula(f"{theirs}.in_proj_weight", (3 * channels, channels))
            weights[f"{theirs}.in_proj_bias"] = formula(f"{theirs}.in_proj_bias", (3 * channels,))
    return weights


def translated(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return {our name: values} of weights under the release's names."""
    weights = {}
    for name, values in official.items():
        module = next((theirs for theirs in OFFICIAL_NAMES if name.startswith(f"{theirs}.")), None)
        if module is not None:
            weights[OFFICIAL_NAMES[module] + name.removeprefix(module)] = values
            continue
        module, _, kind = name.rpartition(".")
        selector, channels = OFFICIAL_SELECTORS[module], len(values) // 3
        if kind == "in_proj_weight":
            weights[f"{selector}.query.weight"] = values[:channels]
            weights[f"{selector}.key.weight"] = values[channels : 2 * channels]
        else:
            weights[f"{selector}.query.bias"] = values[:channels]
    return weights


def formula_pstp(variant: str):
    backbone = make_backbone("pstp", SIZES, variant).eval()
    missing, unexpected = backbone.load_state_dict(translated(official_weights(backbone)), strict=False)
    assert all(name.startswith("input_whitening") for name in missing)
    assert not unexpected
    return backbone


def formula_regions() -> tuple[Tensor, Tensor]:
    """Return sound [batch, time, channel] and regions [batch, time, patch, channel] for the audio-guided attention."""
    return gaussian((2, 10, 512), 105), gaussian((2, 10, 25, 512), 106)


@torch.no_grad()
def quantities() -> dict[str, Tensor]:
    """Return what golden/pstp.json holds, computed here."""
    released, paper, batch = formula_pstp("released"), formula_pstp("paper"), pstp_batch()
    entered, perception = paper.encode(batch), paper.perception
    steps = {m: Tokens(values, entered.masks[m]) for m, values in paper.steps(entered).items()}
    segments, _ = perception.segments(steps)
    chosen, _ = perception.choose_segments(entered.question, steps)
    patches = perception.patch_stem(perception.gather(entered.features["visual"][:, :, 1:], chosen))
    # The release, told to, puts a norm (as initialised) after its global-local layers.
    streams = {m: F.layer_norm(t.values, (512,)) for m, t in perception.attend_globally(steps).items()}
    return {
        "released_logits": released.answer(released.encode(batch)).logits,
        "segment_weights": perception.segment_selector.weights(entered.question, segments.unsqueeze(1)).squeeze(1),
        "chosen_segments": chosen,
        "patch_weights": perception.patch_selector.weights(entered.question, patches)[:, ::9],
        "guided": perception.guide(*formula_regions())[:, ::3, ::32],
        "global_local_audio": streams["audio"][:, ::12, ::32],
        "global_local_visual": streams["visual"][:, ::12, ::32],
        "intended_logits": paper.answer(entered).logits,
    }


@pytest.fixture(scope="module")
def found() -> dict[str, Tensor]:
    return quantities()


def test_equals_the_released_network_under_the_same_weights(found):
    assert set(found) == set(GOLDEN) - {"provenance"}
    for name, values in found.items():
        expected = torch.tensor(GOLDEN[name])
        assert values.shape == expected.shape, name
        assert (values - expected).float().norm() <= 1e-4 * expected.float().norm(), name


def test_the_choice_does_not_hang_on_the_last_bits(found):
    for name, count in (("segment_weights", 2), ("patch_weights", 25)):
        ranked = found[name].sort(-1, descending=True).values
        assert (ranked[..., count - 1] / ranked[..., count] > 1 + 1e-4).all(), name

"""PSTP-Net against the released network, with weights and inputs from formulas (golden/pstp.json).

`OFFICIAL_NAMES` {module of the release: our module}. A selecting attention of the release has one matrix for queries,
keys and values: its first two thirds are our `query` and `key`, the first third of its bias is the bias of our `query`;
the rest does not affect the output. The bias of `TempSegsSelect_Module.clip_fc` shifts all scores alike; ours has none.
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
    """Return the values of the release's parameter `name`: norms about 1, the others scaled by their fan-in."""
    salt = sum(position * ord(letter) for position, letter in enumerate(name, 1)) / 1_000
    values = scattered(torch.Size(shape).numel(), salt).reshape(shape).float()
    if "norm" in name and name.endswith("weight"):
        return 1 + values
    # Larger queries and keys separate the items, so that selection does not depend on the last bits.
    factor = 1.5 if "qst_query" in name else 1.0
    return factor * 2 * (3 / shape[-1]) ** 0.5 * values


def official_weights(ours: nn.Module) -> dict[str, Tensor]:
    """Return {name in the release: values} of all parameters that `ours` has."""
    own = {name: values for name, values in ours.state_dict().items() if "input_whitening" not in name}
    weights = {}
    for theirs, mine in OFFICIAL_NAMES.items():
        for name, values in own.items():
            if name.startswith(f"{mine}."):
                official = theirs + name.removeprefix(mine)
                weights[official] = formula(official, tuple(values.shape))
    for theirs, mine in OFFICIAL_SELECTORS.items():
        if f"{mine}.query.weight" in own:
            channels = own[f"{mine}.query.weight"].shape[0]
            weights[f"{theirs}.in_proj_weight"] = formula(f"{theirs}.in_proj_weight", (3 * channels, channels))
            weights[f"{theirs}.in_proj_bias"] = formula(f"{theirs}.in_proj_bias", (3 * channels,))
    return weights


def translate(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return {our name: values} for weights {name in the release: values}."""
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
    missing, unexpected = backbone.load_state_dict(translate(official_weights(backbone)), strict=False)
    assert all(name.startswith("input_whitening") for name in missing)
    assert not unexpected
    return backbone


def formula_regions() -> tuple[Tensor, Tensor]:
    """Return audio [batch, time, channel] and regions [batch, time, patch, channel] for the audio-guided attention."""
    return gaussian((2, 10, 512), 105), gaussian((2, 10, 25, 512), 106)


@torch.no_grad()
def quantities() -> dict[str, Tensor]:
    """Compute the quantities of golden/pstp.json."""
    released, paper, batch = formula_pstp("released"), formula_pstp("paper"), pstp_batch()
    encoded, perception = paper.encode(batch), paper.perception
    steps = {m: Tokens(values, encoded.masks[m]) for m, values in paper.steps(encoded).items()}
    segments, _ = perception.segments(steps)
    selected, _ = perception.select_segments(encoded.question, steps)
    patches = perception.patch_stem(perception.gather_steps(encoded.features["visual"][:, :, 1:], selected))
    # The golden values have the optional norm of the release, as initialised, after its global-local layers.
    streams = {m: F.layer_norm(t.values, (512,)) for m, t in perception.attend_globally(steps).items()}
    return {
        "released_logits": released.answer(released.encode(batch)).logits,
        "segment_weights": perception.segment_selector.weights(encoded.question, segments.unsqueeze(1)).squeeze(1),
        "chosen_segments": selected,
        "patch_weights": perception.patch_selector.weights(encoded.question, patches)[:, ::9],
        "guided": perception.attend_to_regions(*formula_regions())[:, ::3, ::32],
        "global_local_audio": streams["audio"][:, ::12, ::32],
        "global_local_visual": streams["visual"][:, ::12, ::32],
        "intended_logits": paper.answer(encoded).logits,
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


def test_selection_does_not_depend_on_the_last_bits(found):
    for name, count in (("segment_weights", 2), ("patch_weights", 25)):
        ranked = found[name].sort(-1, descending=True).values
        assert (ranked[..., count - 1] / ranked[..., count] > 1 + 1e-4).all(), name

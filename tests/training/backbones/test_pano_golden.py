"""Pano's blocks against the released network, with weights and inputs from formulas (golden/pano.json)."""

import json
import zlib

import paths
import pytest
import torch
from recipe import gaussian, scattered

from train.backbones.pano import Pano
from train.backbones.sizes import ModelSizes
from train.interfaces import Representation
from train.networks.transformer import Stream

GOLDEN = json.loads((paths.GOLDEN / "pano.json").read_text())
SIZES = ModelSizes(
    words=11, answers=5, input_shapes={"vggish": (8,), "resnet18-map": (24, 4, 4)}, channels=24, time_steps=4
)
TOKENS = torch.tensor([[3, 7, 1, 10, 2], [5, 4, 9, 0, 0]])
AUDIO_MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])
VISUAL_MASK = torch.tensor([[True, True, True, False], [True, True, True, True]])


def weights(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the weights of this name: gains about 1, matrices scaled by their fan-in."""
    values = scattered(torch.Size(shape).numel(), zlib.crc32(name.encode()) % 997).reshape(shape).float()
    if len(shape) == 1:
        return 1 + 0.4 * values if name.endswith("weight") else 0.4 * values
    return 2 * (3 / shape[-1]) ** 0.5 * values


def formula_weights(backbone: Pano) -> Pano:
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "key_value" in name:
                half = (len(parameter) // 2, *parameter.shape[1:])
                parameter.copy_(torch.cat([weights(name.replace("key_value", n), half) for n in ("key", "value")]))
            else:
                parameter.copy_(weights(name, tuple(parameter.shape)))
        segment = weights("words.segment.weight", (2, backbone.channels))[0]
        backbone.words.position.weight += segment
    return backbone


def features() -> dict[str, torch.Tensor]:
    return {"audio": gaussian((2, 4, 24), 0.1), "visual": gaussian((2, 4, 24, 4, 4), 0.2)}


@torch.no_grad()
def run() -> dict[str, torch.Tensor]:
    """Return the blocks' outputs in order, {name: [row, channel]}: every third channel of the available elements."""
    backbone = formula_weights(Pano(SIZES, heads=4, layers=(2, 1, 1, 2)).eval())
    found = {}

    def keep(name: str, stream: Stream) -> Stream:
        found[name] = stream.states[:, :, ::3][stream.mask]
        return stream

    words = keep("words", backbone.words(TOKENS))
    keep("layer", backbone.stacks["question"][0](words))
    words = backbone.stacks["question"](words)
    masks = {"audio": AUDIO_MASK, "visual": VISUAL_MASK}
    given = Representation(words.states[:, 0], features(), masks=masks, words=words.states, word_mask=words.mask)
    streams = {"question": words}
    for modality in ("audio", "visual"):
        embedded = keep(modality, backbone._embed(given, modality))
        streams[modality] = backbone.stacks[modality](embedded)
    for name, stream in backbone.cross_layers[0](streams, {}).items():
        keep(f"cross_{name}", stream)
    found["question"] = given.question
    found |= {f"pooled_{modality}": vectors for modality, vectors in backbone.pool(given).items()}
    found["logits"] = backbone.answer(given).logits
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, torch.Tensor]:
    return run()


@pytest.mark.parametrize("name", [name for name in GOLDEN if name != "provenance"])
def test_equals_the_released_network_under_the_same_weights(found, name):
    expected = torch.tensor(GOLDEN[name])
    assert found[name].shape == expected.shape
    assert (found[name] - expected).norm() <= 1e-4 * expected.norm()

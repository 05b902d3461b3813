"""Winograd convolutions equal plain ones and replace only supported ones; workers use large memory pages."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from pipeline.extractors.networks.winograd import WinogradConvolution, _transforms, replace_convolutions
from pipeline.extractors.resnet18 import ResNet18Map
from pipeline.extractors.vggish import VGGishExtractor
from pipeline.extractors.weights import WeightsSource


def make_convolution(inputs: int = 8, outputs: int = 128, size: int = 3, **options) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, size, **({"padding": 1} | options)).requires_grad_(False)


@pytest.mark.parametrize("outputs", [2, 3, 4, 5])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 4), (14, 14), (24, 16)])
def test_outputs_equal_those_of_a_plain_convolution(outputs, size):
    plain = make_convolution(32)
    maps = torch.rand(3, 32, *size)
    exact = nn.functional.conv2d(maps.double(), plain.weight.double(), plain.bias.double(), padding=1)
    found = WinogradConvolution(plain, outputs)(maps)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.dtype == torch.float32
    assert (found - exact).norm() <= 1e-5 * exact.norm()


def test_the_transforms_for_4x4_outputs_are_those_of_the_paper():
    tiles, filters, outputs = _transforms(4)
    assert tiles[0].tolist() == [4, 0, -5, 0, 1, 0]
    assert tiles[-1].tolist() == [0, 4, 0, -5, 0, 1]
    assert (filters[0] * 4).tolist() == [1, 0, 0]
    torch.testing.assert_close(filters[3] * 24, torch.tensor([1, 2, 4], dtype=torch.float64))
    assert outputs.tolist() == [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def test_a_row_is_bit_identical_whatever_the_other_rows_of_the_batch():
    winograd = WinogradConvolution(make_convolution(), 5)
    maps = torch.rand(5, 8, 14, 14)
    other = maps.clone()
    other[[0, 1, 3, 4]] = torch.rand(4, 8, 14, 14) * 100
    assert torch.equal(winograd(maps)[2], winograd(other)[2])


@pytest.mark.parametrize(
    "options",
    [
        {"size": 1, "padding": 0},
        {"size": 5},
        {"stride": 2},
        {"padding": 0},
        {"dilation": 2},
        {"groups": 2},
        {"padding_mode": "reflect"},
        {"outputs": 127},
        {"bias": False},
        {"device": "meta"},  # Like a GPU, not the CPU.
    ],
)
def test_unsupported_convolutions_are_not_replaced(options):
    module = nn.Sequential(make_convolution(**options))
    assert type(replace_convolutions(module, 4)[0]) is nn.Conv2d


@pytest.mark.parametrize(("extractor", "count"), [(ResNet18Map(), 10), (VGGishExtractor(), 5)])
def test_the_supported_convolutions_of_the_networks_are_replaced(extractor, count):
    extractor.load(WeightsSource("seeded"), "cpu")
    parts = extractor._network.modules()
    assert sum(isinstance(part, WinogradConvolution) for part in parts) == count


@pytest.mark.skipif(sys.platform != "linux", reason="large memory pages are requested from Linux only")
def test_torch_uses_large_memory_pages_in_a_worker():
    # torch then aligns large tensors to memory pages, for which it requests 2 MB pages.
    code = """
from pipeline.run.settings import Settings
from pipeline.run.worker import load_specs
from pipeline.extractors.weights import WeightsSource
load_specs(Settings("none.zarr", ("vggish",), WeightsSource("seeded"), "pyav", "cpu", 1, "pad"))
import torch
print([torch.empty(2**24, dtype=torch.uint8).data_ptr() % 2**12 for _ in range(3)])
"""
    unset = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=unset).stdout
    assert printed.strip() == "[0, 0, 0]"

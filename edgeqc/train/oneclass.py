"""What is usual, from good parts alone: one Gaussian of the trunk's features, and each cell's distance from it.

PaDiM (Defard et al. 2021, arXiv 2011.08785) with one Gaussian for the whole part instead of one for each place, so that
parts may lie anywhere. On magnetic tiles, whose defects are small beside what is usual, such a map finds little (image
AUROC .81 with known groups in training); on parts that look alike it finds what nobody has seen before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgeqc.train.lite0 import LITE0, TAP_CHANNELS, Trunk
from edgeqc.train.net import image_logit
from edgeqc.train.samples import Sample, Task


class OneClass(nn.Module):
    """(n, 1, h, w) prepared images to logits (n, 2, h / 8, w / 8): unusual, and the one kind there is."""

    def __init__(self, trunk: Trunk, white: torch.Tensor, mean: torch.Tensor) -> None:
        """`white` (c, c) and `mean` (c,): features less the mean, times white, have unit covariance on good parts."""
        super().__init__()
        self.trunk = trunk
        self.whiten = nn.Conv2d(len(mean), len(mean), 1)
        with torch.no_grad():
            self.whiten.weight.copy_(white[:, :, None, None])
            self.whiten.bias.copy_(-(white @ mean))
        self.middle, self.width = nn.Parameter(torch.zeros(())), nn.Parameter(torch.ones(()))

    def distance(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 1, h / 8, w / 8) Mahalanobis distance of each cell."""
        return self.whiten(_features(self.trunk, images)).square().sum(1, keepdim=True).sqrt()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of the map, and zeros for its only kind."""
        unusual = (self.distance(images) - self.middle) / self.width
        return torch.cat([unusual, torch.zeros_like(unusual)], 1)


def fit_one_class(trunk: Trunk, goods: list[Sample], task: Task, told: Callable[[int], None]) -> OneClass:
    """Learn what is usual from good samples, and set the scale: the parts it was fitted on peak about logit -2, +-1."""
    channels = sum(TAP_CHANNELS[1:3])
    total, outer, cells = torch.zeros(channels), torch.zeros(channels, channels), 0
    for count, sample in enumerate(goods, 1):
        for mirrored in (False, True):
            values = _features(trunk, _input(sample, task, mirrored=mirrored))[0]
            inside = values[(slice(None), *_cells(sample))].flatten(1)
            total += inside.sum(1)
            outer += inside @ inside.T
            cells += inside.shape[1]
        told(count // 2)
    mean = total / cells
    spread = outer / cells - torch.outer(mean, mean)
    spread += torch.eye(channels) * _LEAST_SPREAD * spread.diagonal().mean()
    white = torch.linalg.inv(torch.linalg.cholesky(spread))
    net = OneClass(trunk, white, mean)
    peaks = []
    with torch.no_grad():
        for count, sample in enumerate(goods, 1):
            peaks.append(float(image_logit(net.distance(_input(sample, task, mirrored=False)), LITE0.peak_cells)))
            told(len(goods) // 2 + count // 2)
        net.width.fill_(max(1e-3, float(np.std(peaks))))
        net.middle.fill_(float(np.mean(peaks)) + 2 * float(net.width))
    net.eval().requires_grad_(requires_grad=False)
    return net


_LEAST_SPREAD: Final = 0.01  # of the mean variance, on the diagonal: PaDiM's own regularisation


def _features(trunk: Trunk, images: torch.Tensor) -> torch.Tensor:
    with torch.set_grad_enabled(torch.is_grad_enabled() and images.requires_grad):
        taps = trunk(images)
    return torch.cat([taps[1], functional.interpolate(taps[2], scale_factor=2.0, mode="nearest")], 1)


def _input(sample: Sample, task: Task, *, mirrored: bool) -> torch.Tensor:
    levels = sample.levels.astype(np.float32) / np.float32(sample.mean)
    image = levels * np.float32(task.spec.gain) + np.float32(task.spec.offset)
    return torch.from_numpy(np.ascontiguousarray(image[:, ::-1] if mirrored else image))[None, None]


def _cells(sample: Sample) -> tuple[slice, slice]:
    rows, columns = sample.area
    return slice(rows.start // 8, max(rows.start // 8 + 1, rows.stop // 8)), slice(
        columns.start // 8, max(columns.start // 8 + 1, columns.stop // 8)
    )

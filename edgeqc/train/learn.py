"""The training loop: from samples to a network, seeded, bounded by steps or by time."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from edgeqc.train.net import STRIDE, Net, image_logit
from edgeqc.train.samples import Batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and how."""

    steps: int
    minutes: float | None
    """Ends training early at this age; the result then depends on the machine's speed. None: steps alone decide."""
    rate: float = 3e-3
    threads: int = 1
    seed: int = 1


def learn(batches: Batches, classes: int, plan: Plan, told: Callable[[int, float, float], None]) -> Net:
    """Train from scratch; `told(step, done 0..1, loss)` every step. Returns the averaged weights, ready to run."""
    torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    random.seed(plan.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    net: Net = Net(classes).to(memory_format=torch.channels_last)
    average: Net = deepcopy(net)
    optimiser = torch.optim.AdamW(net.parameters(), lr=plan.rate, weight_decay=_DECAY)
    began = time.monotonic()
    net.train()
    step, done = 0, 0.0
    while done < 1:
        for group in optimiser.param_groups:
            group["lr"] = plan.rate * min(1.0, done / _WARM_UP + 0.05) * (0.5 + 0.5 * math.cos(math.pi * done))
        if done > _SETTLE:
            _hold_statistics(net)
        images, masks, kinds = (torch.from_numpy(array) for array in batches.next())
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(images)
        loss = _loss(logits.float(), masks, kinds)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        step += 1
        _follow(average, net, min(_MEMORY, step / (step + 10)))
        done = step / plan.steps
        if plan.minutes is not None:
            done = max(done, (time.monotonic() - began) / (60 * plan.minutes))
        told(step, min(1.0, done), float(loss.detach()))
    average.eval()
    return average


def count_parameters(net: Net) -> int:
    """How many numbers the network has learned."""
    return sum(parameter.numel() for parameter in net.parameters())


_DECAY: Final = 2e-2
_WARM_UP: Final = 0.05  # share of the run over which the rate rises
_SETTLE: Final = 0.75  # from here batch statistics stay as they are: small batches make them noisy
_MEMORY: Final = 0.99  # of the running average of the weights
_FULL_COVER: Final = 6.0  # a cell counts as wholly flawed from a sixth of it on: a scratch is thinner than a cell
_HARD_CELLS: Final = 32
_FLAWED_CELL: Final = 0.5


def _loss(logits: torch.Tensor, masks: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """Cells, the hardest cells again, overlap, the image, and the kind where there is a flaw."""
    cells = logits[:, :1]
    target = (functional.avg_pool2d(masks, STRIDE) * _FULL_COVER).clamp(max=1)
    flawed = (target.flatten(1).amax(1) >= _FLAWED_CELL).float()
    each = functional.binary_cross_entropy_with_logits(cells, target, reduction="none") * (1 + 3 * target)
    hard = each.flatten(1).topk(min(_HARD_CELLS, target[0].numel()), dim=1).values.mean()
    likely = torch.sigmoid(cells)
    overlap = (2 * (likely * target).flatten(1).sum(1) + 1) / ((likely + target).flatten(1).sum(1) + 1)
    dice = ((1 - overlap) * flawed).sum() / flawed.sum().clamp(min=1)
    image = functional.binary_cross_entropy_with_logits(image_logit(cells), flawed)
    loss = each.mean() + 0.25 * hard + 0.5 * dice + 0.5 * image
    marked = (target[:, 0] >= _FLAWED_CELL) & (kinds[:, None, None] >= 0)
    if bool(marked.any()):
        evidence = logits[:, 1:].permute(0, 2, 3, 1)[marked]
        truth = kinds[:, None, None].expand_as(marked)[marked]
        loss = loss + _KIND_WEIGHT * functional.cross_entropy(evidence, truth)
    return loss


_KIND_WEIGHT: Final = 0.1


def _hold_statistics(net: Net) -> None:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _follow(average: Net, net: Net, memory: float) -> None:
    with torch.no_grad():
        for kept, new in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
            if kept.dtype.is_floating_point:
                kept.lerp_(new, 1 - memory)
            else:
                kept.copy_(new)

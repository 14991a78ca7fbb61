"""The training loop: from batches to a network, seeded, bounded by steps or by time, resumable."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from edgeqc.errors import EdgeqcError
from edgeqc.train.net import Traits, image_logit, quick


class Source(Protocol):
    """Where batches come from."""

    rng: np.random.Generator
    """Its state is all the state there is."""

    def next(self) -> tuple[list[NDArray[np.float32]], NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
        """Inputs of the net, masks (n, 1, h, w) in 0..1, kinds (n,) with -1 = good, marked (n,): is the mask true."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and how."""

    steps: int
    minutes: float | None = None
    """Ends training early at this age; the result then depends on the machine's speed. None: steps alone decide."""
    patience: int = 0
    """Where the loss over so many steps is hardly lower than over as many before, the rest is cut short: only the last
    quarter, in which the weights settle, is still run. 0: never."""
    rate: float = 3e-3
    threads: int = 1
    seed: int = 1
    checkpoint: Path | None = None
    """File that an interrupted training resumes from; removed by nobody, so a finished one is not repeated."""
    key: str = ""
    """What the batches depend on: a checkpoint of other data is not resumed."""


_Net = TypeVar("_Net", bound=nn.Module)


def learn(
    make: Callable[[], _Net], source: Source, traits: Traits, plan: Plan, told: Callable[[int, float, float], None]
) -> _Net:
    """Train what `make` makes, once the seed is set; `told(step, done 0..1, loss)` every step. Returns the averaged weights, ready to run.

    EdgeqcError where the loss is not a number: the data or the rate is at fault, and nothing is returned.
    """
    torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    random.seed(plan.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    net = make()
    net.to(memory_format=torch.channels_last)
    average = deepcopy(net)
    optimiser = torch.optim.AdamW(_paces(net, traits), weight_decay=_DECAY)
    run = _Run(net, average, optimiser, source)
    step, loss = run.resumed(plan), math.nan
    done = (step + run.cut) / plan.steps
    began = time.monotonic()
    net.train()
    while done < 1:
        for group in optimiser.param_groups:
            group["lr"] = (
                group["pace"] * plan.rate * min(1.0, done / _WARM_UP + 0.05) * (0.5 + 0.5 * math.cos(math.pi * done))
            )
        if done > _SETTLE:
            _hold_statistics(net)
        loss = _step(run, traits)
        step += 1
        if not math.isfinite(loss):
            raise EdgeqcError(
                f"step {step}: the loss is {loss}; look for broken images (edgeqc train vision --check), or lower --rate"
            )
        _follow(average, net, min(_MEMORY, step / (step + 10)))
        run.losses.append(loss)
        if not run.cut and done < _SETTLE and _idle(run.losses, plan.patience):
            run.cut = max(0, math.ceil(plan.steps * _SETTLE) - step)
        done = (step + run.cut) / plan.steps
        if plan.minutes is not None:
            done = max(done, (time.monotonic() - began) / (60 * plan.minutes))
        if plan.checkpoint is not None and (step % _KEEP_STEPS == 0 or done >= 1):
            run.keep(plan, step if done < 1 else plan.steps - run.cut)
        told(step, min(1.0, done), loss)
    average.eval()
    return average


def count_parameters(net: nn.Module) -> int:
    """How many numbers the network holds."""
    return sum(parameter.numel() for parameter in net.parameters())


_DECAY: Final = 2e-2
_WARM_UP: Final = 0.05  # share of the run over which the rate rises
_SETTLE: Final = 0.75  # from here batch statistics stay as they are: small batches make them noisy
_MEMORY: Final = 0.99  # of the running average of the weights
_GENTLY: Final = 0.2  # share of the rate at which weights that have learned elsewhere move
_HARD_CELLS: Final = 32
_FLAWED_CELL: Final = 0.5
_KEEP_STEPS: Final = 50
_KIND_WEIGHT: Final = 0.1
_HARDLY: Final = (
    0.98  # on magnetic tiles 200 steps lower the loss by a tenth, and two such means differ by 3 % of noise
)


@dataclass(slots=True)
class _Run:
    net: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer
    source: Source
    losses: list[float] = field(default_factory=list)
    cut: int = 0
    """Steps that are left out, since the loss no longer falls."""

    def resumed(self, plan: Plan) -> int:
        """Go on from the checkpoint, if it is of this plan; the steps that are done."""
        if plan.checkpoint is None or not plan.checkpoint.exists():
            return 0
        held: dict[str, Any] = torch.load(plan.checkpoint, weights_only=True)
        if held["key"] != _key(plan):
            return 0
        self.net.load_state_dict(held["net"])
        self.average.load_state_dict(held["average"])
        self.optimiser.load_state_dict(held["optimiser"])
        self.source.rng.bit_generator.state = held["rng"]
        torch.set_rng_state(held["torch"])
        self.losses, self.cut = held["losses"], held["cut"]
        return int(held["step"])

    def keep(self, plan: Plan, step: int) -> None:
        """Write the checkpoint whole or not at all."""
        assert plan.checkpoint is not None  # noqa: S101 - asked by the caller
        part = plan.checkpoint.with_suffix(".part")
        torch.save(
            {
                "key": _key(plan),
                "step": step,
                "net": self.net.state_dict(),
                "average": self.average.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "rng": self.source.rng.bit_generator.state,
                "torch": torch.get_rng_state(),
                "losses": self.losses,
                "cut": self.cut,
            },
            part,
        )
        part.replace(plan.checkpoint)


def _key(plan: Plan) -> str:
    return f"{plan.key} {plan.steps} {plan.seed} {plan.rate} {plan.patience} {plan.minutes}"


def _paces(net: nn.Module, traits: Traits) -> list[dict[str, Any]]:
    """Parameters that start from nothing, and those that have learned elsewhere."""
    known = [bool(traits.pretrained) and name.startswith(traits.pretrained) for name, _ in net.named_parameters()]
    return [
        {"params": [p for p, old in zip(net.parameters(), known, strict=True) if old == learned], "pace": pace}
        for learned, pace in ((False, 1.0), (True, _GENTLY))
    ]


def _idle(losses: list[float], patience: int) -> bool:
    if not patience or len(losses) < 2 * patience:
        return False
    now, before = sum(losses[-patience:]), sum(losses[-2 * patience : -patience])
    return now > _HARDLY * before


def _step(run: _Run, traits: Traits) -> float:
    inputs, masks, kinds, marked = run.source.next()
    tensors = [torch.from_numpy(array).contiguous(memory_format=torch.channels_last) for array in inputs]
    with quick():
        logits = run.net(tensors if len(tensors) > 1 else tensors[0])
    loss = _loss(logits.float(), torch.from_numpy(masks), torch.from_numpy(kinds), torch.from_numpy(marked), traits)
    run.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(run.net.parameters(), 5.0)
    run.optimiser.step()
    return float(loss.detach())


def _loss(
    logits: torch.Tensor, masks: torch.Tensor, kinds: torch.Tensor, marked: torch.Tensor, traits: Traits
) -> torch.Tensor:
    """Cells, the hardest cells again, overlap, the image, and the kind where there is a flaw."""
    cells = logits[:, :1]
    pooled = functional.avg_pool2d(masks, masks.shape[-1] // cells.shape[-1])
    target = (pooled * traits.full_cover).clamp(max=1)
    flawed = torch.where(marked, target.flatten(1).amax(1) >= _FLAWED_CELL, kinds >= 0).float()
    known = marked.float()  # where nobody marked the defect, only the image's own label teaches
    weight = known[:, None, None, None]
    each = functional.binary_cross_entropy_with_logits(cells, target, reduction="none") * (1 + 3 * target) * weight
    hard = each.flatten(1).topk(min(_HARD_CELLS, target[0].numel()), dim=1).values.mean()
    likely = torch.sigmoid(cells)
    overlap = (2 * (likely * target).flatten(1).sum(1) + 1) / ((likely + target).flatten(1).sum(1) + 1)
    shown = flawed * known
    dice = ((1 - overlap) * shown).sum() / shown.sum().clamp(min=1)
    image = functional.binary_cross_entropy_with_logits(image_logit(cells, traits.peak_cells), flawed)
    loss = each.mean() + 0.25 * hard + 0.5 * dice + 0.5 * image
    inside = (target[:, 0] >= _FLAWED_CELL) & (kinds[:, None, None] >= 0)
    if bool(inside.any()):
        evidence = logits[:, 1:].permute(0, 2, 3, 1)[inside]
        truth = kinds[:, None, None].expand_as(inside)[inside]
        loss = loss + _KIND_WEIGHT * functional.cross_entropy(evidence, truth)
    return loss


def _hold_statistics(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _follow(average: nn.Module, net: nn.Module, memory: float) -> None:
    with torch.no_grad():
        for kept, new in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
            if kept.dtype.is_floating_point:
                kept.lerp_(new, 1 - memory)
            else:
                kept.copy_(new)

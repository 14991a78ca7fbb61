"""The forecaster's network: a few small GRUs side by side, each with its own start, trained to tell the next row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeqc.train.tags.weights import QUANTILES, Weights

_WINDOW_ROWS: Final = 90
_STRIDE_ROWS: Final = 5
_SETTLE_ROWS: Final = 10
"""Of each window that do not count: the hidden state starts from nothing."""
_BATCH: Final = 32
_WINDOWS: Final = 4000
"""A pass over more draws so many of them: a week of rows then takes minutes, not hours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the network is trained. The defaults are SKAB's best of some thirty trials; more epochs overfit 400 rows."""

    members: int = 3
    hidden: int = 32
    epochs: int = 25
    rate: float = 5e-3
    seed: int = 1


class _Member(nn.Module):
    def __init__(self, tags: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(tags, hidden, batch_first=True)
        self.forecast = nn.Linear(hidden, tags)
        self.quantiles = nn.Linear(hidden, len(QUANTILES) * tags)

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.gru(rows)[0]
        # The quantiles look at the hidden state and leave it alone: they may not bend the forecast that is judged.
        return self.forecast(hidden), self.quantiles(hidden.detach())


def train(
    rows: NDArray[np.float32],
    whole: list[slice],
    plan: Plan,
    told: Callable[[int, str], None] = lambda _done, _note: None,
) -> Weights:
    """Train on scaled rows (rows, tags); `whole` are the stretches without a gap. Raises ValueError where none is long enough.

    `told` hears of each epoch: how many of all members' epochs are done, and the loss.
    """
    windows = _windows(rows, whole)
    members = []
    for member in range(plan.members):
        torch.manual_seed(plan.seed + 1000 * member)

        def heard(epoch: int, loss: float, member: int = member) -> None:
            told(member * plan.epochs + epoch, f"loss {loss:.3f}")

        members.append(_train_member(windows, plan, heard))
    return _weights(members)


def _windows(rows: NDArray[np.float32], whole: list[slice]) -> torch.Tensor:
    """All windows: (windows, rows + 1, tags)."""
    found = [
        torch.from_numpy(rows[stretch]).unfold(0, _WINDOW_ROWS + 1, _STRIDE_ROWS).permute(0, 2, 1)
        for stretch in whole
        if stretch.stop - stretch.start > _WINDOW_ROWS
    ]
    if not found:
        longest = max((stretch.stop - stretch.start for stretch in whole), default=0)
        raise ValueError(f"no stretch without a gap has {_WINDOW_ROWS + 1} rows; the longest has {longest}")
    return torch.cat(found)


def _train_member(windows: torch.Tensor, plan: Plan, heard: Callable[[int, float], None]) -> _Member:
    member = _Member(windows.shape[2], plan.hidden)
    optimiser = torch.optim.Adam(member.parameters(), plan.rate)
    for epoch in range(plan.epochs):
        total = 0.0
        order = torch.randperm(len(windows))[:_WINDOWS]
        for start in range(0, len(order), _BATCH):
            window = windows[order[start : start + _BATCH]]
            forecast, quantiles = member(window[:, :-1])
            truth = window[:, 1:][:, _SETTLE_ROWS:]
            missed = ((forecast[:, _SETTLE_ROWS:] - truth) ** 2).mean()
            loss = missed + _pinball(quantiles[:, _SETTLE_ROWS:], truth)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            optimiser.step()
            total += float(missed.detach()) * len(window)
        heard(epoch + 1, total / len(order))
    return member


def _pinball(quantiles: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The loss whose minimum is the quantile (Koenker and Bassett 1978)."""
    parts: list[Any] = []
    for level, told in zip(QUANTILES, quantiles.chunk(len(QUANTILES), dim=2), strict=True):
        off = truth - told
        parts.append(torch.maximum(level * off, (level - 1) * off).mean())
    return torch.stack(parts).sum()


def _weights(members: list[_Member]) -> Weights:
    def stacked(pick: Callable[[_Member], torch.Tensor]) -> NDArray[np.float32]:
        return np.stack([pick(member).detach().numpy().astype(np.float32) for member in members])

    def row(pick: Callable[[_Member], torch.Tensor]) -> NDArray[np.float32]:
        return stacked(pick)[:, None, :]

    return Weights(
        input=stacked(lambda member: member.gru.weight_ih_l0.T),
        input_bias=row(lambda member: member.gru.bias_ih_l0),
        hidden=stacked(lambda member: member.gru.weight_hh_l0.T),
        hidden_bias=row(lambda member: member.gru.bias_hh_l0),
        forecast=stacked(lambda member: member.forecast.weight.T),
        forecast_bias=row(lambda member: member.forecast.bias),
        quantiles=stacked(lambda member: member.quantiles.weight.T),
        quantiles_bias=row(lambda member: member.quantiles.bias),
    )

"""A forecaster's weights, whoever made them: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

QUANTILES: Final = (0.05, 0.5, 0.95)
"""Of the next row, beside the forecast itself."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weights:
    """All members' weights, float32; gates in torch's order r, z, n."""

    input: NDArray[np.float32]
    """(members, tags, 3 hidden)"""
    input_bias: NDArray[np.float32]
    """(members, 1, 3 hidden)"""
    hidden: NDArray[np.float32]
    """(members, hidden, 3 hidden)"""
    hidden_bias: NDArray[np.float32]
    """(members, 1, 3 hidden)"""
    forecast: NDArray[np.float32]
    """(members, hidden, tags)"""
    forecast_bias: NDArray[np.float32]
    """(members, 1, tags)"""
    quantiles: NDArray[np.float32]
    """(members, hidden, 3 tags): all tags at the first quantile, then at the next"""
    quantiles_bias: NDArray[np.float32]
    """(members, 1, 3 tags)"""

    @property
    def count(self) -> int:
        """How many numbers they are."""
        return sum(getattr(self, name).size for name in self.__slots__)

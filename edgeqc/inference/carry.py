"""State that an engine's slots carry from run to run: which tensors it is, and what may be put there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import EngineError
from edgeqc.ports import EngineIo, TensorSpec


def carried(io: EngineIo, carry: Mapping[str, str]) -> EngineIo:
    """Take the pairs input > output of `carry` out of a model's inputs and outputs and make them its state.

    EngineError where one is not there, or the two differ in dtype or shape.
    """
    inputs = {tensor.name: tensor for tensor in io.inputs}
    outputs = {tensor.name: tensor for tensor in io.outputs}
    for name, follower in carry.items():
        reads, writes = inputs.get(name), outputs.get(follower)
        if reads is None or writes is None:
            missing = f"no input named {name}" if reads is None else f"no output named {follower}"
            raise EngineError(f"state {name} > {follower}: {missing}; there are {sorted(inputs)} > {sorted(outputs)}")
        if (reads.dtype, reads.shape) != (writes.dtype, writes.shape):
            raise EngineError(
                f"state {name} > {follower}: {reads.dtype}{list(reads.shape)} is not {writes.dtype}{list(writes.shape)}"
            )
    followers = set(carry.values())
    if len(followers) < len(carry):
        raise EngineError(f"state: one output is named twice in {dict(carry)}")
    return EngineIo(
        inputs=tuple(tensor for tensor in io.inputs if tensor.name not in carry),
        outputs=tuple(tensor for tensor in io.outputs if tensor.name not in followers),
        state=tuple(inputs[name] for name in carry),
    )


def checked_state(spec: tuple[TensorSpec, ...], state: Mapping[str, NDArray[np.generic]] | None) -> None:
    """EngineError where `state` is not what an engine with this state gave out."""
    if state is None:
        return
    if state.keys() != {tensor.name for tensor in spec}:
        raise EngineError(f"state has {sorted(state)}, must have {sorted(tensor.name for tensor in spec)}")
    for tensor in spec:
        array = state[tensor.name]
        if array.dtype != tensor.dtype or array.shape != tensor.shape:
            raise EngineError(
                f"state {tensor.name}: {array.dtype}{list(array.shape)} is not {tensor.dtype}{list(tensor.shape)}"
            )

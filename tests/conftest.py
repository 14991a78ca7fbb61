"""No test may leave a task, thread, process, socket or file open behind."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import structlog

from edgeqc import logs

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any

GRACE_S = 3.0
"""A killed process or a thread that was told to stop is gone within milliseconds; a loaded box needs longer."""


@pytest.fixture(autouse=True)
def _logs_are_set_up_anew(_nothing_is_left_behind: None) -> Iterator[None]:
    """A command that was run within the test set up the logs of the whole process, and to a stream that is gone."""
    yield
    logs.close(GRACE_S)
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """Compare what is there after a test with what was there before it; fixtures of a wider scope come before."""
    gc.freeze()  # so that the collections below look at this test's objects only: 0.2 s less a test where torch is loaded
    before = _present()
    yield
    gc.collect()
    deadline = time.monotonic() + GRACE_S
    while (left := _present() - before) and time.monotonic() < deadline:
        time.sleep(0.02)  # whatever is ending now, ends without telling us
        gc.collect()
    assert not left, f"left behind: {sorted(left)}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Watch the tasks of every asynchronous test from inside its loop, which cancels them silently when it ends."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = _watched(item.obj)


def _watched(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Coroutine[Any, Any, None]]:
    @functools.wraps(test)
    async def watched(*args: Any, **kwargs: Any) -> None:
        before = asyncio.all_tasks()
        await test(*args, **kwargs)
        left = asyncio.all_tasks() - before
        if left:
            _, left = await asyncio.wait(left, timeout=GRACE_S)  # a cancelled task needs its turn to end
        assert not left, f"left behind: {sorted(task.get_name() for task in left)}"

    return watched


def _present() -> set[str]:
    threads = {f"thread {thread.name} {thread.ident}" for thread in threading.enumerate() if thread.is_alive()}
    children = {f"process {_name(child)}" for child in psutil.Process().children()}  # a peer may be started again
    return {thing for thing in threads | children | set(_open_files()) if not any(known in thing for known in _KEPT)}


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:80]
    except psutil.Error:
        return "ended"


def _open_files() -> Iterator[str]:
    """Sockets, and files outside the system's own folders, which libraries open once and keep."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the listing's own
            target = str(descriptor.readlink())
            if target.startswith("socket:") or (target.startswith("/") and not target.startswith(_SYSTEM)):
                yield f"file {descriptor.name} {target}"


_KEPT = ("multiprocessing.resource_tracker", "/.onnxruntime/")
"""One per process, made by multiprocessing and by onnxruntime at their first use and kept to the end."""
_SYSTEM = ("/dev/", "/proc/", "/sys/", "/usr/", "/etc/", "/lib")

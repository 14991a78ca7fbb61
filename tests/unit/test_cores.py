"""Whose threads come first."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os, threading
from edgeqc.cores import real_time, real_time_throughout

done = threading.Event()
threads = [threading.Thread(target=done.wait)]
threads[0].start()
if not real_time(1):
    done.set()
    raise SystemExit(77)
threads.append(threading.Thread(target=done.wait))
threads[1].start()
real_time_throughout(3)
ids = [thread.native_id for thread in threads] + [0]
print([(os.sched_getscheduler(one) == os.SCHED_FIFO, os.sched_getparam(one).sched_priority) for one in ids])
done.set()
"""


def test_what_was_started_while_engines_were_loaded_gets_the_priority_of_the_rest() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    if ran.returncode == 77:
        pytest.skip("no real-time rights here")
    assert ran.stdout.strip() == "[(False, 0), (True, 3), (True, 3)]", ran.stderr

"""Where a line of the log goes, and what happens when it can go nowhere."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
import structlog

from edgeqc import logs

PATIENCE_S = 20.0
"""For a shared, noisy machine."""
BROKEN = """
import sys
from edgeqc import logs
log = logs.configure(process="station")
{breaks}
for _ in range(3):
    log.critical("camera_lost")
print("goes on")
"""


def test_a_line_names_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", first := io.StringIO())
    log = logs.configure(process="station")
    monkeypatch.setattr(sys, "stderr", second := io.StringIO())
    log.warning("camera_silent", camera="top")
    structlog.get_logger("by module").info("camera_back")
    logs.close(PATIENCE_S)
    assert not first.getvalue()  # it is standard error of now that counts
    line, other = (json.loads(text) for text in second.getvalue().splitlines())
    assert other["event"] == "camera_back"
    assert (line["process"], line["event"], line["camera"], line["level"]) == (
        "station",
        "camera_silent",
        "top",
        "warning",
    )


@pytest.mark.parametrize("breaks", ["", "sys.stderr.close()"], ids=["nobody reads", "closed"])
def test_a_log_that_is_gone_does_not_end_the_process(breaks: str) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run(
            [sys.executable, "-c", BROKEN.format(breaks=breaks)], stdout=subprocess.PIPE, stderr=writes, check=False
        )
    finally:
        os.close(writes)
    assert done.stdout == b"goes on\n"


FULL = """
import os, sys
from edgeqc import logs
log = logs.configure(process="station")
for number in range(logs.WAITING + 3000):
    log.critical("camera_lost", number=number)
print("goes on", flush=True)
os.read(0, 1)
logs.close(20)
log.info("reader_back")
"""


def test_a_reader_that_hangs_holds_nobody_up_and_what_was_lost_is_told() -> None:
    """As a journal's daemon that is stopped: the pipe is full, and nobody empties it."""
    reads, writes = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", FULL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=writes
    ) as process:
        os.close(writes)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"goes on\n"
        process.stdin.write(b"x")
        process.stdin.flush()
        with os.fdopen(reads) as pipe:
            lines = [json.loads(line) for line in pipe]
    numbers = [line["number"] for line in lines if line["event"] == "camera_lost"]
    told = [line["lines"] for line in lines if line["event"] == "log_lines_lost"]
    assert numbers == sorted(set(numbers))
    assert sum(told) == logs.WAITING + 3000 - len(numbers) > 0
    assert lines[-1]["event"] == "reader_back"

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

"""The bench in hil/ is run here on the pretended device, so that it works on the day that it is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_bench_runs_from_end_to_end_and_reports_what_it_measured(tmp_path):
    report = tmp_path / "report.jsonl"
    environment = {
        **os.environ,
        "EDGEQC_HIL_PRETEND": "1",
        "EDGEQC_HIL_RUNS": "20",
        "EDGEQC_HIL_HOURS": "0.0005",
        "EDGEQC_HIL_REPORT": str(report),
        "EDGEQC_HIL_PACKAGES": str(ROOT / "engines" / "demo-part" / "1"),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-m", "hil", "hil", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert {line["test"].split("[")[0] for line in lines} == {
        "test_golden_vectors_hold_on_fresh_and_on_stored_plan",
        "test_latency",
        "test_cold_start",
        "test_soak",
    }
    assert all(line["pretended"] for line in lines)  # a figure from here must never pass for a device's

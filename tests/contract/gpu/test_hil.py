"""The bench in hil/ is run here on the pretended device, so that it works on the day that it is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeqc.inference.manifest import VariantName
from edgeqc.inference.package import load_package
from edgeqc.inference.precision import to_fp16
from edgeqc.inference.writing import VariantFiles, with_variants

ROOT = Path(__file__).parents[3]


def _with_fp16(folder):
    package = load_package(ROOT / "engines" / "demo-part" / "1")
    half = VariantFiles(model=to_fp16(package.model), golden_tolerance=0.02)
    with_variants(package.folder, folder, {VariantName.FP16: half}, key=None)
    return folder


@pytest.mark.timeout(240)  # it builds and runs two plans in processes of their own
def test_bench_runs_from_end_to_end_and_reports_what_it_measured(tmp_path):
    report = tmp_path / "report.jsonl"
    environment = {
        **os.environ,
        "EDGEQC_HIL_PRETEND": "1",
        "EDGEQC_HIL_RUNS": "10",
        "EDGEQC_HIL_HOURS": "0.0005",
        "EDGEQC_HIL_REPORT": str(report),
        "EDGEQC_HIL_PACKAGES": str(_with_fp16(tmp_path / "demo-part" / "1")),
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
    assert {line["test"].partition("[")[2].split("-")[2].rstrip("]") for line in lines} == {"fp32", "fp16"}
    assert all(line["pretended"] for line in lines)  # a figure from here must never pass for a device's

"""edgeqc's OPC UA server read by an independent client: node-opcua, installed by npm into a folder of the test run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_box import Box, Served

from edgeqc.records import Cause, Verdict

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
CLIENT = Path(__file__).with_name("nodeopcua_client.js")
USERS = [
    {"name": "scada", "password": "s3cret"},
    {"name": "shift", "password": "0perator", "role": "operator"},
]


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("npm")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "node-opcua@2"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=200)
    (folder / CLIENT.name).write_bytes(CLIENT.read_bytes())  # node looks for modules beside the script
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    box = Box(
        tmp_path_factory.mktemp("opcua"),
        {"opcua": {"bind": "127.0.0.1", "peers": ["127.0.0.1"], "port": 0, "users": USERS}},
    )
    try:
        one = Served(box, "opcua")
        yield one
        one.close()
    finally:
        box.close()


def told(modules: Path, served: Served, user: str, password: str) -> dict[str, Any]:
    url = f"opc.tcp://127.0.0.1:{served.port}/edgeqc"
    done = subprocess.run(
        ["node", CLIENT.name, url, user, password], cwd=modules, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    (found,) = [line for line in done.stdout.splitlines() if line.startswith("{")]  # the library talks on stdout too
    return json.loads(found)


def test_it_browses_reads_subscribes_and_calls_with_sign_and_encrypt(modules: Path, served: Served) -> None:
    served.box.part(Verdict.REJECT, Cause.DEFECT, score=0.875, part_id="A1B2")
    found = told(modules, served, "scada", "s3cret")
    assert found["found"]
    assert {"Counters", "Shift", "Result", "State", "ResetCounters", "GetResults"} <= set(found["children"])
    assert found["verdict"] == "reject"
    assert found["json"]["part_id"] == "A1B2"
    assert found["notices"] > 5
    assert found["results"]["status"] == "Good"
    assert json.loads(found["results"]["output"][0][0])["part_id"] == "A1B2"
    assert found["reset"] == "BadUserAccessDenied"
    assert found["write"] in {"BadUserAccessDenied", "BadNotWritable"}


def test_an_operator_may_reset(modules: Path, served: Served) -> None:
    assert told(modules, served, "shift", "0perator")["reset"] == "Good"
    served.wait_for("counters_reset", by="shift")


def test_a_wrong_password_is_refused(modules: Path, served: Served) -> None:
    assert "BadUserAccessDenied" in told(modules, served, "scada", "guess")["refused"]

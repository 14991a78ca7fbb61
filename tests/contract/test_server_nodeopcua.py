"""edgeqc's OPC UA server read by an independent client: node-opcua."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_box import Box, Served

from edgeqc.records import Cause, Verdict
from edgeqc.sim.nodeopcua import INSTALLED

pytestmark = pytest.mark.timeout(180)
CLIENT = Path(__file__).with_name("nodeopcua_client.js")
USERS = [
    {"name": "scada", "password": "s3cret"},
    {"name": "shift", "password": "0perator", "role": "operator"},
]
LOGINS = [("scada", "s3cret"), ("shift", "0perator"), ("scada", "guess")]


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


@pytest.fixture(scope="module")
def told(served: Served) -> dict[str, dict[str, Any]]:
    """What the client saw as each user; one node process for all of them, because it takes seconds to start."""
    if not (INSTALLED / "node_modules").is_dir() or shutil.which("node") is None:
        pytest.skip("node-opcua is not installed (scripts/install test, needs npm and a registry)")
    served.box.part(Verdict.REJECT, Cause.DEFECT, score=0.875, part_id="A1B2")
    script = INSTALLED / CLIENT.name  # node looks for modules beside the script
    script.write_bytes(CLIENT.read_bytes())
    url = f"opc.tcp://127.0.0.1:{served.port}/edgeqc"
    users = [f"{user}:{password}" for user, password in LOGINS]
    done = subprocess.run(
        ["node", script.name, url, *users], cwd=INSTALLED, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]  # the library talks, too
    return {user + ":" + password: seen for (user, password), seen in zip(LOGINS, found, strict=True)}


def test_it_browses_reads_subscribes_and_calls_with_sign_and_encrypt(told: dict[str, dict[str, Any]]) -> None:
    found = told["scada:s3cret"]
    assert found["found"]
    assert {"Counters", "Shift", "Result", "State", "ResetCounters", "GetResults"} <= set(found["children"])
    assert found["verdict"] == "reject"
    assert found["json"]["part_id"] == "A1B2"
    assert found["notices"] > 5
    assert found["results"]["status"] == "Good"
    assert json.loads(found["results"]["output"][0][0])["part_id"] == "A1B2"
    assert found["reset"] == "BadUserAccessDenied"
    assert found["write"] in {"BadUserAccessDenied", "BadNotWritable"}


def test_an_operator_may_reset(told: dict[str, dict[str, Any]], served: Served) -> None:
    assert told["shift:0perator"]["reset"] == "Good"
    served.wait_for("counters_reset", by="shift")


def test_a_wrong_password_is_refused(told: dict[str, dict[str, Any]]) -> None:
    assert "BadUserAccessDenied" in told["scada:guess"]["refused"]

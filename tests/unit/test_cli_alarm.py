"""`edgeqc alarm`, `train tags` and `eval tags` as people type them, without torch and without a broker."""

import asyncio
import json
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from edgeqc.cli import main
from edgeqc.journal import JournalWriter
from edgeqc.office.process import run_office
from edgeqc.records import AlertChange, Ne107
from edgeqc.settings import JournalSettings, Settings

PATIENCE_S = 40.0


@pytest.fixture
def edgeqc(capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@contextmanager
def office(state_dir):
    """An office on this state directory, without a broker, until the block ends."""
    configured = Settings.model_validate(
        {
            "version": 1,
            "node": "n1",
            "stations": [
                {
                    "name": "top",
                    "takt_ms": 100,
                    "budget_ms": 60,
                    "camera": {"type": "replay", "folder": "x", "width_px": 64, "height_px": 64},
                    "recipe": {"engine": "e"},
                    "plc": {"type": "none"},
                }
            ],
        }
    )
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    served = run_office(configured, state_dir=state_dir, run_dir=state_dir, beat=lambda: None, health=dict, stop=stop)
    thread = threading.Thread(target=lambda: loop.run_until_complete(served))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE_S)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "not within the time a loaded box needs"
        time.sleep(0.02)  # the office has to do it


def raised(**changes) -> AlertChange:
    fields = {
        "id": "machine.pump.deviation",
        "active": True,
        "priority": "high",
        "ne107": Ne107.OUT_OF_SPECIFICATION,
        "text": "pump is not as usual: flow",
        "action": "Look",
        "contribution": (("flow", 0.6),),
        "latched": True,
    }
    return AlertChange(**{**fields, **changes})


def test_an_alarm_is_listed_answered_and_told_of_later(edgeqc, tmp_path):
    state = tmp_path / "100% #1"  # a folder's name may hold what an address may not
    journal = JournalWriter(state / "journal" / "watch", JournalSettings())

    def shown(*options):
        code, out, _ = edgeqc("alarm", "list", "--state", state, "--json", *options)
        return [json.loads(row) for row in out.splitlines()] if code == 0 else []

    try:
        with office(state):
            journal.append(raised())
            until(lambda: (state / "archive.db").exists() and shown())
            (told,) = shown()
            assert (told["state"], told["first_up"], told["contribution"]) == (
                "active_unacked",
                True,
                [{"tag": "flow", "share": 0.6}],
            )
            name = "machine.pump.deviation"
            assert edgeqc("alarm", "ack", name, "--state", state, "--by", "anna", "--why", "valve")[0] == 0
            assert "anna" in shown()[0]["acked_by"]
            code, _, err = edgeqc("alarm", "ack", name, "--state", state)
            assert (code, "active_acked" in err) == (1, True)
            code, _, err = edgeqc("alarm", "shelve", name, "--state", state, "--hours", "48", "--why", "w")
            assert (code, "24" in err) == (1, True)
            assert edgeqc("alarm", "shelve", name, "--state", state, "--why", "test run")[0] == 0
            assert shown()[0]["state"] == "shelved"
            assert edgeqc("alarm", "unshelve", name, "--state", state)[0] == 0
            assert edgeqc("alarm", "remove", name, "--state", state, "--why", "workshop")[0] == 0
            assert edgeqc("alarm", "return", name, "--state", state)[0] == 0
            journal.append(raised(active=False))
            until(lambda: not shown())
            assert shown("--all")[0]["state"] == "normal"
        code, out, _ = edgeqc("alarm", "history", "--state", state, "--json")
        events = [json.loads(row)["event"] for row in out.splitlines()]
        assert events == ["clear", "return", "remove", "unshelve", "shelve", "ack", "raise"]
        figures = json.loads(edgeqc("alarm", "figures", "--state", state, "--json")[1])
        assert (figures["raised"], figures["answered"], figures["unacknowledged"]) == (1, 1, 0)
        assert edgeqc("alarm", "list", "--state", state)[2].startswith("No alarm stands")
        code, _, err = edgeqc("alarm", "ack", "*", "--state", state)
        assert (code, "no daemon answers here" in err) == (1, True)
    finally:
        journal.close()


def test_a_machine_is_taught_and_measured_from_csv(edgeqc, tmp_path):
    lots = np.random.default_rng(1)
    rows = lots.normal(0, 1, (4000, 2)) * [0.3, 0.02] + [30, 2]
    rows[3000:3200] += [-4, 0.4]
    lines = ["t,state,flow,pressure"]
    lines += [f"{at},{4 if at > 50 else 1},{flow:.4f},{pressure:.4f}" for at, (flow, pressure) in enumerate(rows)]
    (tmp_path / "good.csv").write_text("\n".join(lines[:2901]) + "\n")
    (tmp_path / "later.csv").write_text("\n".join([lines[0], *lines[2901:]]) + "\n")
    package = tmp_path / "pump" / "1"
    code, _, err = edgeqc("train", "tags", "--data", tmp_path / "good.csv", "--out", package, "--no-network")
    assert code == 0, err
    assert "NOT borne out" in err  # 6 minutes prove no rate of 1 a day
    learned = json.loads((tmp_path / "pump" / "1.report" / "report.json").read_text())
    assert (learned["learned_rows"], learned["network"]) == (2137, False)
    assert learned["promise"]["bound_per_day"] > 100
    report = tmp_path / "report.json"
    code, _, err = edgeqc("eval", "tags", "--data", tmp_path / "later.csv", "--model", package, "--report", report)
    assert code == 0, err
    found = json.loads(report.read_text())
    assert (found["alarms"], found["causal"]) == (1, True)
    page = report.with_suffix(".html").read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "")


def test_what_cannot_be_taught_is_said_with_its_reason(edgeqc, tmp_path):
    (tmp_path / "short.csv").write_text("t,x\n" + "".join(f"{at},{at % 3}\n" for at in range(50)))
    code, _, err = edgeqc("train", "tags", "--data", tmp_path / "short.csv", "--out", tmp_path / "p", "--no-network")
    assert (code != 0, "at least 200" in err) == (True, True)
    report = tmp_path / "r.json"
    code, _, err = edgeqc("eval", "tags", "--data", tmp_path, "--protocol", "skab", "--report", report)
    assert (code != 0, "this is not SKAB" in err) == (True, True)
    code, _, err = edgeqc("eval", "tags", "--data", tmp_path, "--report", report)
    assert (code, "--model" in err) == (2, True)

"""What both servers share: the journal of who was refused, and the picture of alerts that stand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import structlog
from server_box import Box

from edgeqc.core.refusals import KINDS
from edgeqc.journal import JournalReader, JournalWriter
from edgeqc.records import AlertChange, Event, Ne107, Started
from edgeqc.server.doorkeeper import Doorkeeper
from edgeqc.server.picture import Observer
from edgeqc.server.process import Desk
from edgeqc.server.shift import Shift
from edgeqc.settings import OpcuaServerSettings

HOME = {"bind": "127.0.0.1", "peers": ["127.0.0.1"], "port": 0}


@contextmanager
def box_at(folder: Path) -> Iterator[Box]:
    """No fixture: pytest would keep it, and with it the board's file, until after the look for what is left behind."""
    box = Box(folder, {"modbus": HOME})
    try:
        yield box
    finally:
        box.close()


@contextmanager
def desk_at(folder: Path) -> Iterator[tuple[Box, Desk]]:
    with box_at(folder) as box:
        row = box.board["server-modbus"]
        with closing(Desk(box.settings, run_dir=box.run_dir, row=row, log=structlog.get_logger())) as desk:
            yield box, desk


def journaled(box: Box, name: str) -> list[dict[str, object]]:
    with closing(JournalReader(box.state_dir / "journal" / "server-modbus")) as reader:
        bodies = [entry.body for entry in reader.read(100_000)]
    return [body.facts for body in bodies if isinstance(body, Event) and body.name == name]


def test_a_scanner_does_not_fill_the_journal(tmp_path: Path) -> None:
    with desk_at(tmp_path) as (box, desk):
        for _ in range(500):
            desk.on_client("client_refused", "10.0.0.9", "is not among the peers")
        assert journaled(box, "client_refused") == [{"peer": "10.0.0.9", "reason": "is not among the peers"}]


def test_a_guesser_of_names_and_passwords_does_not_fill_the_journal(tmp_path: Path) -> None:
    with desk_at(tmp_path) as (box, desk):
        settings = OpcuaServerSettings.model_validate({**HOME, "users": [{"name": "scada", "password": "0perator"}]})
        doorkeeper = Doorkeeper(settings, lambda name, who, reason: desk.refused(name, user=who, reason=reason))
        for number in range(500):
            assert doorkeeper.get_user(None, "scada", "guess") is None
            assert doorkeeper.get_user(None, f"name{number}", "guess") is None
        told = journaled(box, "login_refused")
        assert {facts["reason"] for facts in told} == {"wrong name or password", "too many wrong passwords"}
        assert len(told) == KINDS


def test_a_name_stays_locked_whatever_other_names_are_guessed() -> None:
    settings = OpcuaServerSettings.model_validate({**HOME, "users": [{"name": "scada", "password": "0perator"}]})
    doorkeeper = Doorkeeper(settings, lambda _name, _who, _reason: None)
    for _ in range(5):
        assert doorkeeper.get_user(None, "scada", "guess") is None
    for number in range(300):
        assert doorkeeper.get_user(None, f"name{number}", "guess") is None
    assert doorkeeper.get_user(None, "scada", "0perator") is None


def test_who_tries_again_with_the_right_password_gets_in_when_the_lock_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    settings = OpcuaServerSettings.model_validate({**HOME, "users": [{"name": "scada", "password": "0perator"}]})
    doorkeeper = Doorkeeper(settings, lambda _name, _who, _reason: None)
    for _ in range(5):
        assert doorkeeper.get_user(None, "scada", "old") is None
    for clock[0] in (1010.0, 1020.0, 1029.0):
        assert doorkeeper.get_user(None, "scada", "0perator") is None
    clock[0] = 1031.0
    assert doorkeeper.get_user(None, "scada", "old") is None, "one mistake is one again"
    assert doorkeeper.get_user(None, "scada", "0perator") is not None


def started(process: str) -> Started:
    return Started(process=process, run_id="1", version="0", config_digest="0")


def test_alerts_of_a_run_end_with_the_next_ones_start(tmp_path: Path) -> None:
    with desk_at(tmp_path) as (box, desk):
        box.journal.append(started("station-top"))
        box.alert("top.camera.lost", active=True)
        box.alert("top.plc.lost", active=True)
        assert set(desk.look().alerts) == {"top.camera.lost", "top.plc.lost"}
        box.journal.append(started("station-top"))
        box.alert("top.plc.lost", active=True)  # the next run tells what it finds
        picture = desk.look()
        assert (set(picture.alerts), picture.state) == ({"top.plc.lost"}, Ne107.FAILURE)
        box.alert("top.plc.lost", active=False)
        assert (desk.look().alerts, desk.look().state) == ({}, Ne107.NORMAL)


def test_alerts_of_what_is_not_configured_any_more_do_not_stand(tmp_path: Path) -> None:
    with box_at(tmp_path) as box:
        for writer in ("station-gone", "supervisor"):
            with closing(JournalWriter(box.state_dir / "journal" / writer, box.settings.journal)) as journal:
                journal.append(
                    AlertChange(id=writer, active=True, priority="high", ne107=Ne107.FAILURE, text="t", action="a")
                )
        with closing(Observer(box.settings, box.board, box.state_dir)) as observer:
            assert set(observer.look(Shift(box.state_dir, box.run_dir)).alerts) == {"supervisor"}

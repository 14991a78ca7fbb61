"""The office against a real mosquitto: nothing lost, nothing twice without saying so, whatever the broker does."""

import asyncio
import contextlib
import getpass
import json
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jsonschema
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgeqc import loading
from edgeqc.errors import EdgeqcError, PeerError, PeerTimeoutError
from edgeqc.journal import JournalWriter
from edgeqc.office import audit, commands, desk, outbox, tables
from edgeqc.office.mqtt import MqttConnection
from edgeqc.office.process import run_office
from edgeqc.records import (
    RECIPE_READY,
    AlertChange,
    Cause,
    Defect,
    Delivery,
    Event,
    Ledger,
    Ne107,
    PartRecord,
    Trigger,
    Verdict,
)
from edgeqc.settings import JournalSettings, MqttSettings, Settings
from edgeqc.sim.broker import BrokerTls, Listener, SimBroker, mosquitto_path

pytestmark = pytest.mark.skipif(
    mosquitto_path() is None and os.environ.get("EDGEQC_REQUIRE_PEERS") != "1",
    reason="mosquitto is not installed (apt-get install mosquitto); EDGEQC_REQUIRE_PEERS=1 makes this a failure",
)

PATIENCE_S = 40.0
SCHEMAS = Path(__file__).parents[2] / "config" / "schema"
VALIDATORS = {
    f"edgeqc.{file.stem}/1": jsonschema.Draft202012Validator(json.loads(file.read_text()))
    for file in SCHEMAS.glob("*.json")
    if file.stem in {"verdict", "state", "info", "health", "alert", "event", "answer"}
}


def settings(port: int, **mqtt) -> Settings:
    return Settings.model_validate(
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
            "mqtt": {"host": "127.0.0.1", "port": port, "health_s": 0.5, **mqtt},
        }
    )


class Line:
    """A journal to write to, and an office that makes something of it."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.journal = JournalWriter(state_dir / "journal" / "station-top", JournalSettings())
        self.count = 0

    def parts(self, count: int) -> None:
        for _ in range(count):
            self.count += 1
            now_ns = time.monotonic_ns()
            record = PartRecord(
                station="top",
                trigger=Trigger(sequence=self.count, part_id=f"P{self.count}", at_ns=now_ns, wall_ns=time.time_ns()),
                frame_id=self.count,
                verdict=Verdict.REJECT,
                cause=Cause.DEFECT,
                score=0.75,
                threshold=0.5,
                ledger=Ledger(trigger_ns=now_ns, frame_ns=now_ns, prepared_ns=now_ns, scored_ns=now_ns),
                deadline_ns=now_ns + 60_000_000,
                recipe="cap",
                model_digest=b"\x01" * 32,
                defects=(Defect(name="dent", score=0.75, x_px=1, y_px=2, width_px=3, height_px=4),),
            )
            self.journal.append(record)
            self.journal.append(
                Delivery(
                    sequence=self.count,
                    verdict=Verdict.REJECT,
                    cause=Cause.DEFECT,
                    delivered=True,
                    delivered_ns=now_ns + 20_000_000,
                    late=False,
                    late_score=math.nan,
                )
            )

    def alert(self, *, active: bool, name: str = "top.camera.lost") -> None:
        self.journal.append(
            AlertChange(id=name, active=active, priority="high", ne107=Ne107.FAILURE, text="No frame", action="Look")
        )

    @contextmanager
    def office(self, configuration: Settings) -> Iterator[None]:
        """Run the office in a thread with a loop of its own, until told to stop."""
        loop = asyncio.new_event_loop()
        stop = asyncio.Event()
        beats: list[float] = []
        faults: list[BaseException] = []

        def run() -> None:
            try:
                loop.run_until_complete(
                    run_office(
                        configuration,
                        state_dir=self.state_dir,
                        run_dir=self.state_dir,
                        beat=lambda: beats.append(time.monotonic()),
                        health=lambda: {"camera.top": {"ne107": "normal"}},
                        stop=stop,
                    )
                )
            except BaseException as fault:  # noqa: BLE001 - the thread's root; the test fails below
                faults.append(fault)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            until(lambda: archive_open(self))
            yield
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(PATIENCE_S)
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
        assert not faults
        assert beats

    def rows(self, query: str) -> list[sqlite3.Row]:
        with closing(sqlite3.connect(self.state_dir / tables.FILE_NAME)) as database:
            database.row_factory = sqlite3.Row
            return database.execute(query).fetchall()


@pytest.fixture
def line(tmp_path) -> Iterator[Line]:
    made = Line(tmp_path / "state")
    yield made
    made.journal.close()


@pytest.fixture
def broker() -> Iterator[SimBroker]:
    with SimBroker() as made:
        yield made


def listen(broker: SimBroker, topic: str = "#", **options) -> Listener:
    return Listener("127.0.0.1", broker.port, topic, **options)


def until(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "not within the time a loaded box needs"
        time.sleep(0.02)  # other processes have to do it


def assert_complete(messages: list, count: int) -> None:
    """Every number once; again only with replayed, identical otherwise; first arrivals in order."""
    bodies = [message.json for message in messages]
    seen: dict[int, dict] = {}
    for body in bodies:
        before = seen.setdefault(body["seq"], body)
        if before is not body:
            assert body["replayed"] is True
            assert {**body, "replayed": None} == {**before, "replayed": None}
    assert list(seen) == list(range(1, count + 1))


def test_every_message_is_what_its_schema_says(line, broker):
    with listen(broker) as listener, line.office(settings(broker.port)):
        line.alert(active=True)
        line.journal.append(Event(name="recipe_changed", facts={"recipe": "cap"}))
        line.parts(20)
        assert len(listener.wait(20, "/verdict", timeout_s=PATIENCE_S)) == 20
        until(lambda: listener.received("/verdict/last") and listener.received("/health"))
    kinds = Counter()
    for message in listener.received():
        if not message.payload:
            continue
        VALIDATORS[message.json["schema"]].validate(message.json)
        assert message.properties["ContentType"] == "application/json"
        assert ("schema", message.json["schema"]) in [tuple(pair) for pair in message.properties["UserProperty"]]
        kinds[message.json["schema"]] += 1
    assert set(kinds) == set(VALIDATORS) - {"edgeqc.answer/1"}


def test_live_messages_expire_and_retained_ones_do_not(line, broker):
    with listen(broker) as listener, line.office(settings(broker.port, live_expiry_s=33)):
        until(lambda: listener.received("/state"))
        line.parts(1)
        (verdict,) = listener.wait(1, "/verdict", timeout_s=PATIENCE_S)
    assert 30 <= verdict.properties["MessageExpiryInterval"] <= 33
    assert verdict.json["replayed"] is False
    assert all("MessageExpiryInterval" not in message.properties for message in listener.received("/state"))


def test_state_info_and_health_are_there_for_who_comes_later(line, broker):
    with line.office(settings(broker.port)):
        with listen(broker) as early:
            until(lambda: early.received("/health"))
        with listen(broker) as late:
            until(lambda: {"state", "info", "health"} <= {m.topic.rpartition("/")[2] for m in late.received()})
            first = {m.topic.rpartition("/")[2]: m for m in reversed(late.received())}
            assert all(first[name].retain for name in ("state", "info", "health"))
            assert first["state"].json["state"] == "online"
    with listen(broker) as after:
        until(lambda: after.received("/state"))
        state = after.received("/state")[0].json
        assert (state["state"], state["reason"]) == ("offline", "stop")
        assert not after.received("/verdict")


def test_an_alert_is_retained_until_it_clears(line, broker):
    topic = "edgeqc/n1/alert/top.camera.lost"
    with line.office(settings(broker.port)), listen(broker) as listener:
        until(lambda: listener.received("/state"))
        line.alert(active=True)
        until(lambda: listener.payloads(topic))
        with listen(broker, topic) as late:
            until(late.received)
            assert (late.received()[0].retain, late.received()[0].json["state"]) == (True, "active_unacked")
        line.alert(active=False)
        until(lambda: [m for m in listener.received(topic) if not m.payload])
        assert [body["state"] for body in listener.payloads(topic)] == ["active_unacked", "normal"]
        with listen(broker) as late:
            until(lambda: late.received("/state"))
            assert not late.received(topic)


def ask(broker: SimBroker, verb: str, body: object, **properties) -> None:
    """Say something as a plant's own client would."""
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    told = Properties(PacketTypes.PUBLISH)
    for name, value in properties.items():
        setattr(told, name, value)
    payload = body if isinstance(body, bytes) else json.dumps(body)
    client.publish(f"edgeqc/n1/cmd/{verb}", payload, qos=1, properties=told).wait_for_publish(PATIENCE_S)
    client.disconnect()
    client.loop_stop()


def test_an_alert_is_acknowledged_over_mqtt_and_told_by_whom(line, broker):
    topic = "edgeqc/n1/alert/top.camera.lost"
    with line.office(settings(broker.port, commands=["ack", "shelve"])), listen(broker) as listener:
        until(lambda: listener.received("/state"))
        line.alert(active=True)
        until(lambda: listener.payloads(topic))
        args = {"id": "top.camera.lost", "note": "cable is on its way"}
        ask(broker, "ack", {"transaction": "u-17", "user": "maint1", "args": args})
        until(lambda: len(listener.payloads(topic)) == 2)
        until(lambda: listener.payloads("edgeqc/n1/cmd/ack/result"))
        (answer,) = listener.payloads("edgeqc/n1/cmd/ack/result")
        told = listener.payloads(topic)[-1]
        assert (told["state"], told["acked_by"], told["note"]) == ("active_acked", "maint1", "cable is on its way")
        assert (answer["status"], answer["transaction"]) == ("ok", "u-17")
        for body in (answer, told):
            VALIDATORS[body["schema"]].validate(body)
        assert not [m for m in listener.received("/result") if m.retain]
        line.alert(active=False)
        until(lambda: [m for m in listener.received(topic) if not m.payload])
    (event,) = line.rows("SELECT facts FROM events WHERE name='alarm_command'")
    assert json.loads(event["facts"])["by"] == "maint1"
    (sealed,) = audit.read(line.state_dir / audit.FILE_NAME)
    assert (sealed.fields["who"], sealed.fields["what"]) == ("maint1", "alarm_command")
    assert (sealed.fields["facts"]["verb"], sealed.fields["facts"]["why"]) == ("ack", "cable is on its way")


def test_an_answer_goes_where_the_client_wants_it(line, broker):
    with line.office(settings(broker.port, commands=["ack"])), listen(broker) as listener:
        until(lambda: listener.received("/state"))
        ask(
            broker,
            "ack",
            {"user": "m", "args": {"id": "no.such"}},
            ResponseTopic="plant/panel7",
            CorrelationData=b"c1",
        )
        until(lambda: listener.received("plant/panel7"))
        (message,) = listener.received("plant/panel7")
        assert message.properties["CorrelationData"] == b"c1".hex()
        assert "no alarm no.such" in message.json["error"]["message"]


@pytest.mark.parametrize(
    ("verb", "body", "reason"),
    [
        ("ack", b"{", "no JSON"),
        ("ack", b"[]", "JSON object"),
        ("ack", b"x" * 5000, "4096"),
        ("ack", {"args": {"id": "top.camera.lost"}}, "user"),
        ("ack", {"user": "m", "args": {"id": 7}}, "id"),
        ("remove", {"user": "m", "args": {"id": "top.camera.lost", "note": "n"}}, "mqtt.commands"),
        ("explode", {"user": "m"}, "mqtt.commands"),
        ("shelve", {"user": "m", "args": {"id": "top.camera.lost", "note": "n", "hours": "x"}}, "hours"),
        ("ack", {"user": "m", "args": {"id": "top.camera.lost", "hours": 10**400}}, "hours"),
    ],
)
def test_a_command_that_makes_no_sense_is_answered_and_does_nothing(line, broker, verb, body, reason):
    with line.office(settings(broker.port, commands=["ack", "shelve"])), listen(broker) as listener:
        until(lambda: listener.received("/state"))
        line.alert(active=True)
        until(lambda: listener.payloads("edgeqc/n1/alert/top.camera.lost"))
        ask(broker, verb, body)
        until(lambda: listener.payloads(f"edgeqc/n1/cmd/{verb}/result"))
        (answer,) = listener.payloads(f"edgeqc/n1/cmd/{verb}/result")
        assert (answer["status"], reason in answer["error"]["message"]) == ("error", True)
        assert len(listener.payloads("edgeqc/n1/alert/top.camera.lost")) == 1


def test_retained_commands_are_not_carried_out(line, broker):
    with listen(broker) as listener:
        client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        body = json.dumps({"user": "m", "args": {"id": "*"}})
        client.publish("edgeqc/n1/cmd/ack", body, qos=1, retain=True).wait_for_publish(PATIENCE_S)
        client.disconnect()
        client.loop_stop()
        with line.office(settings(broker.port, commands=["ack"])):
            until(lambda: listener.received("/state"))
            line.alert(active=True)
            until(lambda: listener.payloads("edgeqc/n1/alert/top.camera.lost"))
            ask(broker, "ack", {"user": "m", "args": {"id": "nobody"}})  # whatever came before it has been seen
            until(lambda: listener.payloads("edgeqc/n1/cmd/ack/result"))
            states = [told["state"] for told in listener.payloads("edgeqc/n1/alert/top.camera.lost")]
    assert states == ["active_unacked"]


def test_an_alert_is_shelved_from_the_box_itself(line, broker):
    topic = "edgeqc/n1/alert/top.camera.lost"
    with line.office(settings(broker.port)), listen(broker) as listener:
        line.alert(active=True)
        until(lambda: listener.payloads(topic))
        asked = {"verb": "shelve", "args": {"id": "top.camera.lost", "note": "being repaired", "hours": 2}}
        said = commands.ask(line.state_dir, asked)
        assert said["status"] == "ok"
        until(lambda: listener.payloads(topic)[-1]["state"] == "shelved")
        assert listener.payloads(topic)[-1]["covered_by"] == getpass.getuser()
        assert commands.ask(line.state_dir, {"verb": "ack", "id": "top.camera.lost"})["status"] == "error"
        assert commands.ask(line.state_dir, {"verb": "unshelve", "user": "anna", "id": "*"})["status"] == "ok"
        until(lambda: listener.payloads(topic)[-1]["state"] == "active_unacked")
    with pytest.raises(OSError, match=r"No such file|refused"):
        commands.ask(line.state_dir, {"verb": "ack", "id": "*"})


def test_an_alert_that_cleared_while_the_broker_was_away_is_emptied(line, broker):
    topic = "edgeqc/n1/alert/top.camera.lost"
    with line.office(settings(broker.port)), listen(broker) as listener:
        until(lambda: listener.received("/state"))
        line.alert(active=True)
        until(lambda: listener.payloads(topic))
        broker.save()
        broker.kill()
        line.alert(active=False)
        line.alert(active=True, name="top.plc.lost")
        until(lambda: len(line.rows("SELECT id FROM alerts")) == 3)
        broker.start()
        until(lambda: line.rows("SELECT count(*) AS n FROM outbox")[0]["n"] == 0)
        with listen(broker) as late:
            until(lambda: late.received("/alert/top.plc.lost"))
            assert late.received("/alert/top.plc.lost")[0].retain
            assert not late.received(topic)


@pytest.mark.timeout(180)
def test_a_broker_that_is_killed_and_comes_back_misses_nothing(line, broker):
    with line.office(settings(broker.port)), listen(broker, client_id="scada", qos=0) as listener:
        broker.save()
        for step in range(20):
            line.parts(50)
            if step == 6:
                broker.kill()
            if step == 12:
                broker.start()
            time.sleep(0.05)  # a line does not make all its parts at once
        until(lambda: len({m.json["seq"] for m in listener.received("/verdict")}) == 1000)
        until(lambda: line.rows("SELECT count(*) AS n FROM outbox")[0]["n"] == 0)
    messages = listener.received("/verdict")
    assert_complete(messages, 1000)
    assert any(m.json["replayed"] for m in messages)
    assert not any(m.retain for m in messages)
    assert not any("MessageExpiryInterval" in m.properties for m in messages if m.json["replayed"])
    assert [body["reason"] for body in listener.payloads("edgeqc/n1/state")][-1] == "reconnect"
    assert len(line.rows("SELECT id FROM parts")) == 1000


@pytest.mark.timeout(180)
def test_a_broker_that_hangs_misses_nothing(line, broker):
    with line.office(settings(broker.port, keepalive_s=1)), listen(broker, client_id="scada") as listener:
        line.parts(300)
        listener.wait(300, "/verdict", timeout_s=PATIENCE_S)
        broker.freeze()
        line.parts(400)
        time.sleep(6)  # beyond keep-alive and connect timeout: the office must give the connection up
        line.parts(300)
        broker.thaw()
        until(lambda: len({m.json["seq"] for m in listener.received("/verdict")}) == 1000)
        until(lambda: line.rows("SELECT count(*) AS n FROM outbox")[0]["n"] == 0)
    assert_complete(listener.received("/verdict"), 1000)


@pytest.mark.timeout(120)
def test_an_office_killed_at_any_moment_tells_every_part_and_archives_it_once(line, broker):
    with listen(broker, client_id="scada") as listener:
        for round_ in range(4):
            process = start_office(line, settings(broker.port))
            until(lambda: archive_open(line))
            for _ in range(5):
                line.parts(20)
                time.sleep(0.02 * (round_ + 1))  # where the kill falls is different each time
            process.send_signal(signal.SIGKILL)
            process.wait(10)
        process = start_office(line, settings(broker.port))
        until(lambda: len({m.json["seq"] for m in listener.received("/verdict")}) == line.count)
        until(lambda: line.rows("SELECT count(*) AS n FROM outbox")[0]["n"] == 0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert_complete(listener.received("/verdict"), line.count)
    assert [row["sequence"] for row in line.rows("SELECT sequence FROM parts ORDER BY id")] == list(
        range(1, line.count + 1)
    )


def test_the_will_tells_of_a_killed_office(line, broker):
    with listen(broker) as listener:
        process = start_office(line, settings(broker.port))
        try:
            until(lambda: listener.payloads("edgeqc/n1/state"))
        finally:
            process.kill()
            process.wait(10)
        until(lambda: len(listener.payloads("edgeqc/n1/state")) == 2)
        last = listener.payloads("edgeqc/n1/state")[-1]
        assert (last["state"], last["reason"]) == ("offline", "will")
        VALIDATORS["edgeqc.state/1"].validate(last)
    with listen(broker) as late:
        until(lambda: late.received("/state"))
        assert late.received("/state")[0].retain


def test_a_refused_topic_goes_to_the_dead_letters_and_stops_nothing_else(line):
    acl = "\n".join(
        [
            "topic read #",
            *(f"topic write edgeqc/n1/{topic}" for topic in ("state", "info", "health", "event", "alert/#")),
        ]
    )
    with SimBroker(acl=acl) as broker, line.office(settings(broker.port)), listen(broker) as listener:
        line.parts(5)
        line.alert(active=True)
        until(lambda: len(line.rows("SELECT id FROM dead_letters")) == 5)
        until(lambda: listener.payloads("edgeqc/n1/alert/top.camera.lost"))
        until(lambda: listener.payloads("edgeqc/n1/alert/office.message.refused"))
        refusals = [m for m in listener.payloads("edgeqc/n1/event") if m["name"] == "message_refused"]
        assert [m["facts"]["topic"] for m in refusals if m["facts"]["topic"] == "verdict"] == ["verdict"]
        until(lambda: line.rows("SELECT count(*) AS n FROM outbox")[0]["n"] == 0)
    assert {(row["topic"], row["reason"]) for row in line.rows("SELECT * FROM dead_letters")} == {
        ("verdict", "Not authorized")
    }


def test_a_message_larger_than_the_broker_takes_is_a_dead_letter(line):
    with SimBroker(options=("max_packet_size 900",)) as broker, line.office(settings(broker.port)):
        line.parts(3)
        line.journal.append(Event(name="small", facts={}))
        until(lambda: len(line.rows("SELECT id FROM dead_letters")) >= 3)
        until(lambda: line.rows("SELECT count(*) AS n FROM outbox")[0]["n"] == 0)
    assert "900 bytes" in line.rows("SELECT reason FROM dead_letters")[0]["reason"]


def test_one_message_that_is_too_large_costs_no_other(line):
    with SimBroker(options=("max_packet_size 650",)) as broker, line.office(settings(broker.port)):
        line.journal.append(Event(name="large", facts={f"text{number}": "x" * 200 for number in range(6)}))
        until(lambda: line.rows("SELECT id FROM dead_letters"))
        with listen(broker) as listener:
            line.journal.append(Event(name="small", facts={}))
            until(lambda: [m for m in listener.payloads("edgeqc/n1/event") if m["name"] == "small"])
    assert len(line.rows("SELECT id FROM dead_letters")) == 1


def test_what_the_archive_knows_is_told_once_it_is_open(line, broker, monkeypatch):
    facts = {"recipe": "cap", "model": "cap@1", "model_digest": "01" * 32, "backend": "onnxruntime", "why": "w"}
    line.journal.append(Event(name=RECIPE_READY, facts={**facts, "vouched": "v"}))
    with line.office(settings(broker.port)):
        until(lambda: line.rows("SELECT * FROM recipes"))
    opened = tables.open_archive

    def late(path):  # as the check of a large file makes it
        until(lambda: listener.received("/info"))
        return opened(path)

    monkeypatch.setattr(tables, "open_archive", late)
    monkeypatch.setattr(outbox, "ARCHIVE_S", 0.0)
    with SimBroker() as other, listen(other) as listener:
        with line.office(settings(other.port)):
            until(lambda: any(info["stations"][0]["models"] for info in listener.payloads("edgeqc/n1/info")))
        assert not listener.payloads("edgeqc/n1/info")[0]["stations"][0]["models"]
        assert [body["reason"] for body in listener.payloads("edgeqc/n1/state")] == ["start", "stop"]


def test_the_configurations_digest_is_that_of_check_and_no_password_is_in_it(line, broker, monkeypatch):
    known = settings(broker.port, user="u", password="secret://broker.pw")
    monkeypatch.setenv("EDGEQC_SECRET_BROKER_PW", "geheim")
    with line.office(known), listen(broker) as listener:
        until(lambda: listener.payloads("edgeqc/n1/info"))
        assert listener.payloads("edgeqc/n1/info")[0]["config_hash"] == loading.digest(known)[:16]


def test_the_offices_own_alert_stays_acknowledged_when_the_broker_comes_back(line, broker):
    (line.state_dir / f"{tables.FILE_NAME}.damaged-1").touch()
    topic = "edgeqc/n1/alert/office.archive.damaged"
    with line.office(settings(broker.port)), listen(broker) as listener:
        until(lambda: line.rows("SELECT id FROM alerts"))
        assert commands.ask(line.state_dir, {"verb": "ack", "user": "anna", "id": "*"})["status"] == "ok"
        until(lambda: listener.payloads(topic) and listener.payloads(topic)[-1]["state"] == "active_acked")
        broker.kill()
        broker.start()
        with listen(broker) as late:
            until(lambda: late.payloads(topic))
            assert (late.payloads(topic)[-1]["state"], late.payloads(topic)[-1]["acked_by"][:4]) == (
                "active_acked",
                "anna",
            )


def test_what_people_said_to_the_offices_own_alert_holds_when_its_text_changes(line, broker, monkeypatch):
    expires = ["in 9 days"]
    monkeypatch.setattr(desk, "expiring", lambda *_: expires[0])
    monkeypatch.setattr(desk, "_CERTIFICATES_S", 0.1)
    topic = "edgeqc/n1/alert/office.certificate.expires"

    def shown() -> tuple[str, str]:
        bodies = listener.payloads(topic)
        return (bodies[-1]["state"], bodies[-1]["text"]) if bodies else ("", "")

    with line.office(settings(broker.port)), listen(broker) as listener:
        until(lambda: shown() == ("active_unacked", "in 9 days"))
        assert commands.ask(line.state_dir, {"verb": "ack", "user": "anna", "id": "*"})["status"] == "ok"
        until(lambda: shown()[0] == "active_acked")
        expires[0] = "in 8 days"
        until(lambda: shown() == ("active_acked", "in 8 days"))
        order = {"verb": "remove", "user": "anna", "id": "office.certificate.expires", "note": "a new one is ordered"}
        assert commands.ask(line.state_dir, order)["status"] == "ok"
        until(lambda: shown()[0] == "out_of_service")
        expires[0] = "in 7 days"
        until(lambda: shown() == ("out_of_service", "in 7 days"))
        told = dict.fromkeys((body["event"], body["text"]) for body in listener.payloads(topic))  # once each
        assert [event for event, _ in told] == ["raise", "ack", "update", "remove", "update"]
        expires[0] = ""
        until(lambda: listener.payloads(topic)[-1]["event"] == "vanish")
        assert shown()[0] == "out_of_service"


@contextmanager
def deafening(port: int) -> Iterator[int]:
    """The port of a way to the broker on which each subscription is refused, as a broker with rights for topics would."""
    ends: list[socket.socket] = []

    def carry(source: socket.socket, sink: socket.socket, change: Callable[[bytes], bytes]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(change(data))
            sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = door.accept()
                broker = socket.create_connection(("127.0.0.1", port))
                ends.extend((client, broker))
                threading.Thread(target=carry, args=(client, broker, bytes), daemon=True).start()
                threading.Thread(target=carry, args=(broker, client, refused), daemon=True).start()

    def refused(data: bytes) -> bytes:
        """Granted QoS 1 becomes 0x87, not authorized; a SUBACK comes by itself, or behind a CONNACK."""
        at = data.find(b"\x90\x04")
        return data if at < 0 else data[: at + 5] + b"\x87" + data[at + 6 :]

    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=serve, daemon=True).start()
        yield door.getsockname()[1]
        door.shutdown(socket.SHUT_RDWR)
    for end in ends:
        end.close()


def test_a_broker_that_lets_us_hear_no_commands_is_told_of_and_all_else_goes_on(line, broker):
    with deafening(broker.port) as port, line.office(settings(port, commands=["ack"])), listen(broker) as listener:
        until(lambda: [m for m in listener.payloads("edgeqc/n1/event") if m["name"] == "message_refused"])
        (event,) = [m for m in listener.payloads("edgeqc/n1/event") if m["name"] == "message_refused"]
        assert (event["facts"]["topic"], "Not authorized" in event["facts"]["reason"]) == ("cmd/+", True)
        line.parts(1)
        assert len(listener.wait(1, "/verdict", timeout_s=PATIENCE_S)) == 1


@pytest.mark.parametrize("field", ["user", "note"])
def test_half_a_character_in_a_command_is_refused_and_the_office_goes_on(line, broker, field):
    with line.office(settings(broker.port)):
        line.alert(active=True)
        until(lambda: line.rows("SELECT id FROM alerts"))
        said = commands.ask(line.state_dir, {"verb": "ack", "user": "anna", "id": "*", field: "\ud800"})
        assert said["status"] == "error"
        assert field in said["error"]["message"]
        assert commands.ask(line.state_dir, {"verb": "ack", "user": "anna", "id": "*"})["status"] == "ok"


def test_user_and_password_open_the_door(line):
    with SimBroker(users={"edge": "s3cret"}) as broker:
        known = {"user": "edge", "password": "s3cret"}
        with line.office(settings(broker.port, **known)), listen(broker, **known) as listener:
            line.parts(3)
            assert len(listener.wait(3, "/verdict", timeout_s=PATIENCE_S)) == 3
        with pytest.raises(PeerError, match=r"Not authorized|Bad user"):
            connect(settings(broker.port, user="edge", password="wrong").mqtt)


def test_a_backlog_from_before_the_office_started_is_marked_as_replayed(line, broker):
    nobody = socket.create_server(("127.0.0.1", 0))
    port = nobody.getsockname()[1]
    nobody.close()
    with line.office(settings(port)):
        line.parts(10)
        until(lambda: archive_open(line) and line.rows("SELECT count(*) AS n FROM outbox")[0]["n"] == 10)
    with line.office(settings(broker.port)), listen(broker) as listener:
        until(lambda: line.rows("SELECT count(*) AS n FROM outbox")[0]["n"] == 0)
        line.parts(1)
        until(lambda: [m for m in listener.received("/verdict") if m.json["seq"] == 11])
        assert [m.json["replayed"] for m in listener.received("/verdict") if m.json["seq"] == 11] == [False]
        assert all(m.json["replayed"] for m in listener.received("/verdict") if m.json["seq"] < 11)


def test_nobody_there_is_a_peer_error():
    nobody = socket.create_server(("127.0.0.1", 0))
    port = nobody.getsockname()[1]
    nobody.close()
    with pytest.raises(PeerError, match="refused"):
        connect(settings(port).mqtt)


def test_a_broker_that_takes_the_connection_and_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr("edgeqc.office.mqtt.CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        began = time.monotonic()
        with pytest.raises(PeerTimeoutError, match="no answer"):
            connect(settings(mute.getsockname()[1]).mqtt)
        assert time.monotonic() - began < 10


class Authority:
    """A certificate authority of our own and what it signed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA {folder.name}")])
        self.ca = folder / "ca.pem"
        self._write(self.ca, self._sign("ca", self._name, self._key, is_ca=True))

    def issue(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate, private_key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        self._write(certificate, self._sign(name, subject, key))
        private_key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, private_key

    def _sign(self, name: str, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_ca: bool = False):
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if is_ca:
            usage = x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            )
            builder = builder.add_extension(usage, critical=True)
        else:
            names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.DNSName(name)])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, path: Path, certificate: x509.Certificate) -> None:
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture
def tls_broker(authority) -> Iterator[SimBroker]:
    certificate, private_key = authority.issue("broker")
    tls = BrokerTls(ca=authority.ca, certificate=certificate, private_key=private_key, client_certificates=True)
    with SimBroker(tls=tls) as made:
        yield made


def test_tls_with_certificates_on_both_sides_delivers(line, authority, tls_broker):
    certificate, private_key = authority.issue("edge1")
    tls = {"ca": authority.ca, "certificate": certificate, "private_key": private_key}
    with line.office(settings(tls_broker.port, host="localhost", tls=tls)):
        line.parts(5)
        until(lambda: len(rows_if_open(line) or []) == 5)
        until(lambda: line.rows("SELECT count(*) AS n FROM outbox")[0]["n"] == 0)
    assert line.rows("SELECT * FROM dead_letters") == []


def test_tls_without_a_client_certificate_says_what_is_missing(authority, tls_broker):
    with pytest.raises(PeerError, match=r"client certificate|certificate required|alert"):
        connect(settings(tls_broker.port, host="localhost", tls={"ca": authority.ca}).mqtt)


def test_a_broker_signed_by_a_stranger_is_not_trusted(tmp_path, tls_broker):
    stranger = Authority(tmp_path)
    with pytest.raises(PeerError, match=r"mqtt\.tls\.ca"):
        connect(settings(tls_broker.port, host="localhost", tls={"ca": stranger.ca}).mqtt)


def test_a_broker_of_another_name_is_not_trusted(authority, tls_broker):
    with pytest.raises(PeerError, match=r"host its name"):
        connect(settings(tls_broker.port, host="127.0.0.1", tls={"ca": authority.ca}).mqtt)


def test_a_missing_certificate_file_is_a_peer_error(tmp_path, tls_broker):
    with pytest.raises(PeerError, match="No such file"):
        connect(settings(tls_broker.port, tls={"ca": tmp_path / "none.pem"}).mqtt)


def test_a_simulated_broker_that_cannot_start_says_why():
    with pytest.raises(EdgeqcError, match="nonsense"), SimBroker(options=("nonsense 1",)):
        pass


def connect(mqtt: MqttSettings | None) -> None:
    """Open a connection and close it again."""
    assert mqtt is not None
    MqttConnection(mqtt, client_id="t", will=("t", b""), clean_start=True, wake=lambda: None).close()


def archive_open(line: Line) -> bool:
    return rows_if_open(line) is not None


def rows_if_open(line: Line) -> list | None:
    try:
        return line.rows("SELECT id FROM parts")
    except sqlite3.Error:
        return None


def start_office(line: Line, configuration: Settings) -> subprocess.Popen:
    """The office as a process of its own, ended by SIGTERM."""
    program = textwrap.dedent("""
        import asyncio, signal, sys
        from pathlib import Path
        from edgeqc.office.process import run_office
        from edgeqc.settings import Settings

        async def main():
            stop = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
            state = Path(sys.argv[2])
            await run_office(Settings.model_validate_json(sys.argv[1]), state_dir=state, run_dir=state,
                             beat=lambda: None, health=dict, stop=stop)

        asyncio.run(main())
    """)
    return subprocess.Popen(
        [sys.executable, "-c", program, configuration.model_dump_json(by_alias=True), str(line.state_dir)],
        stdout=subprocess.DEVNULL,
    )

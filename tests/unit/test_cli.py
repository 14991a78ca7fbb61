"""What the user types: exit codes, streams, JSON shapes, and that nothing ever runs in part."""

import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import jsonschema
import numpy as np
import pytest
import typer
import yaml
from pymodbus.client import ModbusTcpClient

from edgeqc import __version__, loading, rights
from edgeqc.cli import main, peers
from edgeqc.cli.config import schema, schema_text
from edgeqc.cli.demo import _emptied
from edgeqc.cli.init import Profile
from edgeqc.cli.journal import in_order
from edgeqc.cli.records import moment_ns
from edgeqc.cli.state import LOCK
from edgeqc.errors import EdgeqcError
from edgeqc.journal import JournalReader, JournalWriter
from edgeqc.journal.codec import RECORD_BYTES
from edgeqc.office import tables
from edgeqc.records import Event
from edgeqc.settings import JournalSettings
from edgeqc.sim.broker import Listener, SimBroker, mosquitto_path
from edgeqc.sim.plc import SimPlc
from edgeqc.sim.stage import Stage
from edgeqc.sim.tags import SimTags, tag_settings

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "engines/demo-part/1"
EXAMPLES = sorted((ROOT / "config").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def edgeqc(capsys):
    """Run one command in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def line(**changes):
    """A configuration that runs on any box, written to line.yaml."""
    station = {
        "name": "top",
        "takt_ms": 100,
        "budget_ms": 80,
        "camera": {"type": "replay", "folder": "parts", "width_px": 64, "height_px": 48, "rate_hz": 100},
        "recipe": {"engine": str(ENGINE)},
        "plc": {"type": "none"},
    }
    station |= changes.pop("station", {})
    settings = {"version": 1, "node": "box", "state_dir": "state", "stations": [station]}
    settings |= {"engines": {"trust": str(ROOT / "engines" / "trust")}} | changes
    Path("line.yaml").write_text(json.dumps(settings))  # JSON is YAML
    return Path("line.yaml")


def drawn(folder="parts", count=3):
    Path(folder).mkdir()
    for number in range(count):
        cv2.imwrite(f"{folder}/{number}.png", np.full((48, 64), 40 + number, np.uint8))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_configuration_passes_check(example, edgeqc):
    code, out, err = edgeqc("check", example)
    assert (code, "valid" in out) == (0, True), err


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_names_its_schema_and_fits_it(example):
    text = example.read_text()
    assert text.startswith("# yaml-language-server: $schema=schema/line.json\n")
    jsonschema.validate(yaml.safe_load(text), schema())


def test_committed_schema_is_the_generated_one(edgeqc):
    code, out, _ = edgeqc("config", "schema")
    assert code == 0
    assert out == (ROOT / "config/schema/line.json").read_text(), "edgeqc config schema > config/schema/line.json"
    jsonschema.Draft202012Validator.check_schema(json.loads(out))


def test_schema_refuses_what_check_refuses():
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"version": 1, "node": "a", "stations": [], "colour": 1}, schema())


@pytest.mark.parametrize("profile", list(Profile))
def test_init_writes_what_check_takes(profile, edgeqc):
    code, _, _ = edgeqc("init", "--profile", profile, "new.yaml")
    assert code == 0
    assert Path("schema/line.json").read_text() == schema_text() + "\n"
    code, _, err = edgeqc("check", "new.yaml")
    assert code == 0, err


def test_init_overwrites_only_when_told(edgeqc):
    Path("line.yaml").write_text("mine")
    assert edgeqc("init")[0] == 2
    assert Path("line.yaml").read_text() == "mine"
    assert edgeqc("init", "--force")[0] == 0


def test_faults_are_on_stderr_with_exit_code_3(edgeqc):
    code, out, err = edgeqc("check", line(colour="red", station={"takt_ms": -1}))
    assert (code, out) == (3, "")
    assert "line.yaml:1:" in err
    assert "colour: is no key here" in err
    assert "stations[0].takt_ms: -1 is not over 0" in err
    assert "2 faults in the configuration; nothing was started." in err


def test_check_as_json_has_its_schema_and_all_faults(edgeqc):
    code, out, _ = edgeqc("check", line(colour="red", station={"takt_ms": -1}), "--json")
    report = json.loads(out)
    assert code == 3
    assert (report["schema"], report["ok"], len(report["faults"])) == ("edgeqc.check/1", False, 2)
    code, out, _ = edgeqc("check", line(), "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["faults"]) == (0, True, [])
    assert report["digest"] == loading.digest(loading.load(Path("line.yaml")))


def test_what_no_package_may_do_is_told_by_check_and_of_all_at_once(edgeqc):
    """The station would end with it, and systemd does not start it again."""
    other = {"number": 2, "name": "lid", "engine": "nowhere/1"}
    recipe = {"number": 1, "engine": str(ENGINE), "precision": "int8"}
    plc = {"type": "modbus", "host": "127.0.0.1", "registers": {"recipe": True}}
    path = line(station={"recipe": recipe, "plc": plc, "changeover": {"recipes": [other]}})
    code, out, _ = edgeqc("check", path, "--json")
    first, second = json.loads(out)["faults"]
    assert code == 5
    assert "has no model.int8-cpu.onnx; make it with: edgeqc engine convert" in first
    assert "nowhere" in second
    assert edgeqc("run", path)[0] == 5


def test_check_warns_where_a_package_was_trained_with_another_region(edgeqc, tmp_path):
    """Its threshold is one of located parts, or of whole pictures."""
    engine = Path(shutil.copytree(ENGINE, tmp_path / "1"))
    (engine / "signature.json").unlink()
    manifest = yaml.safe_load((engine / "manifest.yaml").read_text())
    manifest["training"]["region"] = {"mode": "locate", "background": "bright"}
    (engine / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    unsigned = {"trust": str(ROOT / "engines" / "trust"), "unsigned": "allow"}
    for region, told in (
        ({"mode": "full"}, "another: mode full (trained: locate)"),
        ({"mode": "locate"}, "another: background dark (trained: bright)"),
        ({"mode": "locate", "background": "bright"}, ""),
    ):
        path = line(station={"recipe": {"engine": str(engine), "region": region}}, engines=unsigned)
        code, out, _ = edgeqc("check", path, "--json")
        found = [warning for warning in json.loads(out)["warnings"] if "region" in warning]
        assert (code, len(found)) == (0, bool(told))
        assert all(told in warning for warning in found)


def test_warning_fails_only_when_strict(edgeqc):
    code, _, err = edgeqc("check", line())
    assert code == 0
    assert "warning: stations[0].plc: none" in err
    assert edgeqc("check", line(), "--strict")[0] == 1


def test_secret_that_is_not_there_is_a_warning_of_check_and_a_fault_of_run(edgeqc):
    path = line(mqtt={"host": "127.0.0.1", "user": "u", "password": "secret://no-such-secret"})
    code, _, err = edgeqc("check", path)
    assert code == 0
    assert "mqtt.password: secret://no-such-secret is neither" in err
    assert edgeqc("run", path)[0] == 3


def test_camera_and_plc_are_tested_without_the_secrets_of_the_broker(plc, edgeqc):
    drawn()
    path = line(
        station={"plc": plc.settings}, mqtt={"host": "127.0.0.1", "user": "u", "password": "secret://no-such-secret"}
    )
    assert edgeqc("test", "camera", path)[0] == 0
    assert edgeqc("test", "plc", path)[0] == 0
    code, _, err = edgeqc("test", "mqtt", path)
    assert code == 3
    assert "mqtt.password: secret://no-such-secret is neither" in err
    _, out, _ = edgeqc("doctor", path, "--json")
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    assert [rows[name]["state"] for name in ("camera top", "plc top", "broker")] == ["ok", "ok", "fail"]
    assert "no-such-secret" in rows["broker"]["found"]
    code, out, _ = edgeqc("check", "--connect", path)
    assert (code, "plc top: ok" in out) == (4, True)


def test_missing_engine_package_is_exit_code_5(edgeqc):
    path = line(station={"recipe": {"engine": "nowhere"}})
    assert edgeqc("check", path)[0] == 5
    assert edgeqc("run", path)[0] == 5


def test_run_directory_that_another_user_has_prepared_is_refused(tmp_path, edgeqc):
    drawn()
    path = line(run_dir=str(tmp_path / "run"))
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    run_dir.chmod(0o777)
    code, _, err = edgeqc("run", path)
    assert (code, f"{run_dir}: no permission" in err) == (7, True)
    run_dir.rmdir()
    run_dir.symlink_to(tmp_path / "parts")
    code, _, err = edgeqc("run", path)
    assert (code, f"{run_dir}: no permission" in err) == (7, True)


@pytest.mark.parametrize("bad", ["version: 1\nnode: box\nstations: []\n", "", "{", "version: 1\n"])
def test_invalid_configuration_starts_nothing(bad, edgeqc):
    Path("line.yaml").write_text(bad)
    code, out, err = edgeqc("run", "line.yaml")
    assert (code, out) == (3, "")
    assert "nothing was started" in err
    assert not Path("state").exists()


def test_no_traceback_reaches_the_user():
    done = subprocess.run(
        [sys.executable, "-m", "edgeqc", "run", "nowhere.yaml"], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 3
    assert done.stderr.startswith("nowhere.yaml: No such file or directory\n")
    assert "Traceback" not in done.stderr


def test_interrupt_while_a_command_is_loaded_is_exit_code_130_without_a_traceback(tmp_path):
    """typer stands for whatever takes long to load: here it is interrupted itself."""
    (tmp_path / "typer.py").write_text(
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # what is started in a shell's background ignores it
        "os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "edgeqc", "doctor"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize(
    "target",
    [
        "tcp://127.0.0.1:99999",
        "tcp://:502",
        "tcp://[::1",
        "opc.tcp://",
        "opc.tcp://box:99999",
        "opc.tcp://box:0",
        "http://box",
    ],
)
def test_probe_of_what_is_no_address_is_a_usage_error(target, edgeqc):
    code, out, err = edgeqc("plc", "probe", target, "--security", "none")
    assert (code, out) == (2, "")
    assert "TARGET" in err


def test_what_cannot_be_done_is_a_usage_error_before_anything_is_asked(edgeqc):
    code, _, err = edgeqc("plc", "probe", "tcp://127.0.0.1:1", "-r", "65530")
    assert (code, "65530 and 8 on ends over 65535" in err) == (2, True)
    drawn()
    code, _, err = edgeqc("test", "camera", line(), "--save", "picture")
    assert (code, "ends in none of .png" in err) == (2, True)
    for command in (
        ("train", "vision", "--data", "parts", "--out", "o/1", "--overkill", "2"),
        ("calibrate", "--hold", "-1"),
    ):
        assert edgeqc(*command)[0] == 2


def test_probe_and_plc_need_no_secrets_but_their_peer_s(plc, edgeqc):
    path = line(
        station={"plc": plc.settings}, mqtt={"host": "127.0.0.1", "user": "u", "password": "secret://no-such-secret"}
    )
    assert edgeqc("plc", "probe", path)[0] == 0
    code, _, err = edgeqc("plc", "probe", path, "--source", "oven")
    assert (code, "there are --station top" in err) == (2, True)
    code, _, err = edgeqc("test", "plc", line())
    assert (code, "has no PLC" in err) == (2, True)


def test_key_that_is_none_is_told_with_the_command_that_makes_one(edgeqc):
    Path("junk").write_text("no key")
    for command in (("trust", "junk"), ("sign", ENGINE, "--key", "junk")):
        code, _, err = edgeqc("engine", *command)
        assert code == 5
        assert "edgeqc engine keygen makes NAME.key and NAME.pub" in err
        assert "Copy the package" not in err
    assert "nowhere: is no folder" in edgeqc("engine", "import", "nowhere")[2]


def test_usage_is_exit_code_2(edgeqc):
    assert edgeqc("check")[0] == 2
    assert edgeqc("no-such-command")[0] == 2
    assert edgeqc("records", "--state", "nowhere")[0] == 2
    assert edgeqc("records", "--verdict", "maybe")[0] == 2


def test_version_and_help_need_no_command(edgeqc):
    assert edgeqc("--version") == (0, f"edgeqc {__version__}\n", "")
    code, out, _ = edgeqc("--help")
    assert code == 0
    for verb in ("init", "check", "test", "run", "demo", "doctor", "records", "journal", "config"):
        assert re.search(rf"\b{verb}\b", out)


def test_nothing_heavy_is_loaded_before_it_is_needed():
    code = "import sys, edgeqc.cli; print([m for m in ('pydantic', 'numpy', 'cv2', 'onnxruntime', 'asyncua', 'pymodbus') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout == "[]\n"


def test_worker_starts_without_the_command_line():
    code = (
        "import sys, types; from edgeqc import __main__\n"
        "process = types.ModuleType('edgeqc.watch.process'); process.main = lambda argv: 40 + len(argv)\n"
        "sys.modules['edgeqc.watch.process'] = process; sys.argv = ['edgeqc', 'watch', '--run-dir', 'x']\n"
        "try: __main__.main()\n"
        "finally: print([m for m in ('typer', 'rich', 'edgeqc.cli') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (42, "[]\n"), done.stderr


def test_camera_is_looked_at_and_its_image_saved(edgeqc):
    drawn()
    code, out, _ = edgeqc("test", "camera", line(), "--frames", "5", "--save", "seen.png", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["schema"] == "edgeqc.test.camera/1"
    assert (report["frames"], report["size"], report["status"]) == (5, "64x48", {"ok": 5})
    assert report["grey"]["mean"] in (40, 41, 42)
    assert cv2.imread("seen.png", cv2.IMREAD_GRAYSCALE).shape == (48, 64)


def test_camera_without_a_good_frame_is_exit_code_1(edgeqc):
    Path("parts").mkdir()
    cv2.imwrite("parts/small.png", np.zeros((10, 10), np.uint8))
    code, out, err = edgeqc("test", "camera", line(), "--frames", "2")
    assert code == 1
    assert "wrong_size 2" in out
    assert "No good frame among 2" in err


def test_camera_that_is_not_there_is_exit_code_4(edgeqc):
    code, out, err = edgeqc("test", "camera", line())
    assert (code, out) == (4, "")
    assert "doctor" in err


def test_unknown_station_is_told_with_the_known_ones(edgeqc):
    code, _, err = edgeqc("test", "camera", line(), "--station", "bottom")
    assert code == 2
    assert "bottom is none of top" in err


@pytest.fixture
def plc(tmp_path):
    with closing(Stage.create(tmp_path / "stage")) as stage:
        made = SimPlc("modbus", stage.path, tmp_path / "judge.ndjson", parts=1, rate_hz=1, budget_ms=1000, start="go")
        made.start()
        yield made
        made.kill()


def test_plc_is_read_and_written(plc, edgeqc, monkeypatch):
    monkeypatch.setattr(peers, "WRITES_S", 0.5)
    seen: set[int] = set()
    watching = threading.Event()

    def watch() -> None:
        with closing(ModbusTcpClient("127.0.0.1", port=plc.settings["port"])) as client:
            assert client.connect()
            while not watching.is_set():
                seen.add(client.read_holding_registers(104, count=1).registers[0])
                time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code, out, _ = edgeqc("test", "plc", line(station={"plc": plc.settings}), "--write", "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["schema"], report["kind"], report["certificate_sha256"]) == ("edgeqc.test.plc/1", "modbus", None)
    watching.set()
    watcher.join()
    assert 0 < report["read_ms"]["p50"] <= report["read_ms"]["max"]
    assert 0 < report["write_ms"]["p50"] <= report["write_ms"]["max"]
    assert len(seen) > 2, "the heartbeat moves, for people to watch"


def test_plc_is_not_written_unless_told(plc, edgeqc):
    code, out, _ = edgeqc("test", "plc", line(station={"plc": plc.settings}), "--json")
    assert (code, json.loads(out)["write_ms"]) == (0, {})


def test_plc_is_not_written_while_the_daemon_writes_it(plc, edgeqc):
    path = line(station={"plc": plc.settings})
    Path("state").mkdir()
    with Path("state/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert edgeqc("test", "plc", path)[0] == 0
        code, _, err = edgeqc("test", "plc", path, "--write")
    assert (code, "writes these registers itself" in err) == (8, True)


def test_plc_that_is_not_there_is_exit_code_4(edgeqc):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connecting is refused
        modbus = {"type": "modbus", "host": "127.0.0.1", "port": taken.getsockname()[1]}
        assert edgeqc("test", "plc", line(station={"plc": modbus}))[0] == 4
        assert edgeqc("check", line(station={"plc": modbus}), "--connect")[0] == 4


@pytest.fixture
def opcua_plc(tmp_path):
    with closing(Stage.create(tmp_path / "stage")) as stage:
        made = SimPlc(
            "opcua",
            stage.path,
            tmp_path / "judge.ndjson",
            parts=1,
            rate_hz=1,
            budget_ms=1000,
            start="go",
            pki=tmp_path / "plc",
        )
        made.start()
        yield made
        made.kill()


def test_opcua_certificate_is_shown_saved_and_then_pinned(opcua_plc, edgeqc):
    unpinned = {key: value for key, value in opcua_plc.settings.items() if key != "server_certificate"}
    code, out, err = edgeqc("test", "plc", line(station={"plc": unpinned}), "--save-certificate", "plc.der")
    assert code == 0
    assert re.search(r"certificate SHA-256: ([0-9A-F]{2}:){31}[0-9A-F]{2}\n", out)
    assert "compare the SHA-256" in err
    pinned = unpinned | {"server_certificate": "plc.der"}
    code, out, _ = edgeqc("test", "plc", line(station={"plc": pinned}), "--json")
    assert (code, json.loads(out)["kind"]) == (0, "opcua")


def test_json_of_an_unprotected_opcua_plc_is_json_alone(tmp_path, edgeqc):
    with closing(Stage.create(tmp_path / "stage")) as stage:
        made = SimPlc("opcua", stage.path, tmp_path / "judge", parts=1, rate_hz=1, budget_ms=1000, start="go")
        made.start()
        try:
            assert made.settings["security"] == "none"
            code, out, _ = edgeqc("test", "plc", line(station={"plc": made.settings}), "--json")
        finally:
            made.kill()
    assert (code, json.loads(out)["kind"]) == (0, "opcua")


def test_certificate_of_a_source_of_tags_is_shown_and_saved(opcua_plc, edgeqc):
    source = {"name": "oven", "type": "opcua", "url": opcua_plc.settings["url"], "tags": [{"name": "t", "node": "i=1"}]}
    path = line(tags=[source])
    assert "edgeqc test plc FILE --source oven --save-certificate" in edgeqc("check", path)[2]
    code, out, err = edgeqc("test", "plc", path, "--source", "oven", "--save-certificate", "oven.der", "--json")
    assert (code, "pin it: server_certificate: oven.der" in err) == (0, True)
    assert len(json.loads(out)["certificate_sha256"]) == 95
    for pinned in ({"server_certificate": "oven.der"}, {"trust": "trusted"}):
        assert "server_certificate" not in edgeqc("check", line(tags=[source | pinned]))[2]
    assert edgeqc("test", "plc", path, "--source", "other")[0] == 2


def need_mosquitto():
    if mosquitto_path() is None:
        if os.environ.get("EDGEQC_REQUIRE_PEERS") == "1":
            pytest.fail("mosquitto is missing")
        pytest.skip("needs mosquitto")


def test_broker_session_publishes_and_reads_back(edgeqc):
    need_mosquitto()
    with SimBroker() as broker, Listener("127.0.0.1", broker.port, "#") as listener:
        code, out, _ = edgeqc("test", "mqtt", line(mqtt={"host": "127.0.0.1", "port": broker.port}), "--json")
        (message,) = listener.wait(1, "/event", timeout_s=10)
    jsonschema.validate(message.json, json.loads((ROOT / "config/schema/event.json").read_text()))
    assert message.json["name"] == "self_test"
    report = json.loads(out)
    assert code == 0
    assert (report["schema"], report["topic"], report["readable"]) == ("edgeqc.test.mqtt/1", "edgeqc/box/event", True)
    assert report["publish_ms"] > 0
    assert report["echo_ms"] > 0


def test_wrong_password_is_told_and_not_shown(edgeqc):
    need_mosquitto()
    with SimBroker(users={"line": "right"}) as broker:
        mqtt = {"host": "127.0.0.1", "port": broker.port, "user": "line", "password": "wrong-geheim"}
        code, out, err = edgeqc("test", "mqtt", line(mqtt=mqtt))
    assert (code, out) == (4, "")
    assert "Not authorized" in err
    assert "geheim" not in err


def test_doctor_looks_at_everything_on_a_bare_box(edgeqc):
    code, out, _ = edgeqc("doctor", "--json")
    report = json.loads(out)
    rows = {row["name"]: row for row in report["rows"]}
    assert report["schema"] == "edgeqc.doctor/1"
    assert set(rows) == {
        "python", "libraries", "libaravis", "receive buffer", "real time", "locked memory", "cores", "shared memory",
        "disk space", "disk speed", "clock", "backends", "engine trust",
    }  # fmt: skip
    for row in rows.values():
        assert row["state"] in ("ok", "warn", "fail")
        assert row["found"]
        assert row["state"] == "ok" or (row["limit"] and row["mend"]), row
    assert code == (1 if report["fail"] else 0)
    assert edgeqc("doctor", "--strict")[0] == (1 if report["fail"] or report["warn"] else 0)


def test_doctor_reaches_every_peer_of_the_line(plc, edgeqc):
    drawn()
    _, out, _ = edgeqc("doctor", line(station={"plc": plc.settings}), "--json")
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    assert rows["camera top"]["state"] == "ok"
    assert rows["plc top"]["found"].startswith("modbus")
    assert rows["broker"]["found"] == "none configured"
    assert rows["daemon"]["found"].startswith("not running")


def test_doctor_goes_on_where_the_configuration_has_faults(edgeqc):
    code, out, _ = edgeqc("doctor", line(colour="red"), "--json")
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    assert code == 1
    assert rows["configuration"]["state"] == "fail"
    assert "disk speed" in rows


def test_doctor_compares_packet_size_with_the_path(edgeqc):
    camera = {"type": "gige", "address": "127.0.0.1", "width_px": 64, "height_px": 48}
    _, out, _ = edgeqc("doctor", line(station={"camera": camera}), "--json")
    row = next(row for row in json.loads(out)["rows"] if row["name"] == "packet size top")
    mtu = int(Path("/sys/class/net/lo/mtu").read_text())
    assert (row["state"], row["found"]) == ("ok" if mtu >= 8028 else "fail", f"MTU {mtu} on lo")


def test_doctor_does_not_look_for_the_way_to_a_camera_that_is_named_by_its_serial_number(edgeqc):
    camera = {"type": "gige", "address": "Vendor-12345", "width_px": 64, "height_px": 48}
    _, out, _ = edgeqc("doctor", line(station={"camera": camera}), "--json")
    row = next(row for row in json.loads(out)["rows"] if row["name"] == "packet size top")
    assert row["state"] == "ok"


def test_doctor_fails_a_receive_buffer_under_a_frame_because_no_camera_is_opened_with_it(edgeqc):
    allowed = int(Path("/proc/sys/net/core/rmem_max").read_text())
    side_px = int(allowed**0.5) + 1
    camera = {"type": "gige", "address": "127.0.0.1", "width_px": side_px, "height_px": side_px}
    camera["receive_buffer_bytes"] = max(side_px * side_px, 1 << 20)
    _, out, _ = edgeqc("doctor", line(station={"camera": camera}), "--json")
    row = next(row for row in json.loads(out)["rows"] if row["name"] == "receive buffer")
    assert row["state"] == "fail"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else for a moment")
def test_doctor_of_somebody_who_may_not_look_everywhere_tells_all_the_same(tmp_path, edgeqc):
    (tmp_path / "locked").mkdir(mode=0o700)
    path = line(state_dir=str(tmp_path / "locked" / "state"), engines={"trust": str(tmp_path / "locked" / "trust")})
    edgeqc("doctor", path)  # loads all that is to be loaded, as root
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        code, out, _ = edgeqc("doctor", path, "--json")
    finally:
        os.seteuid(0)
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    assert code == 1
    assert {"disk space", "disk speed", "clock", "daemon"} <= set(rows)
    assert rows["engines"]["found"] == f"{tmp_path}/locked/trust: Permission denied"
    assert "sudo -u edgeqc" in rows["engines"]["mend"]
    assert f"chown -R edgeqc {tmp_path}/locked/state " in rows["disk speed"]["mend"], "never of a folder above our own"


def test_doctor_leaves_a_running_line_alone(edgeqc):
    path = line()
    Path("state").mkdir()
    with Path("state/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _, out, _ = edgeqc("doctor", path, "--json")
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    assert "running" in rows["daemon"]["found"]
    assert "camera top" not in rows


def test_doctor_table_has_a_row_a_line_in_a_pipe(edgeqc):
    _, out, err = edgeqc("doctor")
    assert out.splitlines()[0].split() == ["what", "state", "found", "should", "be", "mend"]
    assert len(out.splitlines()) == 14
    assert "looked at" in err


def test_records_of_an_empty_state_directory_are_told_kindly(edgeqc):
    Path("state").mkdir()
    for arguments in (("records", "--state", "state"), ("records", line(), "--json")):
        code, out, err = edgeqc(*arguments)
        assert (code, out) == (0, "")
        assert "no archive yet" in err


def test_journal_of_an_empty_state_directory_is_told_kindly(edgeqc):
    for arguments in (("journal", line()), ("journal",)):
        code, out, err = edgeqc(*arguments)
        assert (code, out) == (0, "")
        assert "no journal yet" in err


def test_journal_prints_every_record_in_order_of_time(edgeqc):
    for name, count in (("station-top", 3), ("watch", 2)):
        with closing(JournalWriter(Path("state/journal") / name, JournalSettings(segment_mb=1, budget_mb=8))) as writer:
            for number in range(count):
                writer.append(Event(name=f"{name}-{number}", facts={"part": number}))
    code, out, err = edgeqc("journal", "--state", "state", "--json")
    rows = [json.loads(row) for row in out.splitlines()]
    assert (code, err) == (0, "")
    assert {row["schema"] for row in rows} == {"edgeqc.journal/1"}
    assert [row["body"]["name"] for row in rows if row["kind"] == "Event"] == [
        "station-top-0", "station-top-1", "station-top-2", "watch-0", "watch-1",
    ]  # fmt: skip
    code, out, _ = edgeqc("journal", "--state", "state")
    assert "Event name=watch-1 facts.part=1" in out


def test_a_journal_larger_than_memory_is_printed_piece_by_piece(tmp_path):
    with closing(JournalWriter(tmp_path / "watch", JournalSettings(segment_mb=1, budget_mb=8))) as writer:
        for number in range(1200):
            writer.append(Event(name="e", facts={"number": number}))
    with closing(JournalReader(tmp_path / "watch", None)) as reader:
        entries = in_order([reader])
        assert next(entries).sequence == 1
        assert reader.cursor.offset < 1000 * RECORD_BYTES
        assert len(list(entries)) == 1199


@pytest.mark.parametrize(
    ("text", "ago"), [("90m", timedelta(minutes=90)), ("2d", timedelta(days=2)), ("1w", timedelta(weeks=1))]
)
def test_moment_may_be_told_as_an_age(text, ago):
    now = datetime(2026, 11, 22, 8, tzinfo=UTC)
    assert moment_ns(text, lambda: now) == int((now - ago).timestamp()) * 10**9


def test_moment_may_be_a_date_with_its_zone():
    assert moment_ns("2026-11-22T08:00:00.5+01:00") == 1_795_330_800_500_000_000


def test_moment_that_is_none_is_a_usage_error():
    with pytest.raises(typer.BadParameter, match="write 2026"):
        moment_ns("yesterday")


@pytest.mark.parametrize("text", ["0001-06-01", "1500-01-01", "2300-01-01T00:00Z", "9999-12-30", "9999w"])
def test_a_moment_no_record_can_have_selects_all_or_nothing(edgeqc, text):
    tables.open_archive(Path(tables.FILE_NAME)).close()
    for command in (["records", "--until", text], ["alarm", "history"], ["alarm", "figures"], ["audit"]):
        code, _, err = edgeqc(*command, "--since", text, "--state", ".")
        assert (code, "Traceback" in err) == (0, False), err


def test_missing_rights_name_what_is_missing_and_how_to_mend_it(tmp_path):
    settings = loading.load(line(station={"cpu": 1023, "priority": 0}))
    (tmp_path / "file").write_text("")
    missing = rights.missing_rights(settings, tmp_path / "file", tmp_path / "run")
    assert len(missing) == 2
    assert missing[0].startswith("writing the state directory: ")
    assert rights.mend_of_writing(OSError(28, ""), Path("/d")) == "make room: df -h /d"
    assert missing[1].startswith("station top: core 1023: Invalid argument: ")
    assert not rights.missing_rights(loading.load(line(station={"priority": 0})), tmp_path / "state", tmp_path / "run")


def test_trying_real_time_leaves_this_process_as_it_was():
    before = os.sched_getscheduler(0), os.sched_getaffinity(0)
    settings = loading.load(line())
    rights.missing_rights(settings, Path("state"), Path("run"))
    assert (os.sched_getscheduler(0), os.sched_getaffinity(0)) == before


@pytest.mark.parametrize("kind", ["modbus", "opcua"])
def test_doctor_looks_at_the_servers_of_tags(kind, edgeqc):
    drawn()
    tags = SimTags(kind, tags=3)
    tags.start()
    try:
        source = tag_settings(3, tags.url)
        beyond = {"register": 9000, "type": "uint16"} if kind == "modbus" else {"node": "ns=9;s=beyond"}
        states = {}
        for name, known in (("there", []), ("beyond", [{"name": "beyond", **beyond}])):
            path = line(tags=[source | {"tags": [*source["tags"], *known]}])
            rows = {row["name"]: row for row in json.loads(edgeqc("doctor", path, "--json")[1])["rows"]}
            states[name] = rows["tags sim"]
    finally:
        tags.kill()
    assert (states["there"]["state"], states["there"]["found"]) == ("ok", "3 of 3 tags looked at are there")
    assert states["beyond"]["state"] in {"warn", "fail"}
    assert "9000" in states["beyond"]["found"] or "beyond" in states["beyond"]["found"]
    rows = {row["name"]: row for row in json.loads(edgeqc("doctor", path, "--json")[1])["rows"]}
    assert rows["tags sim"]["state"] == "fail"


def test_a_demo_empties_no_folder_but_its_own(tmp_path):
    """A real configuration is called line.yaml, too."""
    real = tmp_path / "real"
    real.mkdir()
    (real / "line.yaml").write_text("dear")
    with pytest.raises(EdgeqcError, match="not of an earlier demo"):
        _emptied(real)
    assert (real / "line.yaml").read_text() == "dear"
    own = _emptied(tmp_path / "own")
    (own / "line.yaml").touch()
    assert [path.name for path in _emptied(own).iterdir()] == [".edgeqc-demo"]
    (own / "state").mkdir()
    with (own / "state" / LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EdgeqcError, match="a daemon runs there"):
            _emptied(own)

"""Configuration files: what is refused, at which line, in which words; and what comes of a good one."""

import os
import re
import time
from pathlib import Path

import pytest

from edgeqc import loading
from edgeqc.errors import SettingsError
from edgeqc.loading import SIZE_LIMIT, default_paths, digest, dump, load, paths, resolved, restore
from edgeqc.loading.document import parse

GOOD = """\
version: 1
node: box
stations:
  - name: top
    takt_ms: 100
    budget_ms: 80
    camera: {type: replay, folder: parts, width_px: 640, height_px: 480}
    recipe: {engine: engines/part/1}
    plc: {type: none}
"""

TWENTY = """\
version: 2
node: Big Box
colour: red
mqtt: {host: broker, prot: 1883, port: 99999, password: 1234, enabled: yes}
archive: {rows_days: 0}
journal: {sync: eech}
stations:
  - name: top
    takt_ms: 10
    budget_ms: 8
    budgt_ms: 8
    priority: 99
    camera:
      type: gige
      address: 192.168.1.5
      width_px: 640
      height_px: 4.5
      exposre_us: 12000
      exposure_us: 12000
    recipe: {engine: e/1, threads: 010, backend: onnx}
    plc: {type: modbos, prt: 502}
    required_tags: [nowhere]
  - name: side
    name: again
    takt_ms: fast
    budget_ms: 80
    camera: {type: replay, folder: "${NOT_SET_ANYWHERE}", width_px: 6, height_px: 480}
    plc: {type: none}
"""

EXPECTED = {
    (1, "version: 2 is none of 1"),
    (2, "node: Big Box does not match"),
    (3, "colour: is no key here"),
    (4, "mqtt.prot: is no key here; did you mean port?"),
    (4, "mqtt.port: 99999 is over 65535"),
    (4, "mqtt.password: what is given is not text: put it in quotes"),
    (4, "mqtt.user: is missing, password is nothing without it"),
    (4, 'mqtt.enabled: yes means true to some readers: write true, or "yes" for the text'),
    (5, "archive.rows_days: 0 is under 1"),
    (6, "journal.sync: eech is none of group, each; did you mean each?"),
    (8, "stations[0].plc_write_ms: 10 is not under 8 (budget_ms)"),
    (11, "stations[0].budgt_ms: is no key here; did you mean budget_ms?"),
    (12, "stations[0].priority: 99 is over 90"),
    (17, "stations[0].camera.height_px: 4.5 is not a whole number"),
    (18, "stations[0].camera.exposre_us: is no key here; did you mean exposure_us?"),
    (19, "stations[0].camera.exposure_us: 12000 is over 10000 (takt 10 ms)"),
    (20, 'stations[0].recipe.threads: 010 is octal to some readers: write 10, or "010" for the text'),
    (20, "stations[0].recipe.backend: onnx is none of onnxruntime"),
    (21, "stations[0].plc.type: modbos is none of modbus, modbus-server, opcua, none; did you mean modbus?"),
    (21, "stations[0].plc.host: is missing"),
    (21, "stations[0].plc.prt: is no key here; did you mean port?"),
    (22, "stations[0].required_tags[0]: nowhere is no tag of any source"),
    (23, "stations[1].recipe: is missing"),
    (24, "stations[1].name: is given twice, first in line 23"),
    (25, "stations[1].takt_ms: fast is not a number"),
    (27, "stations[1].camera.width_px: 6 is under 16"),
    (27, "stations[1].camera.folder: ${NOT_SET_ANYWHERE} is not set in the environment"),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("EDGEQC__", "EDGEQC_SECRET_"))]:
        monkeypatch.delenv(name)


def written(text, name="line.yaml"):
    path = Path(name)
    path.write_text(text)
    return path


def faults(text, **options):
    with pytest.raises(SettingsError) as caught:
        load(written(text), **options)
    return caught.value.faults


def test_twenty_faults_are_told_at_once_each_at_its_line():
    told = faults(TWENTY)
    for line, what in EXPECTED:
        assert any(fault.startswith(f"line.yaml:{line}:") and what in fault for fault in told), (line, what, told)
    assert len(told) == len(EXPECTED), told
    numbers = [int(fault.split(":")[1]) for fault in told]
    assert numbers == sorted(numbers)


def test_fault_names_file_line_column_path_value_and_limit():
    told = faults(GOOD.replace("takt_ms: 100", "takt_ms: -3"))
    assert told == ["line.yaml:5:14: stations[0].takt_ms: -3 is not over 0"]


def test_missing_key_says_what_it_is_for():
    told = faults(GOOD.replace("    budget_ms: 80\n", ""))
    assert told == ["line.yaml:4:5: stations[0].budget_ms: is missing (trigger to reject output)"]


def test_fault_of_a_guess_is_not_told():
    told = faults(GOOD.replace("takt_ms: 100", "takt_ms: much"))
    assert told == ["line.yaml:5:14: stations[0].takt_ms: much is not a number"]


def test_station_with_a_fault_does_not_hide_those_of_the_whole():
    twice = GOOD.replace("takt_ms: 100", "takt_ms: -1") + GOOD[GOOD.index("  - name") :]
    told = faults(twice)
    assert [fault.split(": ", 1)[1] for fault in told] == [
        "stations[0].takt_ms: -1 is not over 0",
        "stations[1].name: top is the name of stations[0].name already",
    ]


def test_secret_is_never_shown():
    text = GOOD + "mqtt: {host: b, user: u, password: 31337, passwort: geheim}\n"
    told = faults(text)
    assert len(told) == 2
    assert "31337" not in "".join(told)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "the file is empty"),
        ("- a\n- b\n", "the top level must be a mapping"),
        ("a: 1\n---\nb: 2\n", "a second document"),
        ("a: [1, 2\nb: 3\n", "this is not YAML"),
        ("a: \tb: c\n", "this is not YAML"),
        ("a: !!python/object/apply:os.system [id]\nversion: 1\n", "tag tag:yaml.org,2002:python/object"),
        ("a: !include other.yaml\n", "tag !include is not used here"),
        ("? [a, b]\n: 1\n", "a key must be a plain word"),
        ("a: *nowhere\n", "alias *nowhere is not defined above"),
        ("a: &a [*a]\n", "alias *a holds itself"),
        ("a: &a {b: 1}\nc: {<<: *a}\n", "<< (merge) is not used here"),
        ("a: " + "[" * 50 + "]" * 50, "nested more than 16 deep"),
        ("a: " + "[" * 50_000, "nest"),  # newer libyaml refuses it before we do
        ("\x00", "this is not YAML"),
    ],
)
def test_text_that_is_no_configuration_is_refused(text, what):
    told = faults(text)
    assert any(what in fault for fault in told), told


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("no", "no means false to some readers"),
        ("Off", "Off means false to some readers"),
        ("010", "010 is octal to some readers"),
        ("1_000", "1_000 is a number to some readers: write 1000"),
        ("12:30:45", "12:30:45 is a number of base 60 to some readers"),
    ],
)
def test_word_that_yaml_versions_read_differently_is_refused(word, what):
    assert any(what in fault for fault in faults(GOOD.replace("node: box", f"node: {word}")))


def test_quoted_trap_is_text():
    assert load(written(GOOD.replace("node: box", 'node: "010"'))).node == "010"


def test_aliases_may_not_multiply():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 12):
        bomb += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n"
    began = time.monotonic()
    assert any("once aliases are followed" in fault for fault in faults(bomb))
    assert time.monotonic() - began < 5


def test_file_over_the_size_limit_is_refused():
    assert faults("#" * (SIZE_LIMIT + 1)) == ["line.yaml: over 1048576 bytes, the limit of a configuration"]


def test_bytes_that_are_no_text_are_refused_with_their_line():
    Path("line.yaml").write_bytes(b"version: 1\nnode: \xff\n")
    with pytest.raises(SettingsError) as caught:
        load(Path("line.yaml"))
    assert caught.value.faults == ["line.yaml:2:1: byte 0xff is not UTF-8"]


def test_missing_file_is_said():
    with pytest.raises(SettingsError, match=r"nowhere\.yaml: No such file"):
        load(Path("nowhere.yaml"))


OVEN = """\
tags:
- type: modbus
  name: oven
  host: 10.0.0.5
  poll_ms: 100
  gap_ms: %g
  tags:
  - {name: near, register: 0}
  - {name: far, register: 1000}
"""
FAN = """\
- {type: modbus, name: fan, host: 10.0.0.5, device_id: 2, poll_ms: 50, tags: [{name: speed, register: 0}]}
"""


def test_a_rest_that_leaves_no_time_for_the_polls_is_refused():
    load(written(GOOD + OVEN % 50))
    (fault,) = faults(GOOD + OVEN % 60)
    assert fault.startswith("line.yaml:15:")
    assert fault.endswith(
        "tags[0].gap_ms: 60 behind each request to 10.0.0.5:502 takes 120 % of the time, over 100 % (oven 2 each 100 ms)"
    )


def test_sources_at_one_device_need_time_for_all_their_polls():
    load(written(GOOD + OVEN % 25 + FAN))
    (fault,) = faults(GOOD + OVEN % 26 + FAN)
    assert "tags[0].gap_ms: 26 behind each request to 10.0.0.5:502 takes 104 % of the time" in fault
    assert "(oven 2 each 100 ms, fan 1 each 50 ms)" in fault
    load(written(GOOD + OVEN % 26 + FAN.replace("10.0.0.5", "10.0.0.6")))


WITH_PLC = GOOD.replace(
    "    plc: {type: none}\n",
    "    trigger: {source: plc, poll_ms: 10}\n    plc: {type: modbus, host: 10.0.0.5, device_id: 3}\n",
)
THROUGH = """\
tags:
- type: modbus
  name: oven
  through: top
  device_id: 3
  poll_ms: 20
  tags:
  - {name: near, register: 0}
  - {name: far, register: 1000}
"""


TOO_OFTEN = (
    "tags[0].poll_ms: 10 is too often: 2 requests, one behind each poll of the PLC (stations[0].trigger.poll_ms 10), "
    "take 200 % of the polls with the sources before, over 100 %"
)


def test_tags_are_read_through_a_station_that_has_a_connection():
    assert load(written(WITH_PLC + THROUGH)).tags[0].device == "the PLC of station top"
    without = THROUGH.replace("  through: top\n", "")
    for text, fault in (
        (WITH_PLC + THROUGH.replace("top", "side"), "tags[0].through: side is no station"),
        (
            GOOD + THROUGH,
            "tags[0].through: top has no connection to share, stations[0].plc.type is none, not modbus",
        ),
        (
            WITH_PLC + THROUGH.replace("_id: 3", "_id: 4"),
            "tags[0].device_id: 4 is not 3 (stations[0].plc.device_id)",
        ),
        (
            WITH_PLC + THROUGH.replace("  device", "  host: h\n  device"),
            "tags[0].host: h stands beside through, which is a connection already",
        ),
        (
            WITH_PLC + THROUGH.replace("  device", "  port: 1502\n  device"),
            "tags[0].port: 1502 stands beside through, which is a connection already",
        ),
        (WITH_PLC + without, "tags[0].host: is missing, and so is through"),
        (
            WITH_PLC + THROUGH.replace("poll_ms: 20", "poll_ms: 10"),
            TOO_OFTEN,
        ),
    ):
        (told,) = faults(text)
        assert told.endswith(f": {fault}"), told


def test_thousand_tags_load_in_half_a_second():
    tags = ",\n".join(
        f"{{name: tag{n}, node: 'ns=2;s=Machine.Tag{n}', unit: degC, min: 0, max: 9}}" for n in range(1000)
    )
    text = GOOD + f"tags:\n- {{type: opcua, name: plc, url: 'opc.tcp://h:4840', tags: [\n{tags}]}}\n"
    path = written(text)
    spent = []
    for _ in range(3):
        began = time.process_time()
        settings = load(path)
        spent.append(time.process_time() - began)
    assert len(settings.tags[0].tags) == 1000
    assert min(spent) < 0.5  # of this process's own time: other work on the box does not count


def test_variables_are_filled_in_text_only():
    text = GOOD.replace("node: box", "node: ${NODE}").replace("takt_ms: 100", "takt_ms: ${TAKT:-250}")
    text = text.replace("folder: parts", 'folder: "${ROOT:-}a$$b"')
    settings = load(written(text), environ={"NODE": "line7"})
    assert (settings.node, settings.stations[0].takt_ms) == ("line7", 250)
    assert settings.stations[0].camera.folder.name == "a$b"


def test_variable_cannot_add_a_key():
    text = GOOD.replace("node: box", "node: ${NODE}")
    assert any("does not match" in fault for fault in faults(text, environ={"NODE": "a\nmqtt: {host: evil}"}))


def test_needed_variable_says_its_message():
    text = GOOD.replace("node: box", 'node: "${NODE:?name the box}"')
    assert "line.yaml:2:7: node: ${NODE} is not set: name the box" in faults(text, environ={})


def test_environment_goes_over_the_file():
    environ = {"EDGEQC__STATIONS__0__TAKT_MS": "300", "EDGEQC__MQTT__HOST": "broker", "EDGEQC__STATE_DIR": "null"}
    settings = load(written(GOOD + "state_dir: here\n"), environ=environ)
    assert settings.stations[0].takt_ms == 300
    assert settings.mqtt is not None
    assert settings.mqtt.host == "broker"
    assert settings.state_dir is None


def test_overrides_go_over_the_environment():
    settings = load(written(GOOD), environ={"EDGEQC__NODE": "a"}, overrides={"node": "b"})
    assert settings.node == "b"


def test_fault_in_the_environment_names_the_variable():
    told = faults(
        GOOD, environ={"EDGEQC__STATIONS__0__TAKT_MS": "-1", "EDGEQC__NOED": "x", "EDGEQC__STATIONS__7__X": "1"}
    )
    assert "EDGEQC__STATIONS__0__TAKT_MS: stations[0].takt_ms: -1 is not over 0" in told
    assert "EDGEQC__NOED: noed: is no key here; did you mean node?" in told
    assert "EDGEQC__STATIONS__7__X: stations[7].x: leads nowhere in the file" in told


def test_relative_paths_begin_at_the_file(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "engines/part/1").mkdir(parents=True)
    (tmp_path / "etc/parts").mkdir()
    settings = load(written(GOOD, "etc/line.yaml"))
    assert settings.stations[0].camera.folder == tmp_path / "etc/parts"
    assert settings.stations[0].recipe.engine == tmp_path / "engines/part/1", "falls back to the current directory"


def test_named_file_that_is_not_there_is_a_fault():
    told = faults(GOOD + "mqtt: {host: b, tls: {ca: plant.pem}}\n")
    assert len(told) == 1
    assert "line.yaml:10:27: mqtt.tls.ca: plant.pem is no file" in told[0]


def test_settings_reach_a_worker_unchanged():
    settings = load(written(GOOD))
    assert restore(dump(settings)) == settings
    assert digest(settings) == digest(restore(dump(settings)))
    assert digest(settings) != digest(load(written(GOOD.replace("takt_ms: 100", "takt_ms: 101"))))


SECRET = GOOD + "mqtt: {host: b, user: u, password: 'secret://broker.pw'}\n"


def test_secret_stays_a_reference_until_the_worker_has_it(tmp_path):
    settings = load(written(SECRET))
    assert b"secret://broker.pw" in dump(settings)
    (tmp_path / "broker.pw").write_text("geheim\n")
    filled = resolved(settings, environ={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert filled.mqtt.password == "geheim"


def test_systemd_credential_comes_before_the_file_and_that_before_the_environment(tmp_path):
    settings = load(written(SECRET))
    credentials, folder = tmp_path / "credentials", tmp_path / "secrets"
    environ = {"EDGEQC_SECRET_BROKER_PW": "third", "CREDENTIALS_DIRECTORY": str(credentials)}
    credentials.mkdir()
    folder.mkdir()
    assert resolved(settings, environ=environ, folder=folder).mqtt.password == "third"
    (folder / "broker.pw").write_text("second")
    (folder / "broker.pw").chmod(0o600)
    assert resolved(settings, environ=environ, folder=folder).mqtt.password == "second"
    (credentials / "broker.pw").write_text("first")
    assert resolved(settings, environ=environ, folder=folder).mqtt.password == "first"


def test_secret_that_others_can_read_is_refused(tmp_path):
    (tmp_path / "broker.pw").write_text("geheim")
    (tmp_path / "broker.pw").chmod(0o640)
    with pytest.raises(SettingsError, match=r"mqtt\.password: .*mode 0640, 0600 is needed") as caught:
        resolved(load(written(SECRET)), environ={"EDGEQC_SECRET_BROKER_PW": "x"}, folder=tmp_path)
    assert "geheim" not in str(caught.value)


def test_missing_secret_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(SettingsError, match=r"neither a systemd credential, nor .*, nor EDGEQC_SECRET_BROKER_PW"):
        resolved(load(written(SECRET)), environ={}, folder=tmp_path)


def test_secret_name_cannot_leave_its_folder(tmp_path):
    text = SECRET.replace("broker.pw", "../../etc/shadow")
    with pytest.raises(SettingsError, match="letters, digits, dot"):
        resolved(load(written(text)), environ={}, folder=tmp_path)


def test_directories_are_systemds_where_it_gives_them(tmp_path):
    settings = load(written(GOOD))
    environ = {"STATE_DIRECTORY": "/var/lib/edgeqc", "RUNTIME_DIRECTORY": "/run/edgeqc"}
    assert paths(settings, environ=environ) == (Path("/var/lib/edgeqc"), Path("/run/edgeqc"))
    state_dir, run_dir = default_paths(environ={})
    assert state_dir == tmp_path / "state"
    assert run_dir.parent == Path("/dev/shm")
    assert run_dir.name.startswith(f"edgeqc-{os.getuid()}-")


def test_a_command_typed_by_hand_means_the_service_where_it_is_installed(tmp_path, monkeypatch):
    state_dir, run_dir = tmp_path / "var", tmp_path / "run"
    monkeypatch.setattr(loading, "INSTALLED", (state_dir, run_dir))
    settings = load(written(GOOD))
    assert paths(settings, environ={})[0] == tmp_path / "state"
    state_dir.mkdir()
    assert paths(settings, environ={})[0] == state_dir
    assert paths(settings, environ={})[1].parent == Path("/dev/shm"), "the service does not run"
    run_dir.mkdir()
    assert paths(settings, environ={}) == default_paths(environ={}) == (state_dir, run_dir)
    assert paths(load(written(GOOD + "state_dir: own\n")), environ={}) != (state_dir, run_dir)
    assert paths(load(written(GOOD + "state_dir: own\n")), environ={})[1].parent == Path("/dev/shm")


def test_two_lines_on_one_box_have_their_own_shared_memory():
    one = load(written(GOOD + "state_dir: one\n"))
    two = load(written(GOOD + "state_dir: two\n"))
    assert paths(one, environ={})[1] != paths(two, environ={})[1]


TWO_CAMERAS = """\
version: 1
node: box
stations:
  - name: top
    takt_ms: 100
    budget_ms: 80
    trigger: {source: plc}
    cameras:
      - {name: left, type: replay, folder: parts, width_px: 640, height_px: 480}
      - {name: right, type: replay, folder: parts, width_px: 320, height_px: 240}
    recipe:
      engine: engines/left/1
      threshold: 0.4
      region: {mode: fixed, width_px: 300, height_px: 200}
      views:
        right: {engine: engines/right/4, region: {mode: full}}
    plc: {type: modbus, host: plc}
"""


def test_each_camera_has_the_recipe_with_what_its_view_has_of_its_own():
    station = load(written(TWO_CAMERAS)).stations[0]
    assert [camera.name for camera in station.all_cameras] == ["left", "right"]
    left, right = station.engines
    assert (left.engine.parts[-2], left.threshold, left.region.mode) == ("left", 0.4, "fixed")
    assert (right.engine.parts[-2], right.region.mode) == ("right", "full")
    assert right.threshold is None, "a threshold never counts for another engine"
    assert right.name == left.name
    assert restore(dump(load(written(TWO_CAMERAS)))).stations[0].engines == station.engines


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("trigger: {source: plc}", "trigger: {}", "trigger.source: camera goes with one camera, cameras has 2"),
        ("name: right, ", "name: left, ", "cameras[1].name: left is the name of cameras[0] already"),
        ("{engine: engines/right/4, region: {mode: full}}", "{threshold: 0.5}", "recipe.region: box ends at 300x200"),
        (
            "name: right, type: replay, folder: parts",
            "name: right, type: opencv, source: 'rtsp://camera/1'",
            "cameras[1].source: nobody knows how old a stream's pictures are",
        ),
        ("mode: full", "mode: fixed", "recipe.views.right.region: width_px and height_px must be over 0"),
        ("        right: {", "        rear: {", "recipe.views.rear: is no camera of this station"),
        ("height_px: 240}", "height_px: 240, exposure_ns: 5}", "cameras[1].exposure_ns: is no key here"),
        (
            "    cameras:\n",
            "    camera: {type: replay, folder: p, width_px: 99, height_px: 99}\n    cameras:\n",
            "cameras: stands beside camera; name all cameras here, or the one there",
        ),
        (TWO_CAMERAS[TWO_CAMERAS.index("    cameras") : TWO_CAMERAS.index("    recipe")], "", "camera: is missing"),
    ],
)
def test_what_several_cameras_cannot_have_is_told_at_its_place(before, after, fault):
    with pytest.raises(SettingsError) as caught:
        load(written(TWO_CAMERAS.replace(before, after).replace("width_px: 320", "width_px: 299")))
    assert any(f"stations[0].{fault}" in told for told in caught.value.faults), caught.value.faults


def test_marks_survive_flow_and_block_style():
    document = parse("a:\n  - {b: 1, c: [2, 3]}\n")
    mark = document.locate(("a", 0, "c", 1))
    assert mark is not None
    assert (mark.line, mark.column) == (2, 19)


@pytest.mark.parametrize(
    ("camera", "trigger", "fault"),
    [
        (
            "type: gige, address: 10.0.0.2, receive_buffer_bytes: 1048576",
            "camera",
            "camera.receive_buffer_bytes: 1048576 is under 1310720, a frame of 1280x1024",
        ),
        (
            "type: gige, address: 10.0.0.2, trigger_line: Line1",
            "plc",
            (
                "camera.trigger_line: Line1 goes with trigger.source: camera; with plc the daemon itself sends the "
                "trigger: leave it out"
            ),
        ),
        (
            "type: gige, address: 10.0.0.2, trigger_line: Line1, rate_hz: 5",
            "camera",
            "camera.rate_hz: 5 is for free run, trigger_line says when a frame is taken: leave it out",
        ),
        (
            "type: opencv, source: 'rtsp://10.0.0.2/1', exposure_us: 500",
            "camera",
            "camera.exposure_us: 500 is for /dev/video alone: leave it out, set it in the camera",
        ),
        (
            "type: opencv, source: /dev/video0, rate_hz: 5",
            "camera",
            "camera.rate_hz: is for video files alone: leave it out",
        ),
    ],
)
def test_camera_key_that_would_be_passed_over_or_cannot_work_is_refused(camera, trigger, fault):
    told = faults(
        f"""
version: 1
node: box
stations:
  - name: top
    takt_ms: 100
    budget_ms: 80
    trigger: {{source: {trigger}}}
    camera: {{{camera}, width_px: 1280, height_px: 1024}}
    recipe: {{engine: e/1}}
    plc: {{type: modbus, host: 10.0.0.1}}
"""
    )
    assert [line.partition("stations[0].")[2] for line in told] == [fault]


def test_film_of_a_camera_begins_at_the_file_too(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/part.avi").touch()
    film = "camera: {type: opencv, source: part.avi, width_px: 64, height_px: 64}"
    settings = load(written(re.sub(r"camera: \{.*\}", film, GOOD), "etc/line.yaml"))
    assert settings.stations[0].camera.source == str(tmp_path / "etc/part.avi")


SHARING = """
version: 1
node: box
journal: {segment_mb: 8, budget_mb: 8}
server:
  modbus: {bind: 192.168.1.5, peers: [192.168.1.0/24], port: 1503}
stations:
- &left
  name: left
  takt_ms: 100
  budget_ms: 80
  trigger: {source: plc}
  camera: {type: gige, address: 10.0.0.2, width_px: 640, height_px: 480}
  recipe: {engine: e/1}
  plc: {type: modbus, host: 10.0.0.1}
- name: right
  takt_ms: 100
  budget_ms: 80
  trigger: {source: plc}
  cameras: [{type: gige, address: 10.0.0.2, width_px: 640, height_px: 480}]
  recipe: {engine: e/1}
  plc: {type: modbus, host: 10.0.0.1, registers: {trigger: 20, result: 92}}
- name: served
  takt_ms: 100
  budget_ms: 80
  camera: {type: opencv, source: /dev/video0, width_px: 640, height_px: 480}
  recipe: {engine: e/1}
  plc: {type: modbus-server, bind: 0.0.0.0, peers: [10.0.0.1]}
- name: nodes
  takt_ms: 100
  budget_ms: 80
  camera: {type: opencv, source: /dev/video0, width_px: 640, height_px: 480}
  recipe: {engine: e/1}
  plc:
    type: opcua
    url: opc.tcp://10.0.0.3
    nodes: {trigger: i=1, part_id: i=2, result_sequence: i=3, result_part_id: i=4, result_pass: i=5, result_fail: i=5,
      result_code: i=6, result_score: i=7, busy: i=8, ready: i=9, fault: i=10, heartbeat: i=11}
"""


def test_what_only_one_may_have_is_refused_for_a_second_one():
    told = {fault.split(": ", 1)[1] for fault in faults(SHARING)}
    assert told == {
        "journal.budget_mb: 8 is under 16, two segments of segment_mb: 8",
        "stations[1].cameras[0].address: 10.0.0.2 is stations[0].camera.address already",
        "stations[3].camera.source: /dev/video0 is stations[2].camera.source already",
        "stations[3].plc.nodes.result_fail: i=5 is stations[3].plc.nodes.result_pass already",
        "server.modbus.port: 1503 is stations[2].plc.port already",
        "stations[1].plc.registers.result: 92 to 107 of that PLC are written by stations[0].plc.registers.result (100 to 115), too",
    }


def test_a_core_is_one_stations():
    first, second = GOOD.replace("takt_ms: 100", "takt_ms: 100\n    cpu: 2"), GOOD[GOOD.index("  - name") :]
    second = second.replace("name: top", "name: side").replace("takt_ms: 100", "takt_ms: 100\n    cpu: 2")
    told = {fault.split(": ", 1)[1] for fault in faults(first + second)}
    assert "stations[1].cpu: core 2 is stations[0].cpu already" in told


def test_a_poll_that_leaves_no_time_to_judge_is_refused():
    polled = WITH_PLC.replace("poll_ms: 10", "poll_ms: 70")
    (told,) = faults(polled)
    assert "stations[0].trigger.poll_ms: 70 with plc_write_ms (10) is not under 80 (budget_ms)" in told
    load(written(polled.replace("poll_ms: 70", "poll_ms: 69")))


def test_two_stations_may_have_what_is_apart():
    apart = SHARING.replace("segment_mb: 8", "segment_mb: 4").replace("bind: 0.0.0.0", "bind: 192.168.2.5")
    apart = apart.replace("result: 92", "result: 84").replace("result_fail: i=5", "result_fail: i=12")
    left, right = apart.split("- name: right")
    right = right.replace("10.0.0.2", "10.0.0.4").replace("/dev/video0", "/dev/video1", 1)
    assert [station.name for station in load(written(f"{left}- name: right{right}")).stations] == [
        "left", "right", "served", "nodes"
    ]  # fmt: skip


@pytest.mark.parametrize("host", ["10.0.0.1:502", "http://plc", "plc/1", "a b", "", "-plc"])
def test_host_is_a_name_or_an_address_alone(host):
    told = faults(GOOD + f"mqtt: {{host: '{host}'}}\n")
    what = "is no host: a name or an address alone, the port has a key of its own"
    assert told == [f"line.yaml:{GOOD.count(chr(10)) + 1}:14: mqtt.host: {host} {what}"]


def test_host_may_be_a_name_or_an_address_of_either_kind():
    for host in ("plc", "plc-3.line2.example", "10.0.0.1", "fd00::1"):
        settings = load(written(GOOD + f"mqtt: {{host: '{host}'}}\n"))
        assert settings.mqtt is not None
        assert settings.mqtt.host == host


@pytest.mark.parametrize("url", ["opc.tcp://", "opc.tcp://plc:99999", "opc.tcp://:4840"])
def test_opcua_url_has_a_host_and_a_port_that_there_is(url):
    source = f"tags: [{{type: opcua, name: oven, url: '{url}', security: none, tags: [{{name: t, node: i=1}}]}}]\n"
    (told,) = faults(GOOD + source)
    assert "tags[0].url: " in told


GATED = GOOD.replace("plc: {type: none}", "trigger: {source: plc}\n    plc: {type: modbus, host: 10.0.0.1}")


@pytest.mark.parametrize(
    ("gate", "told"),
    [
        ("{tracking: encoder, travel_pulses: 0, length_pulses: 400}", ["gate.travel_pulses: 0 is not over 0"]),
        (
            "{tracking: encoder, length_pulses: 400, travl_pulses: 5}",
            ["gate.travel_pulses: is missing", "gate.travl_pulses: is no key here; did you mean travel_pulses?"],
        ),
        (
            "{tracking: encodr, travel_pulses: 9, length_pulses: 400}",
            ["gate.tracking: encodr is none of delay, encoder, part_id; did you mean encoder?"],
        ),
        (
            "{travel_pulses: 9}",
            ["gate.tracking: is missing: delay, encoder, part_id", "gate.travel_pulses: is no key here"],
        ),
        ("encoder", ["gate: encoder where a mapping (key: value) is needed"]),
        ("[encoder]", ["gate: a list where a mapping (key: value) is needed"]),
    ],
)
def test_a_mistake_in_the_gate_is_a_fault_like_any_other(gate, told):
    found = faults(f"{GATED}    gate: {gate}\n")
    assert [fault.partition("stations[0].")[2] for fault in found] == told


def test_a_key_that_is_no_name_is_told_at_its_place():
    (told,) = faults(GOOD.replace("{engine: engines/part/1}", "{engine: e/1, views: {Side: {engine: e/2}}}"))
    assert told.startswith("line.yaml:8:35: stations[0].recipe.views.Side: Side does not match")


def test_a_text_that_its_field_refuses_hides_nothing_of_the_rest():
    text = GOOD.replace("plc: {type: none}", "plc: {type: modbus, host: '10.0.0.1:502'}\n    required_tags: [nowhere]")
    text = text.replace("budget_ms: 80", "budget_ms: 8") + (
        "server: {modbus: {bind: here, peers: [there]}}\n"
        "tags: [{type: opcua, name: oven, url: 'http://oven', tags: [{name: t, node: force}, {name: t, node: i=1}]}]\n"
        "machines: [{name: m, model: m/1, tags: {zone1_temp: nowhere}}]\n"
    )
    assert [re.sub(r"line.yaml:(\d+):\d+: ", r"\1 ", fault)[:72] for fault in faults(text)] == [
        "4 stations[0].plc_write_ms: 10 is not under 8 (budget_ms)",
        "9 stations[0].plc.host: 10.0.0.1:502 is no host: a name or an address al",
        "10 stations[0].required_tags[0]: nowhere is no tag of any source",
        "11 server.modbus.bind: 'here' does not appear to be an IPv4 or IPv6 addr",
        "11 server.modbus.peers[0]: 'there' does not appear to be an IPv4 or IPv6",
        "12 tags[0].url: http://oven is no opc.tcp://HOST:PORT",
        "12 tags[0].tags[0].node: force: a NodeId is written i=NUMBER, s=TEXT, g=",
        "12 tags[0].tags[1].name: t is the name of tags[0].tags[0].name already",
        "13 machines[0].tags.zone1_temp: nowhere is no tag of any source",
    ]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (
            "source: plc",
            "source: plc, frame_timeout_ms: 40",
            "camera.exposure_us: 40000 is not under 40000, trigger.frame_timeout_ms: the camera would count as silent",
        ),
        (
            "budget_ms: 80",
            "budget_ms: 50",
            "camera.exposure_us: 40000 is not under 40000, budget_ms less plc_write_ms: no part could be judged",
        ),
        (
            "host: 10.0.0.1}",
            "host: 10.0.0.1, registers: {trigger: 40}}",
            "",
        ),
        ("trigger: {source: plc}", "trigger: {source: camera}", ""),
    ],
)
def test_an_exposure_that_no_part_is_judged_after_is_refused(before, after, told):
    camera = "camera: {type: gige, address: 10.0.0.2, width_px: 640, height_px: 480, exposure_us: 40000}"
    text = re.sub("camera: {type: replay.*", camera, GATED).replace(before, after)
    if told:
        assert [fault.partition("stations[0].")[2] for fault in faults(text)] == [told]
    else:
        load(written(text))


def test_a_camera_whose_silence_nobody_would_notice_is_refused():
    text = GATED.replace("source: plc", "source: plc, frame_timeout_ms: 1500")
    (told,) = faults(text)
    assert "stations[0].trigger.frame_timeout_ms: 1500 is not under 1500 (15 takts)" in told
    load(written(text.replace("1500", "1499")))


def test_the_plcs_part_id_needs_a_plc():
    (told,) = faults(GOOD.replace("plc: {type: none}", "trigger: {part_id: plc}\n    plc: {type: none}"))
    assert told.endswith("stations[0].trigger.part_id: plc needs a plc other than type: none")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            "type: modbus, host: h, poll_ms: 5000",
            "poll_ms: 5000 is over 1000, half of stale_ms: its tags would be BAD from one to the next",
        ),
        (
            "type: opcua, url: 'opc.tcp://h', publishing_ms: 5000",
            "publishing_ms: 5000 is over 1000, half of stale_ms: its tags would be BAD from one to the next",
        ),
        ("type: modbus, host: h, poll_ms: 5000, stale_ms: 10000", ""),
        ("type: opcua, url: 'opc.tcp://h', stale_ms: 1e13", "stale_ms: 1e+13 is over 86400000"),
        ("type: opcua, url: 'opc.tcp://h', password: '1234'", "user: is missing, password is nothing without it"),
        (
            "type: opcua, url: 'opc.tcp://h', certificate: a",
            "private_key: is missing, certificate is nothing without it",
        ),
        (
            "type: opcua, url: 'opc.tcp://h', private_key: a",
            "certificate: is missing, private_key is nothing without it",
        ),
    ],
)
def test_a_tag_source_that_cannot_work_is_refused(source, told):
    Path("a").touch()
    text = f"{GOOD}tags: [{{name: oven, {source}, tags: [{{name: t, node: i=1, register: 1}}]}}]\n"
    if told:
        assert [fault.partition("tags[0].")[2] for fault in faults(text)] == [told]
    else:
        load(written(text))


@pytest.mark.parametrize(
    ("mqtt", "told"),
    [
        ("password: '1234'", "mqtt.user: is missing, password is nothing without it"),
        ("session_expiry_s: 9999999999", "mqtt.session_expiry_s: 9999999999 is over 4294967295"),
        ("live_expiry_s: 9999999999", "mqtt.live_expiry_s: 9999999999 is over 4294967295"),
    ],
)
def test_what_the_broker_cannot_be_told_is_refused(mqtt, told):
    assert [fault.split(": ", 1)[1] for fault in faults(f"{GOOD}mqtt: {{host: h, {mqtt}}}\n")] == [told]


def test_half_an_identity_for_the_plc_is_refused():
    nodes = "trigger part_id result_sequence result_part_id result_pass result_fail result_code result_score busy ready fault"
    named = ", ".join(f"{name}: i={number}" for number, name in enumerate([*nodes.split(), "heartbeat"], 1))
    plc = f"plc: {{type: opcua, url: 'opc.tcp://h', certificate: a, nodes: {{{named}}}}}"
    Path("a").touch()
    (told,) = faults(GOOD.replace("plc: {type: none}", plc))
    assert told.endswith("stations[0].plc.private_key: is missing, certificate is nothing without it")


def test_a_folder_of_trusted_clients_begins_at_the_file_too(tmp_path):
    (tmp_path / "etc").mkdir()
    opcua = (
        "server: {opcua: {bind: 127.0.0.1, peers: [127.0.0.1], security: none, anonymous: true, clients: trusted}}\n"
    )
    settings = load(written(GOOD + opcua, "etc/line.yaml"))
    assert settings.server.opcua is not None
    assert settings.server.opcua.clients == tmp_path / "etc" / "trusted"

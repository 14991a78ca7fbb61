"""Training: seeded, writes packages that the daemon takes, and keeps foreign images' models out of the repository."""

import csv

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="the train extra is not installed: pip install -e '.[train]'")
pytest.importorskip("onnx", reason="the train extra is not installed: pip install -e '.[train]'")

from edgeqc.inference.engine import open_engine
from edgeqc.inference.package import check_golden, load_package
from edgeqc.sim.parts import draw_set
from edgeqc.train.__main__ import _DRAWN_TASK, DEMO_OUT, main
from edgeqc.train.learn import Plan, learn
from edgeqc.train.net import SMALL, Net
from edgeqc.train.package import Scores, best_threshold
from edgeqc.train.samples import drawn, prepare
from edgeqc.train.views import Batches, Variation, Views


def _checked(folder):
    package = load_package(folder)
    engine = open_engine(package)
    assert check_golden(engine, package) <= 1e-4
    engine.close()
    return package


def test_drawn_parts_become_a_package_that_loads(tmp_path):
    assert main(["--parts", "80", "--steps", "2", "--threads", "1", "--out", str(tmp_path / "p")]) == 0
    package = _checked(tmp_path / "p")
    assert package.manifest.classes == ("scratch", "dent", "stain", "chip")
    assert package.manifest.training.images == 80


def _indexed(folder):
    """Small drawn parts as a foreign data set: pictures of several sizes, two per group."""
    folder.mkdir()
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "mask", "split", "group"])
        for index, part in enumerate(draw_set(48, seed=1, defect_ratio=0.5, shape=(96, 112))):
            keep = slice(None, None if index % 3 else 90)
            cv2.imwrite(str(folder / f"{index}.png"), part.image[:, keep])
            mask = ""
            if part.flaw:
                mask = f"{index}_mask.png"
                cv2.imwrite(str(folder / mask), part.mask[:, keep])
            split = "test" if index % 4 == 3 else "train"
            writer.writerow([f"{index}.png", "flaw" if part.flaw else "free", mask, split, f"{split}{index // 8}"])
    return folder


def test_labelled_images_become_a_package_that_loads(tmp_path):
    data = _indexed(tmp_path / "some_parts")
    asked = ["--data", str(data), "--quick", "--steps", "2", "--threads", "1", "--out", str(tmp_path / "p")]
    assert main(asked) == 0
    package = _checked(tmp_path / "p")
    assert package.manifest.name == "some_parts"
    assert package.manifest.figures.goods + package.manifest.figures.defects == 12


@pytest.mark.parametrize("out", [None, DEMO_OUT, DEMO_OUT.parents[1] / "other" / "1"])
def test_models_of_foreign_images_are_kept_out_of_the_repository(tmp_path, out, capsys):
    data = _indexed(tmp_path / "parts")
    before = sorted(DEMO_OUT.parents[1].rglob("*"))
    asked = ["--data", str(data), "--steps", "1", *(["--out", str(out)] if out else [])]
    assert main(asked) == 2
    assert "--out" in capsys.readouterr().out
    assert sorted(DEMO_OUT.parents[1].rglob("*")) == before


def test_folder_without_pictures_is_told(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    assert main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "p")]) == 2
    assert "holds no labelled pictures" in capsys.readouterr().out.replace("\n", "")


def _scores(goods, bads):
    return Scores(score=np.array([*goods, *bads]), flawed=np.array([False] * len(goods) + [True] * len(bads)))


def test_threshold_of_separate_scores_lies_between_them():
    threshold = best_threshold(_scores([0.01, 0.05, 0.1], [0.9, 0.95]))
    assert threshold == pytest.approx(0.5, abs=0.01)  # the middle of 0.1 and 0.9 in logits


def test_threshold_lets_one_bad_part_pass_rather_than_reject_a_good_one():
    scores = _scores([0.1, 0.2, 0.3], [0.25, 0.8, 0.9])
    assert 0.3 < best_threshold(scores) < 0.8


def test_auroc_counts_ties_half():
    assert _scores([0.1, 0.5], [0.5, 0.9]).auroc == pytest.approx(0.875)
    assert _scores([0.1], [0.9]).auroc == 1
    assert _scores([0.1], []).auroc == 0


def test_same_seed_trains_the_same_network():
    def weights():
        samples = prepare(_DRAWN_TASK, drawn(_DRAWN_TASK, count=12, seed=4, defect_ratio=0.5))
        views = Views(samples, _DRAWN_TASK.spec, crop=(128, 128), seed=4, variation=Variation(turns=True))
        batches = Batches(views, size=4)
        net = learn(lambda: Net(4), batches, SMALL, Plan(steps=2, seed=4), lambda *_told: None)
        return [value.numpy() for value in net.state_dict().values()]

    for one, two in zip(weights(), weights(), strict=True):
        assert np.array_equal(one, two)


def test_training_ends_at_its_minutes():
    samples = prepare(_DRAWN_TASK, drawn(_DRAWN_TASK, count=8, seed=5, defect_ratio=0.5))
    batches = Batches(Views(samples, _DRAWN_TASK.spec, crop=(64, 64), seed=5), size=4)
    steps = []
    plan = Plan(steps=1_000_000, minutes=0.02)
    learn(lambda: Net(4), batches, SMALL, plan, lambda step, done, _loss: steps.append((step, done)))
    assert steps[-1][1] == 1
    assert len(steps) < 10_000

"""Which pictures learn and which test: by whole groups, kinds in equal shares, seeded; and told to later commands."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeqc.errors import EdgeqcError
from edgeqc.train.dataset import TEST, TRAIN, Picture, read_dataset

TEST_RATIO = 0.25
SPLIT_FILE = "split.csv"
"""In a training's work folder: an index of what it learned from and tested on."""


def write_split(file: Path, pictures: Sequence[Picture]) -> None:
    """path, label, mask, group, split, part: a data set of its own. Boxes and polygons are not in it."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "mask", "group", "split", "part"])
        for one in pictures:
            mask = one.mask.resolve() if one.mask is not None else ""
            writer.writerow([one.path.resolve(), one.label, mask, one.group, one.split, one.part])


def with_drawn_split(pictures: list[Picture], engine: Path) -> list[Picture]:
    """Pictures without a split get that of the training of `engine`, where its work folder lies beside it and knows them."""
    folder = engine.resolve()
    file = folder.with_name(f"{folder.name}.work") / SPLIT_FILE
    if all(picture.split for picture in pictures) or not file.exists():
        return pictures
    drawn = {picture.path.resolve(): picture.split for picture in read_dataset(file)}
    return [replace(picture, split=picture.split or drawn.get(picture.path.resolve(), "")) for picture in pictures]


def with_split(pictures: list[Picture], seed: int) -> list[Picture]:
    """As the user split them; where nobody did, a quarter of the groups is the test. EdgeqcError on a half-made split.

    What the user calls neither train nor test is no business of the training's: see `divided`.
    """
    said = Counter(picture.split for picture in pictures)
    if not said[""]:
        return pictures
    if len(said) > 1:
        raise EdgeqcError(f"{said['']} of {len(pictures)} pictures have no split (train or test): name all or none")
    folds = folds_of(pictures, round(1 / TEST_RATIO), seed)
    return [replace(picture, split=TEST if folds[picture.group] == 0 else TRAIN) for picture in pictures]


def divided(pictures: Sequence[Picture]) -> tuple[list[Picture], list[Picture], list[Picture]]:
    """Those to learn from, those to test on, and those left aside: of other splits, which the user keeps for something else.

    A net has seen parts of those that share a group with what it learned from: `calibrate` leaves them out.
    """
    learned = [picture for picture in pictures if picture.split == TRAIN]
    tested = [picture for picture in pictures if picture.split == TEST]
    return learned, tested, [picture for picture in pictures if picture.split not in {TRAIN, TEST}]


def folds_of(pictures: list[Picture], folds: int, seed: int) -> dict[str, int]:
    """Fold of each group; kinds are spread evenly, the rarest first. Folds are fewer where there are fewer groups."""
    members: dict[str, Counter[str]] = {}
    for picture in pictures:
        members.setdefault(picture.group, Counter())[picture.label] += 1
    folds = min(folds, len(members))
    totals = Counter(picture.label for picture in pictures)
    spread = Counter(label for counts in members.values() for label in counts)
    order = sorted(members)
    np.random.default_rng(seed).shuffle(order)
    order.sort(key=lambda group: (min(spread[label] for label in members[group]), -members[group].total()))
    filled = [Counter[str]() for _ in range(folds)]
    fold_of: dict[str, int] = {}
    for group in order:
        rarest = min(members[group], key=lambda label: spread[label])
        best = min(
            range(folds),
            key=lambda fold: (
                filled[fold][rarest] / totals[rarest],
                sum(filled[fold][label] / totals[label] for label in members[group]),
                filled[fold].total(),
            ),
        )
        filled[best] += members[group]
        fold_of[group] = best
    return fold_of

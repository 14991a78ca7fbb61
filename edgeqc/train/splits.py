"""Which pictures learn and which test: by whole groups, kinds in equal shares, seeded."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from edgeqc.errors import EdgeqcError
from edgeqc.train.dataset import Picture

TEST_RATIO = 0.25


def with_split(pictures: list[Picture], seed: int) -> list[Picture]:
    """As the user split them; where nobody did, a quarter of the groups is the test. EdgeqcError on a half-made split."""
    said = Counter(picture.split for picture in pictures)
    if not said[""]:
        return pictures
    if len(said) > 1:
        raise EdgeqcError(f"{said['']} of {len(pictures)} pictures have no split (train or test): name all or none")
    folds = folds_of(pictures, round(1 / TEST_RATIO), seed)
    return [replace(picture, split="test" if folds[picture.group] == 0 else "train") for picture in pictures]


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

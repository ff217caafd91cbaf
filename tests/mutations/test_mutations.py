"""Damaged files: every loader refuses them by an error of the package, at once, or reads what is still sound."""

import warnings
from pathlib import Path

import pytest
from attack import Target, attack
from loaders import LOADERS

FAST, ALL = 25, 800
"""Damaged files for each loader: in every run of the suite, and in a slow one (10,000 in total)."""


@pytest.mark.parametrize("name", LOADERS)
def test_some_damaged_files(name: str, tmp_path: Path) -> None:
    count = 3 if "graph module" in name else FAST
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of images that were skipped
        target = Target(name, tmp_path, seed=0)
        found = [target.attack(number) for number in range(count)]
    assert [why for kind, why in found if kind == "failed"] == []
    # Of a folder of images, those that cannot be read are left out.
    noticed = "loaded" if name == "image folder" else "refused"
    assert sum(kind == noticed for kind, _ in found) > count // 4


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADERS)
def test_thousands_of_damaged_files(name: str) -> None:
    found = attack(name, range(150 if "graph module" in name else ALL), seed=1)
    assert found.failures == []

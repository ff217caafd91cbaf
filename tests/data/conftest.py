"""Small image trees for the tests of data sources."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from pictures import picture

Tree = Callable[[Mapping[str, Mapping[str, int]]], Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Write {"train": {"cat": 3}} as train/cat/000.png … and return the root."""

    def write(layout: Mapping[str, Mapping[str, int]]) -> Path:
        root = tmp_path / "images"
        seed = 0
        for split, classes in layout.items():
            for name, count in classes.items():
                folder = root / split / name
                folder.mkdir(parents=True)
                for i in range(count):
                    picture(seed).save(folder / f"{i:03}.png")
                    seed += 1
        return root

    return write

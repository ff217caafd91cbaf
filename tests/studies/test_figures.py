"""Every study runs on a small network, goes on where it was, and draws."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from clusterprune import data
from clusterprune.errors import ArgumentError, OutputError
from clusterprune.studies import figures
from clusterprune.studies.figures import STUDIES, Row, Study, Subject
from clusterprune.studies.figures.clusters import Eps
from clusterprune.train import TrainConfig

SHORT = TrainConfig(epochs=1, batch_size=64, lr=0.05, augment="none", precision="float32", device="cpu")
SETTINGS: dict[str, dict[str, Any]] = {
    "eps": {"values": [0.02, 0.3], "min_samples": 2},
    "min-samples": {"values": [1, 3], "eps": 0.3},
    "grid": {"eps": [0.02, 0.3], "min_samples": [1, 3]},
    "metric": {"quantiles": [0.2], "min_samples": 2},
    "swarm": {"values": [0.3], "cycles": 1},
    "competitors": {"methods": ["l1", "oneshot"], "keep_macs": [0.6]},
    "rates": {"epochs": 10, "layers": 4},
    "pruning-rate": {"values": [0.3, 0.6]},
    "cluster-count": {"values": [0.3]},
    "schedules": {"starts": ["trained"]},
}
"""What makes them short; the others are short."""
SLOW = {"min-samples", "grid", "metric", "swarm", "clusterings", "cluster-kinds", "schedules", "cluster-count"}
"""Those that train much and have one like them among the others."""


@pytest.fixture(scope="session")
def subject(script: Callable[[Path], ModuleType]) -> Subject:
    """A trained network on small digits."""
    made = script(Path(__file__).parents[1] / "methods" / "digits_task.py")
    network, task = made.make_task()
    test = data.sample(data.load("digits", image_size=8).test, 100, 0)
    return Subject(network, task, test, SHORT, images=32)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in STUDIES]
)
def test_a_study_measures_draws_and_says_what_it_found(name: str, subject: Subject, tmp_path: Path) -> None:
    kind = STUDIES[name]
    study = kind.read(SETTINGS.get(name, {}))
    found = figures.run(study, subject if kind.looks else None, tmp_path)
    assert kind.shows
    assert kind.finding
    assert {name for row in found.rows for name in row} >= {name for point in study.points() for name in point}
    assert json.loads((tmp_path / "study.json").read_text())["rows"] == json.loads(json.dumps(found.rows))
    with (tmp_path / "study.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(found.rows)
    picture = (tmp_path / "figure.svg").read_text()
    assert "<svg" in picture
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    drawn = picture.count("<path") + picture.count("<image")
    assert drawn > 10
    for row in found.rows:
        if "accuracy" in row:
            assert 0 <= row["accuracy"] <= 100
        if "macs_removed" in row:
            assert -1e-9 <= row["macs_removed"] < 100


def test_more_eps_leaves_fewer_channels(subject: Subject, tmp_path: Path) -> None:
    rows = figures.run(Eps(values=(1e-6, 0.3), min_samples=2), subject, tmp_path).rows
    assert rows[0]["channels"] > rows[1]["channels"]
    assert rows[0]["macs_removed"] < rows[1]["macs_removed"]


class Counts(Study):
    """Counts how often it measures, and stops once."""

    name = "counts"
    shows = "nothing"
    looks = False
    measured: list[int]

    def points(self) -> list[Row]:
        return [{"number": number} for number in range(4)]

    def measure(self, subject: Subject, point: Row, folder: Path) -> list[Row]:
        del subject, folder
        self.measured.append(point["number"])
        if self.measured == [0, 1, 2]:
            raise KeyboardInterrupt
        return [{"square": point["number"] ** 2}]

    def draw(self, rows: Any, drawing: Any) -> None:
        (axes,) = drawing.axes()
        drawing.line(axes, [row["number"] for row in rows], [row["square"] for row in rows], "square", 0)


def test_what_is_finished_is_not_measured_again(tmp_path: Path) -> None:
    Counts.measured = []
    with pytest.raises(KeyboardInterrupt):
        figures.run(Counts(), None, tmp_path)
    found = figures.run(Counts(), None, tmp_path)
    assert Counts.measured == [0, 1, 2, 2, 3]
    assert [row["square"] for row in found.rows] == [0, 1, 4, 9]


def test_a_folder_holds_one_study(tmp_path: Path) -> None:
    rates = STUDIES["rates"]
    figures.run(rates.read({"epochs": 5, "layers": 3}), None, tmp_path)
    with pytest.raises(OutputError, match="another settings"):
        figures.run(rates.read({"epochs": 6, "layers": 3}), None, tmp_path)


def test_what_a_study_lacks_is_said(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="give a subject"):
        figures.run(Eps(), None, tmp_path)
    untrained = Subject(subject.network, subject.task, subject.test)
    with pytest.raises(ArgumentError, match="give epochs"):
        figures.run(STUDIES["pruning-rate"].read({}), untrained, tmp_path)
    with pytest.raises(ArgumentError, match="no setting 'valu'; it has values, min_samples"):
        Eps.read({"valu": 3})
    with pytest.raises(ArgumentError, match="'ep' is not known"):
        figures.find("ep")


def test_without_matplotlib_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ArgumentError, match=r"pip install 'clusterprune\[studies\]'"):
        figures.run(STUDIES["rates"].read({}), None, tmp_path)

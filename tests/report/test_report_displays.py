"""What every display must do, whatever the files of a run hold."""

import json
from pathlib import Path

import pytest
from plotly.graph_objects import Figure
from run_files import BASELINE, COMPRESSED, NAME, comparison, compressed, reproduction

from clusterprune.errors import DataError
from clusterprune.report import DISPLAYS, Run, displays, opened, render
from clusterprune.report.export import write_tables

FILES = (
    "config.yaml", "result.json", "details.json", "cut-record/cut.json", "plan/plan.json", "training/log.jsonl",
    "cut-record/0.png",
)  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, list[Run]]:
    """Return runs that together show everything."""
    one = Run.open(compressed(tmp_path / "one"))
    return {
        "one": [one],
        "comparison": [Run.open(comparison(tmp_path / "comparison"))],
        "reproduction": [Run.open(reproduction(tmp_path / "reproduction"))],
        "several": [one, Run.open(compressed(tmp_path / "other"))],
    }


@pytest.mark.parametrize("name", DISPLAYS)
def test_a_display_shows_data_a_figure_and_a_statement_of_runs_that_have_what_it_needs(
    runs: dict[str, list[Run]], name: str
) -> None:
    found = [display for some in runs.values() if (display := DISPLAYS[name].of(some)) is not None]
    assert found, "no run shows it"
    for display in found:
        rows = display.frame()
        assert json.loads(json.dumps(rows)) == rows
        assert rows is not display.frame()
        assert display.statement.endswith(".") or display.name == "command"
        assert display.title
        figure = display.plot()
        assert figure is None or (isinstance(figure, Figure) and figure.data)


def test_a_reproduction_of_a_detector_says_what_decides_there(tmp_path: Path) -> None:
    file = reproduction(tmp_path / "run") / "result.json"
    content = json.loads(file.read_text())
    for network in ("baseline", "compressed"):
        content[network]["map50"] = content[network].pop("accuracy")
        content[network].pop("accuracy_top5", None)
    file.write_text(json.dumps(content))
    shown = DISPLAYS["published"].of([Run.open(file.parent)])
    assert shown is not None
    assert [row["quantity"] for row in shown.frame()][:2] == ["mAP50 (VOC), original, %", "mAP50 (VOC), compact, %"]


def test_a_run_without_files_leaves_every_display_out(tmp_path: Path) -> None:
    assert displays([Run(tmp_path)]) == []
    assert "say nothing yet" in render([Run(tmp_path)])


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("content", [None, "{", "[]", "7", '{"widths": 3, "notes": 3, "similar": [3], "baseline": {}}'])
def test_a_file_that_is_missing_or_holds_something_else_leaves_out_what_needs_it(
    tmp_path: Path, file: str, content: str | None
) -> None:
    whole = {display.name for display in displays([Run(compressed(tmp_path / "whole"))])}
    folder = compressed(tmp_path / "run")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    shown = displays([Run(folder)])
    assert {display.name for display in shown} <= whole
    for display in shown:
        display.plot()


def test_what_a_file_says_is_text_on_the_page(tmp_path: Path) -> None:
    text = render([Run(compressed(tmp_path / "run", **{"config.yaml": {"command": "compress", "model": NAME}}))])
    assert NAME not in text
    assert NAME.replace("<", "&lt;").replace(">", "&gt;") in text
    assert len(text) < 6_000_000


@pytest.mark.parametrize(
    ("code", "state", "changes"),
    [
        ("C01", "good", {}),
        ("C01", "warning", {"macs": 24000}),
        ("C02", "good", {"accuracy": 89.9}),
        ("C02", "warning", {"accuracy": 80.0}),
        ("C03", "warning", {"images": 0}),
        ("C06", "warning", {}),
        ("C07", "good", {}),
        ("C07", "warning", {"latency_ms": 2.0}),
        ("C08", "note", {"latency_iqr_ms": 0.5}),
    ],
)
def test_a_check_says_what_is_wrong_and_what_to_do(
    tmp_path: Path, code: str, state: str, changes: dict[str, float]
) -> None:
    result = {"command": "compress", "baseline": BASELINE, "compressed": {**COMPRESSED, **changes}}
    checks = DISPLAYS["checks"].of([Run(compressed(tmp_path / "run", **{"result.json": result}))])
    assert checks is not None
    found = {row["code"]: row for row in checks.frame()}[code]
    assert found["state"] == state, found
    assert bool(found["advice"]) == (state != "good")


def test_of_a_network_that_was_trained_alone_classes_are_shown_from_the_worst(tmp_path: Path) -> None:
    classes = {"names": ["cat", "dog"], "images": [100, 50], "hits": {"trained": [90, 30]}}
    details = {"networks": ["trained"], "widths": {"conv1": [16]}, "classes": classes}
    (tmp_path / "result.json").write_text(json.dumps({"command": "train", "trained": BASELINE}))
    (tmp_path / "details.json").write_text(json.dumps(details))
    found = {display.name: display for display in displays([Run(tmp_path)])}
    assert [row["right, %"] for row in found["classes"].frame()] == [60.0, 90.0]
    assert found["classes"].statement.startswith("dog is recognised least often, in 60.0 %")
    assert found["classes"].plot() is not None
    assert "widths" not in found
    assert "C06" not in {row["code"] for row in found["checks"].frame()}


def test_a_comparison_ranks_by_the_mean_over_seeds_and_tells_chance(tmp_path: Path) -> None:
    ranking = DISPLAYS["ranking"].of([Run(comparison(tmp_path / "run"))])
    assert ranking is not None
    assert [row["contender"] for row in ranking.frame()] == ["oneshot", "l1", "cp"]
    assert ranking.frame()[0]["after training"] == 88.5
    assert "oneshot keeps the most" in ranking.statement
    (table,) = write_tables([ranking], tmp_path / "tables")
    assert table.read_text().splitlines()[0].startswith("contender,seeds,")


def test_a_folder_of_several_budgets_stands_for_a_run_at_each(tmp_path: Path) -> None:
    for name in ("keep-macs-0.75", "keep-macs-0.5"):
        compressed(tmp_path / name)
    budgets = {"keep-macs-0.75": {}, "keep-macs-0.5": {}}
    (tmp_path / "result.json").write_text(json.dumps({"command": "compress", "budgets": budgets}))
    found = opened([tmp_path])
    assert [run.name for run in found] == [*budgets]
    table = DISPLAYS["runs"].of(found)
    assert table is not None
    assert [row["run"] for row in table.frame()] == ["original", *budgets]  # the original once


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder of a run"):
        Run.open(tmp_path)

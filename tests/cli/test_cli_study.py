"""``clusterprune study`` as a user runs it."""

import csv
from pathlib import Path

from command_line import Cli


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "study.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_list_names_every_study(cli: Cli) -> None:
    result = cli("study", "--list")
    assert result.exit_code == 0, result.output
    for name in ("eps", "min-samples", "metric", "rates", "schedules", "competitors"):
        assert f" {name} " in result.stdout


def test_a_study_without_a_network(cli: Cli, tmp_path: Path) -> None:
    result = cli("study", "rates", "--set", "epochs=20", "--out", tmp_path / "rates")
    assert result.exit_code == 0, result.output
    assert "The paper: Fast-slow" in result.stdout
    assert "<svg" in (tmp_path / "rates" / "figure.svg").read_text()


def test_a_sweep_over_given_values_goes_on_where_it_was(cli: Cli, tiny: str, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "eps"
    subject = ("--model", tiny, "--weights", trained, "--data", "digits", "--limit", 60, "--images", 32)
    result = cli("study", "eps", *subject, "--values", "0.01,0.4", "--set", "min_samples=2", "--out", out)
    assert result.exit_code == 0, result.output
    rows = rows_of(out)
    assert [row["eps"] for row in rows] == ["0.01", "0.4"]
    assert float(rows[1]["macs_removed"]) > float(rows[0]["macs_removed"])
    (out / "points" / "001" / "study.json").unlink()
    before = (out / "points" / "000" / "study.json").stat().st_mtime_ns
    again = cli("study", "--out", out, "--resume", "--trust", tiny.rpartition(":")[0])
    assert again.exit_code == 0, again.output
    assert rows_of(out) == rows
    assert (out / "points" / "000" / "study.json").stat().st_mtime_ns == before


def test_what_is_missing_is_said(cli: Cli, tiny: str, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert "give --model" in cli.fails("study", "eps", *out)
    assert "give --data" in cli.fails("study", "eps", "--model", tiny, *out)
    assert "give --epochs" in cli.fails("study", "schedules", "--model", tiny, "--data", "digits", *out)
    assert "precision" in cli.fails("study", "schedules", "--epochs", 1, "--precision", "half", *out)
    assert "sweeps over nothing" in cli.fails("study", "rates", "--values", "1", *out)
    assert "no setting 'epoch'" in cli.fails("study", "rates", "--set", "epoch=3", *out)
    assert "--list" in cli.fails("study", "epz", *out)
    assert "give --out" in cli.fails("study", "rates")
    assert not list((tmp_path / "out").glob("points/*"))

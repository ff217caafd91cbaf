"""Several budgets in one run, and how commands speak."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Cli

from clusterprune import Plan


def test_several_budgets_are_measured_once_and_have_a_folder_each(
    tiny: str, trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    measured: list[str] = []
    planner = sys.modules["clusterprune.methods.planner"]
    look = planner.Planner.look
    monkeypatch.setattr(planner.Planner, "look", lambda self, *given: (measured.append("once"), look(self, *given))[1])
    given = ["compress", "--model", tiny, "--weights", trained, "--data", "digits", "--images", 64]
    several = cli(*given, "--keep-macs", "75%,0.5", "--out", "many", "--json", "--quiet")

    assert several.exit_code == 0, several.output
    assert measured == ["once"]
    assert all(line.startswith("Warning: keep_macs") for line in several.stderr.splitlines())
    together = json.loads(several.stdout)
    assert together == json.loads(Path("many/result.json").read_text())
    assert [*together["budgets"]] == ["keep-macs-0.75", "keep-macs-0.5"]
    for name, result in together["budgets"].items():
        assert result["settings"]["keep_macs"] == float(name.rpartition("-")[2])
        assert {path.name for path in Path("many", name).iterdir()} >= {"compact", "plan", "config.yaml", "result.json"}
        assert result["baseline"]["accuracy"] > 90
        assert result["compressed"]["accuracy"] > 50

    assert "name one: many/keep-macs-0.5, many/keep-macs-0.75" in cli.fails("evaluate", "many")
    assert cli(*given, "--keep-macs", 0.5, "--out", "one").exit_code == 0
    assert Plan.load("one/plan") == Plan.load("many/keep-macs-0.5/plan")

    before = Path("many/keep-macs-0.75/result.json").stat().st_mtime_ns
    shutil.rmtree("many/keep-macs-0.5")
    Path("many/result.json").unlink()
    resumed = cli("compress", "--out", "many", "--resume", "--trust", tiny.rpartition(":")[0])

    assert resumed.exit_code == 0, resumed.output
    assert "keep-macs-0.5" in resumed.stdout
    assert "(whole)" in resumed.stdout
    assert Path("many/keep-macs-0.75/result.json").stat().st_mtime_ns == before
    assert Plan.load("one/plan") == Plan.load("many/keep-macs-0.5/plan")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--keep-macs", "0.5,0.5"], "has a share twice"),
        (["--keep-macs", "0.5,0.4", "--keep-params", "0.5,0.4"], "each have several shares"),
        (["--keep-macs", "0.5,2"], "keep_macs must be a fraction in (0, 1], but got keep_macs=2"),
    ],
)
def test_several_budgets_that_make_no_sense_are_refused(tiny: str, trained: Path, cli: Cli, given: list, said: str):
    assert said in cli.fails("compress", "--model", tiny, "--weights", trained, "--no-data", "--out", "run", *given)
    assert not Path("run").exists()


def test_explore_writes_a_page_and_says_which_command_gives_a_model(
    tiny: str, trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    given = ["--model", tiny, "--weights", trained, "--data", "digits", "--images", 64, "--held-out", 100]
    result = cli("explore", *given, "--budgets", "0.8,50%", "--round-to", 2, "--out", "page")

    assert result.exit_code == 0, result.output
    assert "open explore.html in a browser" in result.stdout
    found = json.loads(Path("page/result.json").read_text())
    assert [row["keep"] for row in found["rows"]] == [0.8, 0.5, 1.0]
    whole = found["rows"][-1]
    assert whole["metric"] >= found["rows"][1]["metric"] > 50
    assert found["rows"][1]["macs"] <= 0.5 * whole["macs"]
    assert all(width % 2 == 0 for row in found["rows"] for width in row["widths"].values())
    assert "{{" not in Path("page/explore.html").read_text()

    program, *command = shlex.split(found["rows"][1]["command"])
    assert program == "clusterprune"
    assert cli(*command).exit_code == 0
    made = json.loads(Path("runs/keep-0.5/result.json").read_text())["compressed"]
    # The same images; another way of sharing may be taken where it is compared at this very budget.
    assert made["macs"] == pytest.approx(found["rows"][1]["macs"], rel=0.05)
    assert 'round_to must be a whole number of at least 1 or "auto", but got round_to=' in cli.fails(
        "explore", *given, "--round-to", "even", "--out", "other"
    )
    assert "there are no images" in cli.fails("explore", "--model", tiny, "--weights", trained, "--out", "other")


def test_a_dry_run_checks_all_and_writes_nothing(tiny: str, trained: Path, cli: Cli):
    given = ["compress", "--model", tiny, "--weights", trained, "--data", "digits", "--dry-run", "--out", "run"]
    result = cli(*given, "--keep-macs", 0.5)

    assert result.exit_code == 0, result.output
    assert "go together. Nothing was written." in result.stdout
    assert "GiB" in result.stdout
    found = json.loads(cli(*given, "--keep-macs", "0.5,0.4", "--json").stdout)
    assert found["dry_run"]
    assert found["seconds"] > 0
    assert "below what can be reached" in cli.fails(*given, "--keep-macs", 0.0001)
    assert "more than memory_limit=0.001; " in cli.fails(*given, "--keep-macs", 0.5, "--memory-limit", 0.001)
    assert not Path("run").exists()


def test_a_training_may_be_limited_to_some_images(tiny: str, cli: Cli):
    given = ["--epochs", 1, "--batch-size", 16, "--limit", 40, "--out", "run", "--json"]
    result = cli("train", "--model", tiny, "--data", "digits", *given)

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["trained"]["images"] == 40


def test_the_shell_completes_commands_and_their_options():
    def complete(words: str, at: int) -> list[str]:
        asked = {"_CLUSTERPRUNE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        command = [
            sys.executable,
            "-c",
            "import sys; sys.argv[0] = 'clusterprune'; from clusterprune.cli import main; main()",
        ]
        made = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=False)
        return made.stdout.split()

    assert complete("clusterprune comp", 1) == ["compress", "compare"]
    assert {"--keep-macs", "--keep-params"} <= {*complete("clusterprune compress --keep", 2)}

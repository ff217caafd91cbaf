"""How commands end: help, version, errors, Ctrl-C."""

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Cli
from typer.testing import CliRunner

from clusterprune.cli import app
from clusterprune.errors import OutputError

COMMANDS = ("demo", "inspect", "train", "compress", "compare", "explore", "worker", "evaluate")


def test_help_lists_the_commands():
    result = CliRunner().invoke(app, ["--help"])

    assert result.exit_code == 0
    for command in COMMANDS:
        assert f" {command} " in result.stdout
    assert CliRunner().invoke(app, []).stdout.strip() == result.stdout.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_fits_the_screen(command: str):
    result = CliRunner(env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"}).invoke(app, [command, "--help"])

    assert result.exit_code == 0
    assert "Examples" in result.stdout
    assert result.stdout.count(f"clusterprune {command}") >= 2
    assert max(len(line) for line in result.stdout.splitlines()) <= 100


def test_help_and_version_do_not_wait_for_torch():
    code = (
        "import sys\n"
        "from clusterprune.cli import app\n"
        "try:\n"
        "    app(sys.argv[1:])\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    for option in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_version():
    result = CliRunner().invoke(app, ["--version"])

    assert result.stdout.startswith("clusterprune 0.")


def test_an_option_that_does_not_exist_is_named(cli: Cli):
    result = cli("inspect", "--model", "resnet20", "--weight", "x")

    assert result.exit_code == 2
    assert "--weight" in result.stderr


def test_debug_shows_where_an_error_comes_from(cli: Cli):
    result = cli("inspect", "--model", "resnet57", "--debug")

    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "Error: model='resnet57' is not known" in " ".join(result.stderr.split())


def test_faults_of_ours_are_not_hidden(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("clusterprune.trace", fault)
    with pytest.raises(ZeroDivisionError):
        cli("inspect", "--model", "resnet20")


def stopped(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("at", ["_work.trace", "cuts.oneshot"])
def test_control_c_leaves_nothing_behind(at: str, tiny: str, trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(f"clusterprune.methods.{at}", stopped)
    result = cli("compress", "--model", tiny, "--weights", trained, "--no-data", "--keep-macs", 0.5, "--out", "run")

    assert result.exit_code == 130
    assert "Stopped. Nothing was written; give the same command to begin again." in result.stderr
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("at", ["methods.once.apply", "cli.compress.save"])
def test_control_c_keeps_a_plan_that_was_made(
    at: str, tiny: str, trained: Path, trust: tuple[str, str], cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(f"clusterprune.{at}", stopped)
        result = cli("compress", "--model", tiny, "--weights", trained, "--no-data", "--keep-macs", 0.5, "--out", "run")
    assert result.exit_code == 130
    assert "What is finished is on disk. Go on with:" in result.stderr
    monkeypatch.setattr("clusterprune.methods.cuts.oneshot", stopped)  # it is not made again
    done = cli("compress", "--out", "run", "--resume", *trust)
    assert done.exit_code == 0, done.output


def test_a_full_disk_is_named_and_what_is_finished_is_kept(
    tiny: str, trained: Path, trust: tuple[str, str], cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object, **__: object) -> None:
        raise OutputError("cannot write run/compact: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("clusterprune.cli.compress.save", full)
        options = ("--model", tiny, "--weights", trained, "--no-data", "--keep-macs", 0.5, "--out", "run")
        assert "No space left on device" in cli.fails("compress", *options)
    done = cli("compress", "--out", "run", "--resume", *trust)
    assert done.exit_code == 0, done.output


def test_config_files_are_checked(tiny: str, trained: Path, cli: Cli):
    def refused(text: str) -> str:
        Path("config.yaml").write_text(text)
        result = cli("train", "--config", "config.yaml", "--out", "run")
        assert result.exit_code == 2
        return " ".join(result.stderr.replace("│", " ").split())

    assert "is of 'clusterprune compress', not of 'clusterprune train'" in refused("command: compress")
    assert "has unknown options: colour. Known: model, weights" in refused("colour: red\nmodel: resnet20")
    assert "is not YAML" in refused("model: [resnet20")
    assert "must hold one option per line" in refused("resnet20")
    assert "Missing option '--data'" in refused("model: resnet20")

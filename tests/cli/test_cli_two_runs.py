"""One folder, two commands; and what Ctrl-C and a kill leave there."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command_line import Cli
from safetensors.torch import load_file

from clusterprune.errors import OutputError
from clusterprune.files.locking import locked
from clusterprune.files.writing import atomic_folder, sweep, sweep_beside

posix = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
LONG = ("--epochs", 400, "--batch-size", 32, "--augment", "none")


def wait_for(process: subprocess.Popen[str], file: Path, lines: int = 0) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if file.exists() and len(file.read_text(errors="replace").splitlines()) >= lines:
            return
        time.sleep(0.01)
    pytest.fail(f"{file} did not come: {process.communicate()}")


def wait_until_resumed(process: subprocess.Popen[str]) -> str:
    """Return the line in which a run says from where it goes on."""
    for line in process.stderr or ():
        if "resumed from" in line:
            return line
    pytest.fail("it did not say that it goes on")


@pytest.mark.slow
@posix
def test_two_runs_do_not_share_a_folder(tiny: str, trust: tuple[str, str], cli: Cli):
    first = cli.start("train", "--model", tiny, "--data", "digits", *LONG, "--out", "run")
    try:
        wait_for(first, Path("run/log.jsonl"), 1)
        lock = json.loads(Path(".run.lock").read_text())
        assert lock["process"] == first.pid
        message = cli.fails("train", "--out", "run", "--resume", *trust)
        assert f"out='run' is in use: process {first.pid} on {lock['machine']} works there since" in message
        assert "choose another folder" in message
    finally:
        first.kill()
        first.communicate()
    # The lock died with its process, its file did not.
    assert Path(".run.lock").exists()
    second = cli.start("train", "--out", "run", "--resume", *trust)
    wait_until_resumed(second)
    interrupted(second)
    assert not Path(".run.lock").exists()


@pytest.mark.parametrize("command", ["compress", "train", "compare"])
def test_a_folder_that_another_is_about_to_make_is_in_use(command: str, tiny: str, trained: Path, cli: Cli):
    more = {"compress": ("--weights", trained, "--keep-macs", 0.5), "compare": ("--weights", trained)}.get(command, ())
    with locked(Path("deep/run")):
        message = cli.fails(command, "--model", tiny, "--data", "digits", *more, "--out", "deep/run")
        assert f"out='deep/run' is in use: process {os.getpid()} on" in message
    assert list(Path().iterdir()) == []


def test_a_lock_says_whom_to_wait_for_and_leaves_nothing(tmp_path: Path):
    folder = tmp_path / "new" / ("x" * 250)
    with locked(folder):
        (file,) = folder.parent.iterdir()
        with pytest.raises(OutputError, match=f"process {os.getpid()} on"), locked(folder):
            pytest.fail("the block must not run")
        file.write_text("[]")
        with pytest.raises(OutputError, match="is in use: another process works there"), locked(folder):
            pytest.fail("the block must not run")
        with locked(folder.with_name("other")):
            pass
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_is_swept(tiny: str, trained: Path, trust: tuple[str, str], cli: Cli):
    class Killed(BaseException):
        pass

    def killed(target: Path) -> None:
        """Leave what a process leaves that is killed while it makes a folder."""
        with contextlib.suppress(Killed), atomic_folder(target) as temporary:
            (temporary / "model.safetensors").write_bytes(b"half")
            temporary.rename(temporary.with_name(temporary.name.replace(".partial", "-kept.partial")))
            raise Killed

    cut = ("--method", "icp", "--keep-macs", 0.6, "--steps", 1, "--epochs", 1, "--set", "samples=64")
    options = ("--model", tiny, "--weights", trained, "--data", "digits", *cut)
    assert cli("compress", *options, "--out", "run").exit_code == 0
    Path("run/result.json").unlink()
    for target in ("run/compactest", "run/step-1/cuts"):
        killed(Path(target))
    Path(".run.0123abcd.partial").mkdir()
    Path("run/step-1/training/checkpoint.safetensors.partial").write_bytes(b"half")
    Path("other.partial").mkdir()
    left = [path for path in Path().rglob("*.partial") if path.name != "other.partial"]
    assert len(left) == 4
    done = cli("compress", "--out", "run", "--resume", *trust)
    assert done.exit_code == 0, done.output
    assert [path.name for path in Path().rglob("*.partial")] == ["other.partial"]
    killed(Path("one"))
    assert cli("compress", *options[:4], "--no-data", "--keep-macs", 0.6, "--out", "one").exit_code == 0
    assert [path.name for path in Path().rglob("*.partial")] == ["other.partial"]


def test_sweeping_leaves_all_else(tmp_path: Path):
    for name in (".run.aaaa.partial", ".run-2.aaaa.partial", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "model.safetensors").write_bytes(b"1")
    sweep_beside(tmp_path / "run")
    sweep(tmp_path / "run")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".run-2.aaaa.partial", "model.safetensors", "run"]


def interrupted(process: subprocess.Popen[str], *pauses: float) -> str:
    """Press Ctrl-C once, and again after each pause; return what was said."""
    process.send_signal(signal.SIGINT)
    for pause in pauses:
        time.sleep(pause)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "Nothing was written" not in said
    return said


@pytest.mark.slow
@posix
def test_ctrl_c_twice_inside_an_epoch_says_and_keeps_what_is_done(tiny: str, trust: tuple[str, str], cli: Cli):
    """And a third time after the resume: epochs are long, and checkpoints inside them are minutes apart."""
    options = ("--epochs", 3, "--batch-size", 4, "--augment", "none", "--lr", 0.001)
    whole = cli("train", "--model", tiny, "--data", "digits", *options, "--out", "whole")
    assert whole.exit_code == 0, whole.output
    process = cli.start("train", "--model", tiny, "--data", "digits", *options, "--out", "run")
    wait_for(process, Path("run/log.jsonl"), 1)  # the second of three epochs
    said = interrupted(process, 0.01, 0.05, 0.1)
    found = re.search(r"Stopped\. (\d) of 3 epochs are done and on disk, and (\d+) steps of the next\.", said)
    assert found is not None, said
    assert found[1] == "1"
    steps = int(found[2])
    assert 1 <= steps < 324

    go_on = shlex.split(said.rpartition("Go on with:")[2])[1:]
    process = cli.start(*go_on)
    assert f"1 epochs and {steps} steps are done" in wait_until_resumed(process)
    said = interrupted(process, 0.02)
    found = re.search(r"Stopped\. (\d) of 3 epochs are done and on disk, and (\d+) steps of the next\.", said)
    assert found is not None, said
    assert (found[1], int(found[2]) >= steps) in (("1", True), ("2", True), ("2", False))

    done = cli(*go_on)
    assert done.exit_code == 0, done.output
    first, second = (load_file(Path(name) / "model.safetensors") for name in ("whole", "run"))
    assert all(tensor.equal(second[name]) for name, tensor in first.items())
    log = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in Path("whole/log.jsonl").read_text().splitlines()]
    for record, other in zip(log, expected, strict=True):
        assert {k: v for k, v in record.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in other.items() if k != "seconds"}
        )


@pytest.mark.parametrize("at", ["clusterprune.runs.write_log", "clusterprune.cli.compress.measure_both"])
def test_ctrl_c_while_a_stop_is_put_away_is_no_other_stop(
    at: str, tiny: str, trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(at, interrupt)
        cut = ("--method", "l1", "--keep-macs", 0.6, "--epochs", 1)
        stopped = cli("compress", "--model", tiny, "--weights", trained, "--data", "digits", *cut, "--out", "run")
    assert stopped.exit_code == 130
    assert "1 of 1 epochs of this phase (train) are done and on disk. Go on with:" in " ".join(stopped.stderr.split())
    go_on = shlex.split(stopped.stderr.rpartition("Go on with:")[2])[1:]
    assert cli(*go_on).exit_code == 0
    assert "run was finished before" in cli(*go_on).stdout


def test_ctrl_c_before_anything_is_written_leaves_the_folder_free(tiny: str, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    options = ("train", "--model", tiny, "--data", "digits", "--epochs", 1, "--out", "run")
    for at in ("clusterprune.cli.train.fit_classes", "clusterprune.cli.train.fit"):
        with monkeypatch.context() as patch:
            patch.setattr(at, interrupt)
            stopped = cli(*options)
        assert stopped.exit_code == 130
        assert "Nothing was written; give the same command to begin again." in stopped.stderr
        assert list(Path().iterdir()) == []
    assert cli(*options).exit_code == 0

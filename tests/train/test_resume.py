import errno
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from examples import first
from safetensors.torch import load_file
from torch import Tensor

from clusterprune import train
from clusterprune.errors import ArgumentError, OutputError, TrainingError, WeightsError
from clusterprune.train import checkpoint

Fit = Callable[..., train.TrainResult]
EVERY_STEP = 1e-9  # minutes

posix = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")


class StopError(Exception):
    """Stands for anything that ends a run."""


def stop_at(number: int, kind: str = "step") -> Callable[[train.Progress], None]:
    """Return a callback that raises `StopError` at the `number`-th event of a kind."""
    seen = 0

    def progress(event: train.Progress) -> None:
        nonlocal seen
        seen += event.kind == kind
        if seen == number:
            raise StopError

    return progress


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def start_worker(worker: ModuleType, folder: Path, minutes: float) -> subprocess.Popen[str]:
    """Return a process that is getting ready to train."""
    return subprocess.Popen(
        [sys.executable, str(worker.__file__), str(folder), str(minutes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def let_it_begin(process: subprocess.Popen[str]) -> None:
    """Return when `process` has taken its first step."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdin = None
    assert any(line == "step\n" for line in process.stdout)


@pytest.mark.slow
@posix
def test_kill_9_at_random_moments_changes_nothing(
    tmp_path: Path, worker: ModuleType, fit: Fit, finished: dict[str, Tensor], same: Callable
) -> None:
    reached = []
    # Importing takes them longer than training, so they do it together.
    for process in [start_worker(worker, tmp_path, m) for m in (10, EVERY_STEP, EVERY_STEP)]:
        let_it_begin(process)
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=random.uniform(0.005, 0.15))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        _, header = checkpoint.read(tmp_path / checkpoint.FILE_NAME)
        reached.append((header.epoch, header.step))
    assert reached == sorted(reached)
    model = worker.network()
    result = fit(model, out=tmp_path, resume=True)
    assert same(model, finished), f"after kills at {reached}"
    assert log_of(tmp_path) == result.history
    assert {entry.name for entry in tmp_path.iterdir()} == {checkpoint.FILE_NAME, "log.jsonl"}


@posix
def test_ctrl_c_passes_through_and_can_be_resumed(
    tmp_path: Path, worker: ModuleType, fit: Fit, finished: dict[str, Tensor], same: Callable
) -> None:
    process = start_worker(worker, tmp_path, EVERY_STEP)
    let_it_begin(process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert not list(tmp_path.glob("*.tmp"))
    model = worker.network()
    fit(model, out=tmp_path, resume=True)
    assert same(model, finished)


@pytest.mark.parametrize("step", first(2, [5, 12, 1, 11, 38, 55]))
def test_a_run_stopped_at_a_step_resumes_within_the_epoch(
    tmp_path: Path,
    worker: ModuleType,
    fit: Fit,
    finished: dict[str, Tensor],
    same: Callable,
    step: int,
) -> None:
    with pytest.raises(StopError):
        fit(out=tmp_path, checkpoint_minutes=EVERY_STEP, progress=stop_at(step))
    _, header = checkpoint.read(tmp_path / checkpoint.FILE_NAME)
    assert header.epoch * 11 + header.step == step - 1
    events: list[train.Progress] = []
    model = worker.network()
    torch.nn.init.zeros_(model[0].weight)  # what it starts from does not matter
    result = fit(model, out=tmp_path, resume=True, progress=events.append)
    assert same(model, finished)
    assert "resumed from" in events[0].message
    assert sum(event.kind == "step" for event in events) == 56 - step
    whole = fit()
    for a, b in zip(result.history, whole.history, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_a_finished_run_resumes_to_its_end(
    tmp_path: Path, worker: ModuleType, fit: Fit, finished: dict[str, Tensor], same: Callable
) -> None:
    first = fit(out=tmp_path)
    model = worker.network()
    assert fit(model, out=tmp_path, resume=True) == first
    assert same(model, finished)
    saved = load_file(tmp_path / checkpoint.FILE_NAME)
    assert all(torch.equal(saved[f"model.{name}"], finished[name]) for name in finished)


def test_the_log_has_one_line_per_epoch_also_after_a_resume(tmp_path: Path, fit: Fit) -> None:
    with pytest.raises(StopError):
        fit(out=tmp_path, progress=stop_at(2, "epoch"))
    assert [line["epoch"] for line in log_of(tmp_path)] == [1, 2]
    log = tmp_path / "log.jsonl"
    # A kill lost the second line; another wrote one that no checkpoint stands behind, and half one.
    log.write_text(log.read_text().splitlines()[0] + '\n{"epoch": 3}\n{"epo')
    result = fit(out=tmp_path, resume=True)
    assert log_of(tmp_path) == result.history
    assert [line["epoch"] for line in log_of(tmp_path)] == [1, 2, 3, 4, 5]


def test_other_arguments_are_named(tmp_path: Path, worker: ModuleType, fit: Fit) -> None:
    fit(out=tmp_path, epochs=2)
    with pytest.raises(ArgumentError) as caught:
        fit(out=tmp_path, resume=True, epochs=3, lr=0.01)
    assert "epochs=3 (the checkpoint has 2), lr=0.01 (the checkpoint has 0.05);" in str(caught.value)
    with pytest.raises(ArgumentError, match=r"arguments.* train='331 images of 1x8x8, targets"):
        fit(out=tmp_path, resume=True, epochs=2, train=worker.images(331))
    with pytest.raises(ArgumentError, match=r"validation=None"):
        fit(out=tmp_path, resume=True, epochs=2, validation=None)
    with pytest.raises(ArgumentError, match=r"mean=\[0.4\] \(the checkpoint has \[0.5\]\)"):
        fit(out=tmp_path, resume=True, epochs=2, mean=(0.4,))
    with pytest.raises(ArgumentError, match=r"10.bias is \(5,\) .* in the checkpoint, \(6,\)"):
        fit(worker.network(classes=6), out=tmp_path, resume=True, epochs=2)
    # What changes nothing may differ.
    fit(out=tmp_path, resume=True, epochs=2, checkpoint_minutes=1, memory_limit_gib=0, device=None)


def test_another_number_of_threads_is_mentioned(tmp_path: Path, fit: Fit) -> None:
    fit(out=tmp_path, epochs=2)
    torch.set_num_threads(2)
    notes: list[str] = []
    fit(out=tmp_path, epochs=2, resume=True, progress=lambda event: notes.append(event.message))
    assert "threads was 1 and is 2" in notes[1]


def test_an_existing_checkpoint_is_not_overwritten(tmp_path: Path, fit: Fit) -> None:
    fit(out=tmp_path, epochs=2)
    before = (tmp_path / checkpoint.FILE_NAME).read_bytes()
    with pytest.raises(OutputError, match=r"already holds .*pass resume=True .*or another folder"):
        fit(out=tmp_path, epochs=2)
    assert (tmp_path / checkpoint.FILE_NAME).read_bytes() == before


def test_resume_without_a_checkpoint_starts_and_says_so(
    tmp_path: Path, worker: ModuleType, fit: Fit, finished: dict[str, Tensor], same: Callable
) -> None:
    events: list[train.Progress] = []
    model = worker.network()
    fit(model, out=tmp_path / "new" / "folder", resume=True, progress=events.append)
    assert events[0].kind == "note"
    assert "no checkpoint in" in events[0].message
    assert same(model, finished)
    with pytest.raises(ArgumentError, match="resume=True needs out"):
        fit(resume=True)


def test_a_folder_that_cannot_be_written_is_found_at_once(tmp_path: Path, fit: Fit) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file, not a folder"):
        fit(out=tmp_path / "file")
    with pytest.raises(OutputError, match="cannot make the folder"):
        fit(out=tmp_path / "file" / "below")
    with pytest.raises(ArgumentError):
        fit(out=tmp_path / "never", mean=(), std=())
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path, fit: Fit, damage: str) -> None:
    fit(out=tmp_path, epochs=2)
    path = tmp_path / checkpoint.FILE_NAME
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-100] ^= 255
    path.write_bytes({"cut": content[: len(content) // 2], "flip": content, "empty": b""}[damage])
    with pytest.raises(WeightsError, match=r"checkpoint\.safetensors .*delete it to start over"):
        fit(out=tmp_path, epochs=2, resume=True)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_names_the_folder_and_keeps_the_checkpoint(
    tmp_path: Path,
    worker: ModuleType,
    fit: Fit,
    finished: dict[str, Tensor],
    same: Callable,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def progress(event: train.Progress) -> None:
        if event.kind == "epoch" and event.epoch == 2:
            monkeypatch.setattr(os, call, full)

    with pytest.raises(TrainingError) as caught:
        fit(out=tmp_path, progress=progress)
    monkeypatch.undo()
    message = str(caught.value)
    assert "in epoch 3" in message
    assert f"{tmp_path} cannot be written (No space left on device)" in message
    assert f"last good checkpoint is {tmp_path / checkpoint.FILE_NAME}, 2 epochs done" in message
    assert not list(tmp_path.glob("*.tmp"))
    model = worker.network()
    fit(model, out=tmp_path, resume=True)
    assert same(model, finished)


def test_a_full_disk_at_the_start_is_an_output_error(tmp_path: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device\); free some space"):
        fit(out=tmp_path)


class Poison:
    """A forward hook that makes the output NaN at one training step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self, module: torch.nn.Module, _: object, output: Tensor) -> Tensor:
        self.left -= module.training
        return output * float("nan") if self.left == 0 and module.training else output


def test_a_loss_that_is_not_finite_stops_with_the_last_good_state(
    tmp_path: Path, worker: ModuleType, fit: Fit, same: Callable
) -> None:
    model = worker.network()
    model.register_forward_hook(Poison(11 + 4))
    with pytest.raises(TrainingError) as caught:
        fit(model, out=tmp_path)
    message = str(caught.value)
    assert "diverged in epoch 2: the loss was nan at step 4" in message
    assert "lower lr=0.05" in message
    assert f"last good checkpoint is {tmp_path / checkpoint.FILE_NAME}, 1 epochs done" in message
    tensors, header = checkpoint.read(tmp_path / checkpoint.FILE_NAME)
    assert (header.epoch, header.step) == (1, 0)
    good = {name.removeprefix("model."): t for name, t in tensors.items() if "model." in name}
    assert same(model, good)
    assert all(value.isfinite().all() for value in good.values())


def test_without_a_folder_the_model_is_put_back_all_the_same(worker: ModuleType, fit: Fit, same: Callable) -> None:
    one_epoch, model = worker.network(), worker.network()
    with pytest.raises(StopError):
        fit(one_epoch, progress=stop_at(1, "epoch"))
    model.register_forward_hook(Poison(11 + 4))
    with pytest.raises(TrainingError, match="no checkpoint was kept, since out is None"):
        fit(model)
    assert same(model, one_epoch)


def test_weights_that_overflow_in_the_last_step_are_not_saved(tmp_path: Path, fit: Fit) -> None:
    with pytest.raises(TrainingError, match="a weight was no longer finite after step 1"):
        fit(
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5)),
            std=(1e-3,),  # large inputs, large gradients
            out=tmp_path,
            batch_size=330,
            lr=3e38,
            warmup_epochs=0,
        )
    tensors, header = checkpoint.read(tmp_path / checkpoint.FILE_NAME)
    assert header.epoch == 0
    assert all(value.isfinite().all() for value in tensors.values())

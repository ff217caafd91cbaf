import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clusterprune.data.augment import augment
from clusterprune.errors import ArgumentError
from clusterprune.train import Processes, TrainConfig, steps
from clusterprune.train.processes import join

SCRIPT = Path(__file__).with_name("parallel_worker.py")


@pytest.fixture(scope="module")
def parallel(script: Callable[[Path], ModuleType]) -> ModuleType:
    return script(SCRIPT)


def launch(folder: Path, norm: str, stop: int = 0) -> subprocess.CompletedProcess[str]:
    """Train in two processes, on the CPU: Accelerate's own --cpu starts several only through MPI."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    command += ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(SCRIPT), str(folder), norm, str(stop)],
        capture_output=True, text=True, env=environment, timeout=170, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(("images", "batch", "count"), [(10, 4, 2), (11, 4, 3), (8, 4, 2), (3, 4, 2), (17, 5, 2)])
def test_the_shares_of_a_batch_make_up_the_batch(images: int, batch: int, count: int) -> None:
    order = torch.randperm(images)
    parts = [Processes(rank, count).shares(order, batch) for rank in range(count)]
    pieces = [part.split(size) for part, size in parts]
    assert {len(piece) for piece in pieces} == {-(-images // batch)}
    for number, whole in enumerate(order.split(batch)):
        taken = torch.cat([piece[number] for piece in pieces])
        assert sorted(taken.tolist()) == sorted(whole.tolist())
        assert max(len(piece[number]) for piece in pieces) - min(len(piece[number]) for piece in pieces) <= 1


def test_a_lone_process_has_it_all() -> None:
    order = torch.randperm(7)
    part, size = Processes().shares(order, 3)
    assert part is order
    assert size == 3
    rows = torch.rand(3, 2)
    assert Processes().gather(rows) is rows


def test_the_draws_of_a_share_are_those_of_the_whole() -> None:
    images = torch.randint(256, (10, 1, 8, 8), dtype=torch.uint8)
    whole = augment(images, "crop_flip", torch.Generator().manual_seed(3))
    for rank in range(3):
        share = Processes(rank, 3).share(10)
        part = augment(images[share], "crop_flip", torch.Generator().manual_seed(3), 10, share)
        assert torch.equal(part, whole[share])


def test_the_crops_of_a_share_are_those_of_the_whole() -> None:
    """Drawn for all steps that are left, in the order of this process's images."""

    def crops(processes: Processes) -> torch.Tensor:
        generator = lambda *at: torch.Generator().manual_seed(sum(at))  # noqa: E731
        run: Any = SimpleNamespace(config=TrainConfig(batch_size=4), processes=processes, generator=generator)
        state: Any = SimpleNamespace(epoch=7, step=1)
        return steps._crops(run, state, 14)

    whole = crops(Processes())
    assert whole.shape == (10, 5)
    for rank in range(3):
        processes = Processes(rank, 3)
        mine, _ = processes.shares(torch.arange(10), 4)
        assert torch.equal(crops(processes), whole[mine])


def test_one_process_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join(TrainConfig(device="cpu")) == (Processes(), torch.device("cpu"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join(TrainConfig(device="cpu"))[0].alone


def test_a_device_for_all_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ArgumentError, match="device='cpu:0' is one device for several processes; pass 'cpu'"):
        join(TrainConfig(device="cpu:0"))


@pytest.mark.slow
def test_two_processes_follow_the_loss_curve_of_one(tmp_path: Path, parallel: ModuleType) -> None:
    torch.set_num_threads(1)
    done = launch(tmp_path / "two", "plain")
    assert done.returncode == 0, done.stderr
    model, result = parallel.run(tmp_path / "one", "plain", 0)
    both = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert len(both) == len(result.history) == 3
    for record, alone in zip(both, result.history, strict=True):
        assert record["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert record["train_accuracy"] == pytest.approx(alone["train_accuracy"], abs=0.2)
        assert record["validation_accuracy"] == pytest.approx(alone["validation_accuracy"], abs=0.6)
    first, second = (load_file(f"{tmp_path / 'two'}.{rank}") for rank in range(2))
    for name, tensor in model.state_dict().items():
        assert torch.equal(first[name], second[name])
        # Sums in another order, over three epochs: how far that goes is the processor's.
        torch.testing.assert_close(first[name], tensor, rtol=1e-3, atol=1e-3)
    # The main process alone reports, and as often as one process would.
    assert (tmp_path / "two.events").read_text() == (tmp_path / "one.events").read_text()


@pytest.mark.slow
def test_two_stopped_processes_resume_bit_equal(tmp_path: Path) -> None:
    # With batch norm and dropout: statistics and draws that each process has of its own.
    assert launch(tmp_path / "whole", "norm").returncode == 0
    stopped = launch(tmp_path / "stopped", "norm", stop=16)
    assert stopped.returncode != 0
    assert "stopped on purpose" in stopped.stderr
    assert not (tmp_path / "stopped.0").exists()
    assert launch(tmp_path / "stopped", "norm").returncode == 0
    whole, *others = (load_file(tmp_path / name) for name in ("whole.0", "whole.1", "stopped.0", "stopped.1"))
    for other in others:
        assert all(torch.equal(other[name], whole[name]) for name in whole)

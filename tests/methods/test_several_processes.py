"""Methods in two processes do what they do in one, but for the order in which float32 sums are taken."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("several_worker.py")


@pytest.fixture(scope="module")
def several(script: Callable[[Path], ModuleType]) -> ModuleType:
    return script(SCRIPT)


@pytest.fixture(scope="module")
def begun(several: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the network that all methods are given."""
    folder = tmp_path_factory.mktemp("begun")
    several.prepare(folder)
    return folder


def launch(begun: Path, folder: Path, methods: str, stop: int = 0) -> subprocess.CompletedProcess[str]:
    """Run methods in two processes, on the CPU: Accelerate's own --cpu starts several only through MPI."""
    shutil.copytree(begun, folder, dirs_exist_ok=True)
    started = "--multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0 --mixed_precision no"
    command = [sys.executable, "-m", "accelerate.commands.launch", *started.split(), "--dynamo_backend", "no"]
    return subprocess.run(
        [*command, str(SCRIPT), str(folder), methods, str(stop)],
        capture_output=True, text=True, timeout=170, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def check_same(several: ModuleType, begun: Path, two: Path, name: str) -> None:
    """Compare a method in two processes with the same in one: widths and reports alike, weights to rounding."""
    one = two / "one" / name
    shutil.copytree(begun, one.parent, dirs_exist_ok=True)
    alone = several.run(name, one).model.state_dict()
    first, second = (load_file(f"{two / name}.{rank}") for rank in range(2))
    for key, tensor in alone.items():
        assert torch.equal(first[key], second[key])
        assert first[key].shape == tensor.shape
        torch.testing.assert_close(first[key], tensor, rtol=1e-4, atol=1e-5)
    # The main process alone reports, and as often as one process would.
    assert Path(f"{two / name}.events").read_text() == Path(f"{one}.events").read_text()
    files = {path.relative_to(one) for path in one.rglob("*")}
    assert {path.relative_to(two / name) for path in (two / name).rglob("*")} == files


def test_icp_in_two_processes_is_icp_in_one(several: ModuleType, begun: Path, tmp_path: Path) -> None:
    done = launch(begun, tmp_path, "icp")
    assert done.returncode == 0, done.stderr
    check_same(several, begun, tmp_path, "icp")


@pytest.mark.slow
def test_every_method_in_two_processes_is_what_it_is_in_one(several: ModuleType, begun: Path, tmp_path: Path) -> None:
    names = [name for name in several.METHODS if name != "icp"]
    done = launch(begun, tmp_path, ",".join(names))
    assert done.returncode == 0, done.stderr
    for name in names:
        check_same(several, begun, tmp_path, name)


@pytest.mark.slow
def test_icp_that_was_stopped_in_two_processes_goes_on_bit_by_bit(begun: Path, tmp_path: Path) -> None:
    assert launch(begun, tmp_path / "whole", "icp").returncode == 0
    stopped = launch(begun, tmp_path / "stopped", "icp", stop=8)  # in the training after the second cut
    assert stopped.returncode != 0
    assert "stopped on purpose" in stopped.stderr
    assert (tmp_path / "stopped" / "icp" / "step-2" / "cut").exists()
    assert not (tmp_path / "stopped" / "icp.0").exists()
    assert launch(begun, tmp_path / "stopped", "icp").returncode == 0
    whole, *others = (load_file(tmp_path / name) for name in ("whole/icp.0", "stopped/icp.0", "stopped/icp.1"))
    for other in others:
        assert all(torch.equal(other[name], whole[name]) for name in whole)

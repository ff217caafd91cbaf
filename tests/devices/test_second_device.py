"""Every public call on a second device, which refuses what CUDA refuses (``second_device.py``), as on the CPU.

The calls and what is compared are those of ``make gpu``. On the code of before these tests, one shot ends in
``kernel_change`` with "two devices", as it did on a GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHECK = HERE.parents[1] / "benchmarks" / "gpu_check.py"
STARTER = HERE / "run_on_second_device.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(part for part in sys.path if part),
        "OMP_NUM_THREADS": "1",
        "CLUSTERPRUNE_CHECK_PYTHON": json.dumps([str(STARTER)]),
    }
    command = [sys.executable, "-W", "error::UserWarning", str(STARTER), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def check(folder: Path, *parts: str) -> None:
    done = run(CHECK, "--device", "standin", "--folder", folder, "--part", *parts)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    for part in parts:
        rows = [json.loads(line) for line in (folder / f"{part}.jsonl").read_text().splitlines()]
        assert rows
        assert [row for row in rows if not row["fine"]] == []


def test_it_refuses_what_cuda_refuses() -> None:
    done = run(HERE / "refusals.py")
    assert done.returncode == 0, done.stderr


def test_tracing_planning_cutting_and_training(tmp_path: Path) -> None:
    check(tmp_path, "trace", "oneshot", "fit")


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [
        ("distil", "plan", "prune_by", "law_2", "disk", "measure"),
        ("icp", "acp", "cp_and_sfp"),
        ("resume", "worker", "commands"),
    ],
    ids=" ".join,
)
def test_everything_else(tmp_path: Path, parts: tuple[str, ...]) -> None:
    check(tmp_path, *parts)


@pytest.mark.slow
def test_a_step_that_is_recorded_waits_for_nothing() -> None:
    done = run(HERE / "captured_step.py")
    assert done.returncode == 0, done.stderr[-6000:]

"""Commands that `accelerate launch` starts twice: one process writes and speaks, and an error is said once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = """
model: {model}
data: digits
method: icp
settings: {{keep_macs: 0.6, min_samples: 2, samples: 64, steps: 2, epochs_between: 1}}
training: {{epochs: 2, batch_size: 128, lr: 0.05, augment: none, precision: float32}}
baseline: {{epochs: 2, batch_size: 128, lr: 0.1, augment: none, precision: float32}}
"""


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in two processes, on the CPU: Accelerate's own --cpu starts several only through MPI."""
    started = "--multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0 --mixed_precision no"
    command = [sys.executable, "-m", "accelerate.commands.launch", *started.split(), "--dynamo_backend", "no"]
    return subprocess.run(
        [*command, "--module", "clusterprune", *(str(a) for a in arguments), "--device", "cpu"],
        capture_output=True, text=True, timeout=170, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture
def options(cli: object, tiny: str, trained: Path) -> tuple[object, ...]:
    del cli  # changes to a folder of the test's own
    return ("--model", tiny, "--weights", trained, "--data", "digits")


@pytest.mark.slow
def test_compress_in_two_processes(options: tuple[object, ...], trust: tuple[str, str]):
    changes = ("--set", "steps=2", "--set", "samples=64", "--set", "epochs_between=1")
    icp = ("--method", "icp", "--keep-macs", 0.6, *changes)
    done = launch("compress", *options, *icp, "--epochs", 1, "--augment", "none", "--out", "run")

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top-1 accuracy") == done.stdout.count("Written to run") == 1
    assert done.stderr.count("time both") == 1
    result = json.loads(Path("run/result.json").read_text())
    assert result["compressed"]["macs"] <= 0.6 * result["baseline"]["macs"]
    again = launch("compress", "--out", "run", "--resume", *trust)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("run was finished before") == 1


@pytest.mark.slow
def test_an_error_in_two_processes_is_said_once(options: tuple[object, ...]):
    done = launch("compress", *options, "--keep-macs", 1e-4, "--images", 64, "--out", "run")

    assert done.returncode != 0
    assert done.stderr.count("Error: ") - done.stderr.count("ChildFailedError: ") == 1
    assert "keep_macs=0.0001" in done.stderr
    assert not Path("run").exists()


@pytest.mark.slow
def test_compare_in_two_processes(options: tuple[object, ...]):
    contenders = "l1,icp:samples=64,acp:samples=64:particles=2:cycles=1"
    done = launch("compare", *options, "--methods", contenders, "--epochs", 3, "--out", "run")

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written to run") == 1
    entries = json.loads(Path("run/result.json").read_text())["entries"]
    assert [entry["contender"] for entry in entries] == contenders.split(",")


@pytest.mark.slow
def test_reproduce_in_two_processes(cli: object, tiny: str, trust: tuple[str, str]):
    del cli
    Path("own.yaml").write_text(RECIPE.format(model=tiny))
    done = launch("reproduce", "own.yaml", "--data", "digits", "--limit", 400, "--out", "run", *trust)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written to run") == 1
    result = json.loads(Path("run/result.json").read_text())
    assert result["compressed"]["macs"] <= 0.61 * result["baseline"]["macs"]

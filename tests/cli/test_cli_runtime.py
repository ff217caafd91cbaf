"""Times are of the runtime that is asked for, and so is a target in time."""

import json
from pathlib import Path

import pytest
from command_line import Cli

from clusterprune.cli.compress import clock_of
from clusterprune.errors import ArgumentError
from clusterprune.methods import find
from clusterprune.methods.latency import Clock


@pytest.mark.parametrize("name", ["torch:threads=1", "onnxruntime:threads=1"])
def test_times_are_of_the_runtime(name: str, trained: Path, trust: tuple[str, str], cli: Cli):
    pytest.importorskip("onnxruntime")
    result = cli("evaluate", trained, *trust, "--runtime", name, "--latency-batch", 2, "--json")

    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["runtime"] == name
    assert found["latency_batch"] == 2
    assert found["latency_ms"] > 0
    shown = cli("evaluate", trained, *trust, "--runtime", name).stdout
    assert f"latency, 1 image, {name}" in shown


def test_what_is_compressed_is_timed_on_it_before_and_after(tiny: str, trained: Path, cli: Cli):
    options = ("--data", "digits", "--keep-macs", 0.6, "--images", 64, "--runtime", "torch:threads=1", "--out", "run")
    result = cli("compress", "--model", tiny, "--weights", trained, *options)

    assert result.exit_code == 0, result.output
    assert "latency, 1 image, torch:threads=1" in result.stdout
    assert json.loads(Path("run/result.json").read_text())["runtime"] == "torch:threads=1"
    again = cli("compress", "--out", "run", "--resume", "--trust", tiny.rpartition(":")[0])
    assert "run was finished before" in again.stdout
    assert "latency, 1 image, torch:threads=1" in again.stdout
    message = cli.fails("compress", "--model", tiny, "--weights", trained, *options[:-3], "tpu", "--out", "other")
    assert "runtime='tpu' is not known" in message


def test_a_target_in_time_is_met_on_it_at_the_batch_of_all_times():
    wanted = {"runtime": "onnxruntime:threads=1", "latency_batch": 8, "keep_latency": 0.5}
    method = find("oneshot").read({"keep_latency": 0.5, **clock_of(wanted)})

    assert method.keep.arguments()["latency"] == Clock("onnxruntime:threads=1", 8)
    assert find("l1").read({"keep_latency": 0.5, **clock_of(wanted)}).keep.clock == Clock("onnxruntime:threads=1", 8)
    assert clock_of(wanted | {"keep_latency": None}) == {}
    for text in ("onnxruntime:batch=x", "onnxruntime:batch=0", "tpu"):
        with pytest.raises(ArgumentError, match=r"latency=|batch must|runtime="):
            find("oneshot").read({"keep_latency": 0.5, "latency": text})

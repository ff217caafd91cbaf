import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from command_line import Cli
from safetensors.torch import load_file

from clusterprune.cli.train import train
from clusterprune.errors import ModelError
from clusterprune.train import TrainConfig

EPOCHS = 16


def arguments(tiny: str, out: Path) -> list[object]:
    return ["train", "--model", tiny, "--data", "digits", "--epochs", EPOCHS, "--augment", "crop", "--out", out]


def wait_for_epochs(process: subprocess.Popen[str], out: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        log = out / "log.jsonl"
        if log.exists() and len(log.read_text().splitlines()) >= count:
            return
        if process.poll() is not None:
            break
        time.sleep(0.01)
    pytest.fail(f"no {count} epochs came: {process.communicate()}")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.equal(second[name]), name


def test_a_run_leaves_its_files_and_a_table(trained: Path, cli: Cli):
    result = json.loads((trained / "result.json").read_text())
    config = yaml.safe_load((trained / "config.yaml").read_text())
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]

    assert result["trained"]["accuracy"] > 90
    assert result["trained"]["images"] == 359
    assert result["trained"]["params"] == sum(
        t.numel() for n, t in load_file(trained / "model.safetensors").items() if "running" not in n and "num_" not in n
    )
    assert result["seconds"]["train"] > 0
    assert result["versions"]["torch"]
    assert (config["command"], config["data"], config["epochs"]) == ("train", "digits", 6)
    assert config["num_classes"] == 10
    assert [record["epoch"] for record in log] == [1, 2, 3, 4, 5, 6]


def test_it_says_how_each_epoch_went(tiny: str, cli: Cli):
    result = cli("train", "--model", tiny, "--data", "digits", "--epochs", 2, "--validation", 0.2, "--out", "run")

    assert result.exit_code == 0
    assert len(re.findall(r"epoch [12]/2  loss \d\.\d+  train +\d+\.\d\d %  validation", result.stderr)) == 2
    assert "top-1 accuracy" in result.stdout
    assert "Written to run" in result.stdout


def test_the_same_seed_gives_the_same_weights_from_a_config_file(
    trust: tuple[str, str], tiny: str, trained: Path, cli: Cli
):
    result = cli("train", "--config", trained / "config.yaml", "--out", "again", *trust)

    assert result.exit_code == 0, result.output
    assert_same_weights(trained, Path("again"))


def test_killed_and_interrupted_runs_resume_to_the_same_weights(trust: tuple[str, str], tiny: str, cli: Cli):
    assert cli(*arguments(tiny, Path("whole"))).exit_code == 0

    killed = cli.start(*arguments(tiny, Path("stopped")))
    wait_for_epochs(killed, Path("stopped"), 2)
    killed.kill()
    killed.communicate()
    assert not Path("stopped/result.json").exists()

    interrupted = cli.start("train", "--out", "stopped", "--resume", *trust)
    wait_for_epochs(interrupted, Path("stopped"), 4)
    interrupted.send_signal(signal.SIGINT)
    _, said = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130, said
    assert "Traceback" not in said
    assert re.search(rf"Stopped\. \d+ of {EPOCHS} epochs are done and on disk", said)

    # What it says to go on with is what a user would copy.
    go_on = shlex.split(said.rpartition("Go on with:")[2])
    assert go_on[0] == "clusterprune"
    result = cli(*go_on[1:])
    assert result.exit_code == 0, result.output
    assert "resumed from" in result.stderr
    assert_same_weights(Path("whole"), Path("stopped"))

    result = cli(*go_on[1:])
    assert result.exit_code == 0
    assert "was finished before" in result.stdout


def test_resume_refuses_other_options(tiny: str, trained: Path, cli: Cli):
    message = cli.fails("train", "--out", trained, "--resume", "--lr", 0.5)

    assert "lr=0.5 (the run has 0.1)" in message
    assert "leave them out" in message


def test_resume_needs_a_run(cli: Cli):
    result = cli("train", "--out", "nowhere", "--resume")

    assert result.exit_code == 2
    assert "nowhere holds no run to resume" in " ".join(result.stderr.replace("│", " ").split())


def test_a_folder_in_use_is_refused_before_any_work(tiny: str, trained: Path, cli: Cli):
    message = cli.fails("train", "--model", tiny, "--data", "folder:not/there", "--out", trained)

    assert f"out={str(trained)!r} exists and is not empty" in message


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--epochs", 0, "epochs: input should be greater than or equal to 1, but got epochs=0"),
        (
            "--schedule",
            "linear",
            "schedule: input should be 'cosine', 'step', 'onecycle' or 'constant', but got schedule='linear'",
        ),
        ("--milestones", "60;120", "milestones must be shares of the run between 0 and 1 with commas between them"),
        ("--milestones", "60,120", "milestones must be fractions of the run between 0 and 1"),
        ("--validation", 0.0001, "fraction=0.0001 of 1438 images leaves one part empty"),
        ("--device", "cuda:99", "device='cuda:99' cannot be used here"),
    ],
)
def test_settings_out_of_range_are_named(tiny: str, cli: Cli, option: str, value: object, expected: str):
    message = cli.fails("train", "--model", tiny, "--data", "digits", "--out", "run", option, value)

    assert expected in message
    assert not Path("run").exists()


def test_a_run_that_never_began_leaves_no_folder(tiny: str, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise ModelError("the model cannot be trained")

    monkeypatch.setattr("clusterprune.cli.train.fit", refuse)
    assert "cannot be trained" in cli.fails("train", "--model", tiny, "--data", "digits", "--out", "run")
    assert list(Path().iterdir()) == []


def test_diverging_training_says_what_to_change(tiny: str, cli: Cli):
    message = cli.fails(
        *(
            "train",
            "--model",
            tiny,
            "--data",
            "digits",
            "--out",
            "run",
            "--epochs",
            3,
            "--lr",
            1e30,
            "--augment",
            "none",
        )
    )

    assert "training diverged in epoch 1" in message
    assert "lower lr=" in message


def test_the_other_schedules_and_the_average_of_weights(tiny: str, cli: Cli):
    common = ("train", "--model", tiny, "--data", "digits", "--epochs", 2, "--augment", "none")
    assert cli(*common, "--schedule", "onecycle", "--out", "cycle").exit_code == 0
    assert cli(*common, "--schedule", "constant", "--ema-decay", 0.9, "--out", "average").exit_code == 0
    assert cli(*common, "--schedule", "constant", "--out", "last").exit_code == 0

    rates = {
        name: [json.loads(line)["learning_rate"] for line in Path(name, "log.jsonl").read_text().splitlines()]
        for name in ("cycle", "average")
    }
    assert rates["average"] == [0.1, 0.1]
    assert rates["cycle"][1] < rates["cycle"][0] < 0.1
    average, last = (load_file(Path(name, "model.safetensors")) for name in ("average", "last"))
    assert not average["0.weight"].equal(last["0.weight"])


def test_float16_is_for_cuda(tiny: str, cli: Cli):
    message = cli.fails(
        "train", "--model", tiny, "--data", "digits", "--out", "run", "--precision", "float16", "--device", "cpu"
    )

    assert "precision='float16' needs a CUDA device, but got cpu" in message
    assert not Path("run").exists()


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in two processes, on the CPU: Accelerate's own --cpu starts several only through MPI."""
    started = "--multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0 --mixed_precision no"
    command = [sys.executable, "-m", "accelerate.commands.launch", *started.split(), "--dynamo_backend", "no"]
    return subprocess.run(
        [*command, "--module", "clusterprune.cli", *(str(a) for a in arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        timeout=170,
        check=False,
    )


@pytest.mark.slow
def test_of_two_processes_one_writes_and_speaks(trust: tuple[str, str], tiny: str, cli: Cli):
    options = ("--model", tiny, "--data", "digits", "--epochs", 2, "--augment", "none", "--device", "cpu")
    done = launch("train", *options, "--out", "two")

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top-1 accuracy") == 1
    assert done.stdout.count("Written to two") == 1
    assert len(re.findall(r"epoch [12]/2  loss", done.stderr)) == 2
    assert len(Path("two/log.jsonl").read_text().splitlines()) == 2
    assert cli("train", *options, "--out", "one").exit_code == 0
    records = [[json.loads(line) for line in Path(n, "log.jsonl").read_text().splitlines()] for n in ("one", "two")]
    for alone, both in zip(*records, strict=True):
        # Batch norm sees half the batch in each process.
        assert both["loss"] == pytest.approx(alone["loss"], rel=0.1)
    accuracy = json.loads(Path("two/result.json").read_text())["trained"]["accuracy"]
    assert accuracy > 50
    assert cli("evaluate", "two", "--data", "digits", *trust).exit_code == 0

    again = launch("train", "--out", "two", "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("two was finished before") == 1
    refused = launch("train", *options, "--out", "two")
    assert refused.returncode != 0
    assert "exists and is not empty" in refused.stderr


def test_defaults_are_those_of_the_library():
    settings = {name: field.default for name, field in TrainConfig.model_fields.items()}
    settings["milestones"] = ",".join(str(share) for share in settings["milestones"])
    shown = {name: p.default for name, p in ((p.name, p) for p in train.params) if name in settings}

    assert len(shown) > 12
    assert shown == {name: settings[name] for name in shown}


def test_tensorboard_gets_what_a_training_reports(
    tiny: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert Path(folder) == tmp_path / "run" / "tensorboard"

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None:
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    quick = ["--model", tiny, "--data", "digits", "--epochs", 2, "--limit", 200]
    assert cli("train", *quick, "--out", tmp_path / "run", "--tensorboard").exit_code == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [(value, step) for name, value, step in written if name == "train/loss"] == [
        (record["loss"], record["epoch"]) for record in log
    ]
    assert {"train/validation_accuracy", "train/learning_rate"} <= {name for name, _, _ in written}
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    told = cli.fails("train", *quick, "--out", tmp_path / "other", "--tensorboard")
    assert "pip install 'clusterprune[tensorboard]'" in told
    assert not (tmp_path / "other").exists()

"""``compress --distil`` and ``--save-images``: what they write, how they go on, and what they refuse."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from command_line import Cli
from PIL import Image

import clusterprune as cp


def arguments(tiny: str, trained: Path, *more: object) -> list[object]:
    weights = trained / "model.safetensors"
    return ["compress", "--model", tiny, "--weights", weights, "--keep-macs", 0.4, "--out", "run", *more]


def test_a_distilled_run_leaves_its_files(tiny: str, trained: Path, cli: Cli):
    result = cli(*arguments(tiny, trained, "--data", "digits", "--images", 200, "--distil", "30steps"))

    assert result.exit_code == 0, result.output
    written = json.loads(Path("run/result.json").read_text())
    assert written["record"]["distil"]["steps"] == 30
    assert {path.name for path in Path("run").iterdir()} == {
        "asked.json", "compact", "config.yaml", "cut-record", "details.json", "log.jsonl", "plan", "plan-cut",
        "report.html", "result.json",
    }  # fmt: skip
    assert cp.Plan.load("run/plan").notes["distil"]["steps"] == 30


@pytest.mark.slow
def test_a_stopped_distillation_goes_on(trust: tuple[str, str], tiny: str, trained: Path, cli: Cli):
    process = cli.start(*arguments(tiny, trained, "--data", "digits", "--images", 200, "--distil", "600"))
    reached = Path("run/distil.safetensors")
    for _ in range(1200):
        if reached.exists():
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "--resume" in " ".join(said.split()), said
    plan = Path("run/plan-cut/plan.json").read_bytes()
    # What is left is short now: the rest of ten minutes would be long.
    config = Path("run/config.yaml").read_text()
    assert "distil: '600'" in config
    Path("run/config.yaml").write_text(config.replace("distil: '600'", "distil: '21'"))
    asked = Path("run/asked.json").read_text()
    Path("run/asked.json").write_text(asked.replace("distil='600'", "distil='21'"))

    result = cli("compress", "--out", "run", "--resume", *trust)

    assert result.exit_code == 0, result.output
    assert json.loads(Path("run/result.json").read_text())["record"]["distil"]["seconds"] >= 21
    assert Path("run/plan-cut/plan.json").read_bytes() == plan
    assert not reached.exists()
    again = cli("compress", "--out", "run", "--resume", *trust)
    assert again.exit_code == 0
    assert "finished before" in again.output


def test_made_images_can_be_looked_at(tiny: str, trained: Path, cli: Cli):
    result = cli(*arguments(tiny, trained, "--data-free", "--save-images", "--distil", "5steps"))

    assert result.exit_code == 0, result.output
    with Image.open("run/images.png") as picture:
        assert picture.size == (8 * 10 + 2, 8 * 10 + 2)  # eight by eight pixels each, two between
    written = json.loads(Path("run/result.json").read_text())
    assert written["record"]["images"] == 0
    assert written["record"]["distil"]["images"] > 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--data", "digits", "--distil", "soon"), "distil takes seconds, such as 120, or steps"),
        (("--data", "digits", "--distil", "0"), "distil takes seconds"),
        (("--data", "digits", "--distil", "2.5steps"), "distil takes seconds"),
        (("--data", "digits", "--save-images"), "save_images shows the images that data_free makes"),
    ],
)
def test_what_is_refused(tiny: str, trained: Path, cli: Cli, more: tuple[object, ...], said: str):
    assert said in cli.fails(*arguments(tiny, trained, *more))
    assert not Path("run").exists()


def test_a_model_without_batch_norms_has_no_images_to_show(shared: Path, cli: Cli):
    file = shared / "bare.py"
    file.write_text(
        "from torch import nn\nINPUT_SHAPE = (1, 8, 8)\nMEAN = (0.3,)\nSTD = (0.37,)\n"
        "def build(num_classes=10):\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, num_classes))\n"
    )
    scope: dict[str, object] = {}
    exec(file.read_text(), scope)
    torch.save(scope["build"]().state_dict(), "bare.pt")  # type: ignore[operator]
    said = cli.fails(
        "compress", "--model", f"{file}:build", "--weights", "bare.pt", "--data-free", "--save-images",
        "--keep-macs", 0.5, "--out", "run",
    )  # fmt: skip
    assert "save_images needs images, but this model has no batch norms" in said

"""A detector from training to its compact successor, by the commands; and detectors of the user's own."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from command_line import Cli
from PIL import Image
from safetensors.torch import load_file, save_file
from voc_squares import write_squares

import clusterprune as cp
from clusterprune import models
from clusterprune.models import SSD

SSD_FILE = """
from clusterprune.models import SSD

INPUT_SHAPE = (3, 64, 64)


def build(num_classes=3):
    return SSD(num_classes, width=0.02, size=64, batch_norm=True)
"""
DOCS = (Path(__file__).parents[2] / "docs/detection.md").read_text()
OWN_FILE = DOCS.partition("```python\n")[2].partition("```")[0]
"""The documentation's own detector."""
SHORT = ("--epochs", 1, "--batch-size", 6, "--lr", 0.01, "--latency-batch", 1)


@pytest.fixture
def squares(tmp_path: Path) -> str:
    return write_squares(tmp_path / "voc")


def ran(cli: Cli, *arguments: object) -> str:
    result = cli(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def write(file: Path, content: str) -> str:
    file.write_text(content)
    return f"{file}:build"


def sheet_sides(run: Path) -> tuple[int, int]:
    """Take the sheet of a run away, having seen that it has columns for the objects, the original and the compact."""
    sheet = Image.open(run / "sheet.png")
    assert sheet.width == 3 * (256 + 4)
    colours = {colour for _, colour in sheet.getcolors(1 << 20) or []}
    assert {(0, 114, 178), (213, 94, 0)} <= colours  # those of the first two classes
    (run / "sheet.png").unlink()
    return sheet.size


def test_a_detector_is_trained_compressed_and_measured(squares: str, tmp_path: Path, cli: Cli) -> None:
    model = write(tmp_path / "ssd.py", SSD_FILE)
    said = ran(cli, "train", "--model", model, "--data", squares, *SHORT, "--out", "base")
    assert "mAP50 (VOC)" in said
    base = json.loads(Path("base/result.json").read_text())["trained"]
    assert base["images"] == 4
    assert {"map50", "map50_11point", "map"} <= set(base)
    assert "accuracy" not in base

    options = ("--model", model, "--weights", "base", "--data", squares, "--keep-macs", 0.7, "--images", 8)
    said = ran(cli, "compress", *options, "--out", "small")
    assert "mAP50 (VOC)" in said
    made = json.loads(Path("small/result.json").read_text())
    assert made["baseline"]["map50"] == base["map50"]
    assert made["compressed"]["macs"] < 0.75 * base["macs"]
    small = cp.load("small/compact", trust=tmp_path / "ssd.py")
    assert isinstance(small, SSD)
    sides = sheet_sides(Path("small"))
    again = json.loads(cli("evaluate", "small", "--model", model, "--json").stdout)
    assert sheet_sides(Path("small")) == sides
    assert again["map50"] == made["compressed"]["map50"]
    assert again["macs"] == made["compressed"]["macs"]


@pytest.mark.parametrize("command", ["train", "compress", "compare", "evaluate"])
def test_a_detector_of_other_classes_is_refused(command: str, squares: str, tmp_path: Path, cli: Cli) -> None:
    model = write(tmp_path / "ssd.py", SSD_FILE)
    more: tuple[object, ...] = ("--num-classes", 5, "--out", "run")
    if command == "evaluate":
        save_file(SSD(5, width=0.02, size=64, batch_norm=True).state_dict(), "five.safetensors")
        more = ()
    options: dict[str, tuple[object, ...]] = {"compress": ("--keep-macs", 0.5), "evaluate": ("five.safetensors",)}
    told = cli.fails(command, *options.get(command, ()), "--model", model, "--data", squares, *more)
    assert "the data have 2 classes, but the model scores 4 and the background" in told


def test_methods_compete_on_a_detector(squares: str, tmp_path: Path, cli: Cli) -> None:
    model = write(tmp_path / "ssd.py", SSD_FILE)
    options = ("--model", model, "--data", squares, "--task", "detection", "--keep-macs", 0.7, "--methods", "l1")
    said = ran(cli, "compare", *options, "--epochs", 1, "--batch-size", 6, "--out", "run")
    assert "mAP50 (VOC) in percent" in " ".join(said.split())
    found = json.loads(Path("run/result.json").read_text())
    assert found["whole"]["metric"] == "map50"


@pytest.mark.slow
def test_a_compact_classifier_is_a_detector_s_backbone(squares: str, cli: Cli) -> None:
    """As the papers do: prune VGG-16 on CIFAR-10, and build SSD on what is left."""
    vgg = models.build("vgg16", seed=0)
    graph = cp.trace(vgg, torch.zeros(1, 3, 32, 32))
    small = cp.apply(vgg, cp.prune_by(graph, "l1", keep_macs=0.01, round_to=1), graph=graph)
    cp.save(small, "vgg", cp.Origin.of(models.resolve("vgg16")))
    options = ("--model", "ssd300_bn", "--data", squares, "--latency-batch", 1)
    train = ("--epochs", 1, "--batch-size", 4, "--lr", 0.001, "--limit", 4, "--validation", 0)
    ran(cli, "train", *options, *train, "--weights", "vgg", "--out", "base")
    said = yaml.safe_load(Path("base/config.yaml").read_text())
    assert said["model"] == f"ssd300_bn@{Path('vgg').resolve()}"
    trained, built = load_file("base/model.safetensors"), models.build(said["model"], num_classes=3)
    assert {name: t.shape for name, t in trained.items()} == {name: t.shape for name, t in built.state_dict().items()}
    assert torch.equal(built.state_dict()["features.0.weight"], small.state_dict()["features.0.weight"])
    known = ("--weights", "base", "--keep-macs", 0.8, "--method", "l1", "--no-evaluate")
    ran(cli, "compress", *options, *known, "--out", "small")
    assert isinstance(cp.load("small/compact"), SSD)
    assert "is no compact classifier" in cli.fails("train", *options, *train, "--model", "ssd300@base", "--out", "x")


def test_a_row_of_voc_is_reproduced(squares: str, tmp_path: Path, cli: Cli) -> None:
    """Of VOC's twenty classes there are two here, which the figures are of."""
    model = write(tmp_path / "ssd.py", SSD_FILE)
    Path(squares.partition(":")[2], "classes.txt").write_text("\n".join(["red", "green", *map(str, range(18))]))
    recipe = {
        "model": model, "data": "voc", "method": "icp", "knob": "ε = 0.2",
        "settings": {"eps": 0.2, "min_samples": 2, "samples": 12, "steps": 1},
        "training": {"epochs": 1, "batch_size": 6, "lr": 0.01}, "baseline": {"epochs": 1, "batch_size": 6, "lr": 0.01},
    }  # fmt: skip
    Path("row.yaml").write_text(yaml.safe_dump(recipe))
    said = ran(cli, "reproduce", "row.yaml", "--data", squares, "--trust", tmp_path / "ssd.py", "--out", "run")
    assert "mAP50 (VOC), compact" in said
    assert "map50" in json.loads(Path("run/result.json").read_text())["compressed"]


def test_a_detector_of_ones_own_brings_what_its_outputs_mean(squares: str, tmp_path: Path, cli: Cli) -> None:
    metric = "\n\ndef metric(outputs, targets):\n    return torch.tensor([7.0 for _ in targets])\n"
    model = write(tmp_path / "own.py", OWN_FILE + metric)
    said = ran(cli, "train", "--model", model, "--data", squares, *SHORT, "--out", "own")
    assert "mAP50 (VOC)" in said
    options = ("--weights", "own", "--data", squares, "--keep-macs", "0.7,0.6", "--images", 8)
    said = ran(cli, "compress", "--model", model, *options, "--out", "small")
    figures = json.loads(Path("small/keep-macs-0.6/result.json").read_text())["compressed"]
    assert figures["metric"] == 7
    assert "map50" in figures
    assert "own metric" in said.partition("(whole)")[0].rpartition("folder")[2]


def test_a_detector_that_says_nothing_is_compared_as_it_is(squares: str, tmp_path: Path, cli: Cli) -> None:
    model = write(tmp_path / "mute.py", OWN_FILE.partition("def decode")[0])
    options = ("--model", model, "--data", squares, "--keep-macs", 0.6, "--images", 8)
    told = cli.fails("compress", *options, "--out", "first")
    assert "nobody says what the outputs of model=Yolo mean" in told
    ran(cli, "compress", *options, "--task", "plain", "--out", "second")
    made = json.loads(Path("second/result.json").read_text())
    assert made["baseline"]["agreement"] == 100
    assert 20 < made["compressed"]["agreement"] <= 100
    assert made["compressed"]["divergence"] > 0

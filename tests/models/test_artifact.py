"""A compact model that was saved with its origin is loaded from its folder alone, and runs no file unasked."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from examples import first
from torch import nn

import clusterprune as cp
from clusterprune import models
from clusterprune.errors import ArgumentError, UntrustedCodeError, WeightsError
from clusterprune.models.artifact import NAME, Origin, load, read_origin, save

OWN = """
import torch
INPUT_SHAPE, MEAN, STD, NUM_CLASSES = (3, 16, 16), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 4
def build(num_classes=4):
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(16, num_classes),
    )
"""


def compact_of(name: str, folder: Path, classes: int = 4) -> tuple[nn.Module, torch.Tensor]:
    spec = models.resolve(name)
    network = models.build(spec, num_classes=classes, seed=0)
    images = torch.randn(2, 3, 16, 16)
    graph = cp.trace(network, images)
    small = cp.apply(network, cp.prune_by(graph, "l1", keep_macs=0.6), graph=graph)
    save(small, folder, Origin.of(spec, num_classes=classes, classes=("a", "b", "c", "d")))
    return small, images


@pytest.mark.parametrize("name", first(1, ["resnet20", "torchvision:shufflenet_v2_x0_5"]))
def test_a_folder_is_enough_in_another_process(name: str, tmp_path: Path) -> None:
    small, images = compact_of(name, tmp_path / "compact")
    with torch.no_grad():
        torch.save((images, small.eval()(images)), tmp_path / "expected.pt")
    code = (
        "import torch; from clusterprune.models.artifact import load\n"
        "images, expected = torch.load('expected.pt')\n"
        "with torch.no_grad(): assert load('compact')(images).equal(expected)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    origin = read_origin(tmp_path / "compact")
    assert origin is not None
    assert origin.classes == ("a", "b", "c", "d")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "compact").iterdir()}
    assert set(modes.values()) == {0o644}


def test_a_file_of_the_user_is_run_by_leave_alone_and_only_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(OWN)
    small, images = compact_of(f"{file}:build", tmp_path / "compact")
    with pytest.raises(UntrustedCodeError, match="trust"):
        load(tmp_path / "compact")
    assert load(tmp_path / "compact", trust=file)(images).equal(small.eval()(images))

    moved = tmp_path / "elsewhere"
    moved.mkdir()
    file.rename(moved / "net.py")
    assert load(tmp_path / "compact", trust=moved / "net.py")(images).equal(small(images))
    (moved / "net.py").write_text(OWN + "\n# changed\n")
    with pytest.raises(UntrustedCodeError):
        load(tmp_path / "compact", trust=moved / "net.py")


def test_without_an_origin_a_factory_is_asked_for(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    save(network, tmp_path / "plain")
    with pytest.raises(ArgumentError, match="factory=None"):
        load(tmp_path / "plain")
    assert load(tmp_path / "plain", lambda: nn.Sequential(nn.Conv2d(3, 4, 3)))[0].weight.equal(network[0].weight)


@pytest.mark.parametrize("change", [{"model": 3}, {"input_shape": [0, 1, 1]}, {"more": 1}, {"model": "resnet56"}])
def test_a_changed_origin_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    compact_of("resnet20", tmp_path / "compact")
    path = tmp_path / "compact" / NAME
    document = json.loads(path.read_text())
    document["origin"] |= change
    path.write_text(json.dumps(document))
    with pytest.raises(WeightsError, match=NAME):
        load(tmp_path / "compact")

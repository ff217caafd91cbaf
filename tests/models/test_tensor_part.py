"""Detectors of torchvision, cut in place; of a tiny backbone, since what matters is how they are put together."""

from pathlib import Path

import pytest
import torch
from networks import difference, masked_reference
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

import clusterprune as cp
from clusterprune import evaluate
from clusterprune.errors import ModelError
from clusterprune.models.tensor_part import TensorPart

SIZE = 64


def backbone() -> nn.Module:
    made = nn.Sequential(
        nn.Conv2d(3, 12, 3, 4, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 32, 3, 4, 1), nn.ReLU()
    )
    made.out_channels = 32  # pyright: ignore[reportAttributeAccessIssue]
    return made


def detector(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"min_size": SIZE, "max_size": SIZE}
    anchors = AnchorGenerator(((16,),) if kind is FCOS else ((16, 24),), ((1.0,),))
    name = "rpn_anchor_generator" if kind is FasterRCNN else "anchor_generator"
    return kind(backbone(), 3, **{name: anchors}, **sizes).eval()


@pytest.mark.parametrize("kind", [RetinaNet, FCOS, FasterRCNN])
def test_the_part_is_cut_and_the_detector_stays_whole(kind: type[nn.Module], tmp_path: Path) -> None:
    part, images = TensorPart(detector(kind)), torch.rand(2, 3, SIZE, SIZE)
    graph = cp.trace(part, images[:1])
    plan = cp.prune_by(graph, "l1", keep_macs=0.6)
    small = cp.apply(part, plan, graph=graph)
    assert isinstance(small, TensorPart)
    assert type(small.detector) is kind
    assert evaluate.macs(small, images[:1]) / evaluate.macs(part, images[:1]) == pytest.approx(0.6, abs=0.02)
    masked = masked_reference(part, graph, plan)
    assert isinstance(masked, TensorPart)
    for found, expected in zip(small(images), masked(images), strict=True):
        assert difference(found, expected) < 1e-4
    for found, expected in zip(small.detector(list(images)), masked.detector(list(images)), strict=True):
        assert set(found) == set(expected)
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], atol=1e-3, rtol=1e-4)
    cp.save(small, tmp_path / "small")
    again = cp.load(tmp_path / "small", lambda: TensorPart(detector(kind)))
    for found, expected in zip(again.detector(list(images)), small.detector(list(images)), strict=True):
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_other_modules_are_refused() -> None:
    with pytest.raises(ModelError, match="has no backbone with a head"):
        TensorPart(nn.Sequential(nn.Conv2d(3, 8, 3)))

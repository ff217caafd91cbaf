"""Detectors of torchvision, cut in place; of a tiny backbone, since what matters is how they are put together."""

import os
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import difference, masked_reference
from safetensors.torch import save_file
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet, maskrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN

import clusterprune as cp
from clusterprune import evaluate, models
from clusterprune.errors import ModelError
from clusterprune.models.tensor_part import TensorPart

SIZE = 64
PLACE = {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part), "OMP_NUM_THREADS": "1"}


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
    plan = cp.oneshot(graph, torch.rand(16, 3, SIZE, SIZE), keep_macs=0.6, round_to=1)
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


def test_regions_of_several_levels_are_priced_image_by_image() -> None:
    """One shot once took sixteen regions of four images for sixteen images."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 12, 3, 4, 1), nn.ReLU())
    body = nn.Sequential(OrderedDict(a=first, b=nn.Sequential(nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU())))
    levels = BackboneWithFPN(body, {"a": "0", "b": "1"}, [12, 16], 24)
    anchors = AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3)
    part = TensorPart(FasterRCNN(levels, 3, rpn_anchor_generator=anchors, min_size=SIZE, max_size=SIZE).eval())
    part.detector.roi_heads.box_roi_pool.featmap_names = ["0", "1"]  # pyright: ignore
    images = torch.rand(8, 3, SIZE, SIZE)
    graph = cp.trace(part, images[:1])
    small = cp.apply(part, cp.oneshot(graph, images, keep_macs=0.6, round_to=1), graph=graph)
    assert small(images)[-1].shape == (8, 2, 12)


def test_other_modules_are_refused() -> None:
    with pytest.raises(ModelError, match="has no backbone with a head"):
        TensorPart(nn.Sequential(nn.Conv2d(3, 8, 3)))


def test_detectors_that_find_more_than_boxes_are_refused() -> None:
    with pytest.raises(ModelError, match="MaskRCNN finds more than boxes"):
        TensorPart(maskrcnn_resnet50_fpn(weights=None, weights_backbone=None))


def test_an_ssd_is_built_for_the_size_that_is_asked_for(tmp_path: Path) -> None:
    spec = replace(models.resolve("torchvision:ssdlite320_mobilenet_v3_large"), input_shape=(3, 96, 96))
    part = spec.build(5, seed=0)
    assert spec.head is not None
    spec.head(part).check(part(spec.example(2)), spec.example(2), 4)
    cp.save(part, tmp_path, cp.Origin.of(spec, num_classes=5))
    again = cp.load(tmp_path)
    assert isinstance(again, TensorPart)
    assert isinstance(part, TensorPart)
    assert again.detector.transform.fixed_size == part.detector.transform.fixed_size == (96, 96)
    (found,) = again.detector([torch.rand(3, 120, 60)])  # of any size, and boxes within it
    assert len(found["boxes"])
    assert found["boxes"][:, 2].max() <= 60


FIVE = (
    "ssd300_vgg16", "ssdlite320_mobilenet_v3_large", "fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
)  # fmt: skip
PIXELS = 160
"""Of the images of all but VGG's SSD, whose maps would shrink to nothing."""


ENDS = ("cls_logits", "cls_score", "bbox_pred", "bbox_reg", "module_list")
"""What the layers that make scores and locations are called."""


def built(name: str) -> TensorPart:
    """A detector by its name, that tells of twenty boxes whatever their scores."""
    torch.manual_seed(0)
    part = models.build(f"torchvision:{name}", num_classes=5)
    assert isinstance(part, TensorPart)
    whole: Any = part.detector
    if whole.transform.fixed_size is None:
        whole.transform.min_size, whole.transform.max_size = (PIXELS,), PIXELS
    last = whole.roi_heads if hasattr(whole, "roi_heads") else whole
    last.score_thresh, last.detections_per_img = 0.0, 20
    return part


def settled(part: TensorPart, images: torch.Tensor) -> TensorPart:
    """The detector as training would leave it: signals of a size, norms that fit the images, scores that differ."""
    for name, module in part.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if any(end in name for end in ENDS):
                module.register_forward_hook(of_size_one)
    part.train()
    with torch.no_grad():
        for _ in range(2):
            part(images)
    for module in part.modules():
        module._forward_hooks.clear()
    return part.eval().double()


def of_size_one(layer: nn.Module, _: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """Make a layer one whose outputs vary by about one."""
    layer.weight.data /= output.std()  # pyright: ignore
    return output / output.std()


@pytest.mark.slow
@pytest.mark.parametrize("name", FIVE)
def test_torchvision_s_detectors_detect_what_the_masked_ones_do(name: str, tmp_path: Path) -> None:
    """One shot with 16 images, and the whole detector afterwards; also from disk, in another process."""
    part = built(name)
    size = 300 if name == "ssd300_vgg16" else PIXELS
    pictures = list(torch.rand(16, 3, size, size))
    images = part.detector.transform(pictures)[0].tensors  # pyright: ignore
    settled(part, images[:4])
    images, pictures = images.double(), [picture.double() for picture in pictures[:2]]
    graph = cp.trace(part, images[:1])
    plan = cp.oneshot(graph, images, keep_macs=0.6, config=cp.OneShot(macs_to_spend=1e11))
    small = cp.apply(part, plan, graph=graph)
    assert isinstance(small, TensorPart)
    assert evaluate.macs(small, images[:1]) / evaluate.macs(part, images[:1]) == pytest.approx(0.6, abs=0.012)
    masked = masked_reference(part, graph, plan)
    assert isinstance(masked, TensorPart)
    detected = small.detector(pictures)
    for found, expected in zip(detected, masked.detector(pictures), strict=True):
        assert len(found["scores"]) > 5
        assert len(found["scores"].unique()) > 5
        assert torch.equal(found["labels"], expected["labels"])
        torch.testing.assert_close(found["boxes"], expected["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-5, rtol=0)
    cp.save(small, tmp_path / "small")
    told = {str(at): one["boxes"] for at, one in enumerate(detected)}
    save_file({"pictures": torch.stack(pictures), **told}, tmp_path / "told")
    program = f"""
import sys, torch, clusterprune as cp
from safetensors.torch import load_file
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_tensor_part import built
told = load_file("told")
small = cp.load("small", lambda: built({name!r}).double())
for at, found in enumerate(small.detector(list(told["pictures"]))):
    assert torch.equal(found["boxes"], told[str(at)])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | PLACE,
    )
    assert done.returncode == 0, done.stderr[-2000:]

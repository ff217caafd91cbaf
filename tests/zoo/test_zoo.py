"""Law 2 on real architectures, and the way of a compact model to disk and into a new process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from networks import difference, masked_reference, random_plan
from torch import nn

import clusterprune as cp
from clusterprune import evaluate

SIZES = {"inception_v3": 96}
BARE = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}
FAST = ["shufflenet_v2_x1_0", "squeezenet1_0"]
SLOW = [
    "resnet18", "mobilenet_v2",
    "resnet50", "vgg16_bn", "googlenet", "inception_v3", "densenet121", "mobilenet_v3_small", "mobilenet_v3_large",
    "efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "mnasnet1_0",
]  # fmt: skip
ALL = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **BARE.get(name, {}))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


@pytest.mark.parametrize("name", ALL)
def test_cutting_equals_masking(name: str) -> None:
    model = build(name).double()
    size = SIZES.get(name, 64)
    graph = cp.trace(model, torch.zeros(1, 3, size, size, dtype=torch.float64))
    assert len(graph.prunable) >= 7
    plan = random_plan(graph, 0)
    small = cp.apply(model, plan, graph=graph)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        assert difference(small(x), masked_reference(model, graph, plan)(x)) < 1e-12
    assert evaluate.params(small) < evaluate.params(model)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in [*FAST, *SLOW]])
def test_one_shot_to_a_new_process(name: str, tmp_path: Path) -> None:
    model = build(name)
    size = SIZES.get(name, 64)
    example = torch.randn(1, 3, size, size)
    graph = cp.trace(model, example)
    plan = cp.oneshot(graph, torch.randn(16, 3, size, size), keep_macs=0.7)
    small = cp.apply(model, plan, graph=graph)
    assert evaluate.macs(small, example) / evaluate.macs(model, example) == pytest.approx(0.7, abs=0.007)
    with torch.no_grad():
        assert difference(small(example), masked_reference(model, graph, plan)(example)) < 1e-4
        torch.save({"x": example, "y": small(example)}, tmp_path / "expected.pt")
    cp.save(small, tmp_path / "small")
    script = (
        "import sys, torch, torchvision, clusterprune as cp\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"  # another number of threads rounds differently
        f"f = lambda: torchvision.models.get_model({name!r}, weights=None, **{BARE.get(name, {})!r})\n"
        "m = cp.load(sys.argv[1] + '/small', f)\n"
        "e = torch.load(sys.argv[1] + '/expected.pt', weights_only=True)\n"
        "assert torch.equal(m(e['x']), e['y'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_residual_streams_are_groups() -> None:
    graph = cp.trace(build("resnet18"), torch.zeros(1, 3, 64, 64))
    makers = {use.path for use in graph.by_name["layer2.0.conv2"].producers}
    assert makers == {"layer2.0.conv2.weight", "layer2.0.downsample.0.weight", "layer2.1.conv2.weight"}
    assert graph.by_name["fc"].frozen == "it reaches the network's output"


def test_a_norm_over_channels_freezes_them() -> None:
    graph = cp.trace(build("convnext_tiny"), torch.zeros(1, 3, 64, 64))
    assert len(graph.prunable) == 18
    assert all(group.name.endswith("block.3") for group in graph.prunable)
    assert "norm over the channels" in str(graph)

import pytest
import torch
from torch import nn

import clusterprune as cp
from clusterprune.errors import ModelError
from clusterprune.merge.bn_images import can_make_images, norms_of
from clusterprune.merge.data_free import noise_images


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip
    # Images that look like nothing in particular, but are not noise: a colour, and stripes.
    rows = torch.sin(torch.arange(12.0))[None, None, :, None]
    with torch.no_grad():
        for _ in range(40):
            model((torch.randn(32, 3, 1, 1) + 0.7 * rows * torch.randn(32, 1, 1, 1) + 0.4).expand(-1, -1, -1, 12))
    return model.eval()


def mismatch(graph: cp.ChannelGraph, images: torch.Tensor) -> float:
    """How far the statistics of what the batch norms read are from the stored ones, in their deviations."""
    found: list[float] = []

    def look(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        mean = inputs[0].mean((0, 2, 3))
        found.append(float(((mean - layer.running_mean).square() / layer.running_var).mean()))  # type: ignore[operator]

    layers = [layer for layer in graph.model.modules() if isinstance(layer, nn.BatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    with torch.no_grad():
        graph.model(images)
    for hook in hooks:
        hook.remove()
    return sum(found) / len(found)


def test_images_have_the_statistics_that_the_batch_norms_remember():
    graph = cp.trace(network(), torch.zeros(1, 3, 12, 12))
    assert len(norms_of(graph)) == 2
    made = cp.images_from_norms(graph, seed=1, config=cp.FromNorms(images=64, batch=32, steps=80))
    assert made.shape == (64, 3, 12, 12)
    assert made.abs().max() <= 3.0
    noise = noise_images(graph, 64, torch.Generator().manual_seed(1))[0]
    assert mismatch(graph, made) < 0.2 * mismatch(graph, noise)


def test_without_images_oneshot_makes_the_same():
    graph = cp.trace(network(), torch.zeros(1, 3, 12, 12))
    config = cp.OneShot(from_norms=cp.FromNorms(images=48, steps=8))
    alone = cp.oneshot(graph, None, keep_macs=0.6, seed=2, config=config)
    given = cp.oneshot(
        graph, cp.images_from_norms(graph, seed=2, config=config.from_norms), keep_macs=0.6, seed=2, config=config
    )
    assert alone.notes["made_images"] == 48
    assert alone.notes["images"] == 0
    assert all(torch.equal(alone.replaced[name], given.replaced[name]) for name in given.replaced)


def test_a_network_without_batch_norms_remembers_nothing():
    graph = cp.trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval(), torch.zeros(1, 3, 8, 8))
    assert not can_make_images(graph)
    with pytest.raises(ModelError, match="give some"):
        cp.images_from_norms(graph)
    assert cp.oneshot(graph, None, keep_macs=0.6).notes["made_images"] == 0

"""Layers that only training uses are cut with the groups that they read, and never cost or lead anything."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import clusterprune as cp
from clusterprune.clustering import Agglomerative


class Auxiliary(nn.Module):
    """A head of three layers, a second branch and a linear head that evaluation leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3), nn.Linear(12, 5)
        self.branch, self.near, self.far = nn.Conv2d(3, 12, 3), nn.Linear(12, 5), nn.Linear(6, 5)
        self.squeeze, self.norm = nn.Conv2d(12, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        y = self.a(x)
        if self.training:
            y = y + self.branch(x)
        y = y.relu()
        out = self.head(self.b(y).relu().mean((2, 3)))
        if not self.training:
            return out
        pooled = nn.functional.adaptive_avg_pool2d(y, 1)
        return out, self.near(pooled.flatten(1)), self.far(self.norm(self.squeeze(pooled)).flatten(1))


IMAGES = torch.randn(32, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def kept(width: int) -> np.ndarray:
    return np.arange(0, width, 2)


def test_layers_of_training_join_the_groups_and_none_of_their_own_is_cut() -> None:
    model = Auxiliary().eval()
    assert model.norm.running_mean is not None
    moved = model.norm.running_mean.clone()
    graph = cp.trace(model, IMAGES[:1])
    group = graph.by_name["a"]
    assert [use.path for use in group.producers] == ["a.weight", "branch.weight"]
    assert {use.path for use in group.consumers} == {"b.weight", "near.weight", "squeeze.weight"}
    assert graph.by_name["squeeze"].frozen == "only training makes these channels"
    assert graph.by_name["near"].frozen == "it reaches the network's output"
    assert [call.layer for call in graph.calls] == ["a", "b", "head"], "what is measured is what evaluation runs"
    assert graph.unused == ()
    assert graph.training is not None
    assert graph.training_unknown is None
    assert torch.equal(model.norm.running_mean, moved)


def test_a_cut_model_trains_as_the_masked_original_does() -> None:
    torch.manual_seed(0)
    model = Auxiliary().double().eval()
    images = IMAGES.double()
    graph = cp.trace(model, images[:1])
    plan = cp.Plan.of(graph, tuple(cp.Merge(g.name, kept(g.width)) for g in graph.prunable))
    small = cp.apply(model, plan, graph=graph).train()
    masked = Auxiliary().double().train()
    masked.load_state_dict(model.state_dict())
    with torch.no_grad():
        for reader in (masked.b.weight, masked.near.weight, masked.squeeze.weight, masked.head.weight):
            reader[:, 1::2] = 0
    for ours, theirs in zip(small(images), masked(images), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    torch.cat(small(images), 1).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_every_way_to_choose_copes_with_layers_that_are_never_measured() -> None:
    model = Auxiliary().eval()
    graph = cp.trace(model, IMAGES[:1])
    clusters = Agglomerative(n_clusters=8)
    plans = [cp.cluster(graph, IMAGES, clustering=clusters, merging=kind) for kind in ("scaled_add", "refit")]
    plans += [cp.oneshot(graph, images, keep_macs=0.5) for images in (IMAGES, None)]
    labels = torch.zeros(len(IMAGES), dtype=torch.long)
    plans += [
        cp.prune_by(graph, name, keep_macs=0.5, images=IMAGES, labels=labels) for name in ("l1", "hrank", "taylor")
    ]
    for plan in plans:
        small = cp.apply(model, plan, graph=graph).train()
        torch.cat(small(IMAGES), 1).sum().backward()


def test_training_that_cannot_be_exported_is_said_and_unused_stays() -> None:
    class Undecided(Auxiliary):
        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
            if self.training and x.sum() > 0:
                x = x * 2
            return super().forward(x)

    graph = cp.trace(Undecided().eval(), IMAGES[:1])
    assert graph.training is None
    assert "near.weight" in graph.unused
    assert "evaluation never touches branch.weight" in (graph.training_unknown or "")
    assert "training was not followed" in str(graph)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_norm_on_single_pixels_can_be_followed(batch: int) -> None:
    graph = cp.trace(Auxiliary().eval(), IMAGES[:batch])
    assert graph.training is not None


def test_a_model_without_layers_of_training_is_exported_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    graph = cp.trace(model, IMAGES[:1])
    assert (graph.training, graph.training_unknown, graph.unused) == (None, None, ())

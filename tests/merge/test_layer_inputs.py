"""What layers read, by channel: of large flattened maps, of all their places; of several calls, of all of them."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import clusterprune as cp
from clusterprune.graph.program import named_tensors
from clusterprune.merge import layer_inputs
from clusterprune.merge.assembly import channel_moments
from clusterprune.merge.layer_inputs import channel_moments_of, consumers, folds, layer_input
from clusterprune.merge.least_squares import mixing_matrix
from clusterprune.merge.measured import few_rows, measure, moments_of
from clusterprune.merge.statistics import input_moments


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 20), nn.ReLU(), nn.Linear(20, 4)
    )


def measured(images: torch.Tensor):
    model = network()
    graph = cp.trace(model, images[:1])
    state = {path: tensor.detach() for path, tensor in named_tensors(graph).items()}
    (call,) = [c.node for c in graph.calls if c.weight == "3.weight"]
    moments = input_moments(
        graph, state, images, {call: False}, folded=folds(graph), rows=100_000, batch_size=50,
        generator=torch.Generator().manual_seed(0),
    )[call]  # fmt: skip
    (consumer,) = consumers(graph, graph.by_name["0"], {call: False})
    return state["3.weight"], moments, consumer


def test_folded_moments_give_the_same_mixing(monkeypatch: pytest.MonkeyPatch):
    images = torch.randn(300, 3, 8, 8)
    kept = np.array([0, 2, 3, 6])
    _, moments, consumer = measured(images)
    assert not consumer.folded
    assert len(moments) == 8 * 36 + 1
    wanted = mixing_matrix(*channel_moments_of(consumer, moments), kept, offset=True)
    monkeypatch.setattr(layer_inputs, "_FOLD", 200)
    weight, moments, consumer = measured(images)
    assert consumer.folded
    assert len(moments) == 8 + 1
    found = mixing_matrix(*channel_moments_of(consumer, moments), kept, offset=True)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    # What the costs depend on, B Bᵀ, is that of the whole kernel.
    importance = torch.rand(20, dtype=torch.float64)
    factor = layer_input(consumer, weight, moments, importance).weight
    by_channel = (weight.double() * importance.sqrt()[:, None]).view(20, 8, 36).permute(1, 0, 2).flatten(1)
    torch.testing.assert_close(factor @ factor.T, by_channel @ by_channel.T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_one_shot_of_a_folded_network(monkeypatch: pytest.MonkeyPatch, keep: float):
    """Pricing, mixing and refit agree about what is folded, and the result is as good as without."""
    model, images = network(), torch.randn(256, 3, 8, 8)
    fresh = torch.randn(500, 3, 8, 8)
    errors = []
    for limit in (4096, 200):
        monkeypatch.setattr(layer_inputs, "_FOLD", limit)
        graph = cp.trace(model, images[:1])
        plan = cp.oneshot(graph, images, keep_macs=keep, config=cp.OneShot(compare=False))
        small = cp.apply(model, plan, graph=graph)
        with torch.no_grad():
            errors.append(float((small(fresh) - model(fresh)).square().mean() / model(fresh).var(0).mean()))
    assert errors[1] < 1.5 * errors[0] + 0.01
    assert errors[1] < 1


class Pyramid(nn.Module):
    """A head that reads maps of two sizes, as a detector's does, and a classifier behind flattened maps of two."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 3)
        self.pool, self.classify = nn.AdaptiveAvgPool2d(4), nn.Linear(6 * 16, 5)

    def levels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = torch.relu(self.stem(x))
        return fine, 3 * nn.functional.max_pool2d(fine, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        levels = self.levels(x)
        return (*map(self.head, levels), *(self.classify(self.pool(level).flatten(1)) for level in levels))


@pytest.mark.parametrize("limit", [4096, 50])
def test_a_layer_of_several_calls_gets_what_all_of_them_read(monkeypatch: pytest.MonkeyPatch, limit: int):
    """Once its matrix was fitted to the first call alone, and all maps but the last were kept whole, not folded."""
    monkeypatch.setattr(layer_inputs, "_FOLD", limit)
    model, images = Pyramid(), torch.randn(32, 3, 12, 12)
    graph = cp.trace(model, images[:1])
    group, generator = graph.by_name["stem"], torch.Generator().manual_seed(0)
    (head,) = (use for use in group.consumers if use.path == "head.weight")
    (classify,) = (use for use in group.consumers if use.path == "classify.weight")
    assert len(folds(graph)) == (2 if limit == 50 else 0)
    with torch.no_grad():
        levels = [level.double() for level in model.levels(images)]
        places = torch.cat([level.movedim(1, -1).reshape(-1, 6) for level in levels])
        pooled = torch.cat([model.pool(level) for level in levels])
        flat = pooled.movedim(1, -1).reshape(-1, 6) if limit == 50 else pooled.flatten(1)

    def second_moments(rows: Tensor) -> Tensor:
        whole = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
        return whole.T @ whole / len(whole)

    asked = cp.OneShot(whole_kernel_limit=0).effort
    of_measured = moments_of(graph, measure(graph, [group], (images,), asked, generator=generator, progress=None))
    for moments in (channel_moments(graph, [group], images, generator), of_measured):
        for use, rows in ((head, places), (classify, flat)):
            found = moments(use)
            assert found is not None
            torch.testing.assert_close(found[0], second_moments(rows), rtol=1e-4, atol=1e-4)
            assert found[1].positions.shape == ((6, 1) if limit == 50 or use is head else (6, 16))


def test_few_images_are_those_that_show_too_little_of_all_calls_together():
    model = Pyramid()
    asked, generator = cp.OneShot().effort, torch.Generator().manual_seed(0)
    for count, wanted in ((2, {"stem": 6}), (3, {})):  # six channels, two rows an image behind the pools
        images = torch.randn(count, 3, 12, 12)
        graph = cp.trace(model, images[:1])
        groups = [graph.by_name["stem"]]
        found = measure(graph, groups, (images,), asked, generator=generator, progress=None)
        assert few_rows(graph, groups, found) == wanted

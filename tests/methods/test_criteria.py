"""Criteria: scores computed by hand, budgets met, and what soft pruning zeroes."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import Grouped, Plain, ready
from torch import Tensor, nn

import clusterprune as cp
from clusterprune import evaluate, train
from clusterprune.budget.allocation import CostModel
from clusterprune.criteria import CriterionName, names
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.methods.prune_by import prune_by, scores
from clusterprune.methods.soft_pruning import SoftPruning
from clusterprune.models import build
from clusterprune.tasks import Classification

FILTERS = torch.tensor([[3.0, -4.0], [1.0, 0.0], [0.0, 2.0]])


def by_hand() -> nn.Sequential:
    """Three filters of two numbers each, batch norm and ReLU."""
    model = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(FILTERS[:, :, None, None])
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 1.0]))
    return model


class Stream(nn.Module):
    """Two layers make the same three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = by_hand()[0], nn.Conv2d(3, 3, 1, bias=False)
        self.head = nn.Conv2d(3, 2, 1)
        with torch.no_grad():
            self.second.weight.copy_(torch.diag(torch.tensor([0.0, 10.0, -1.0]))[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x + self.second(x))


def labelled(count: int = 64) -> Tensor:
    return torch.randint(0, 4, (count,), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("l1", [7, 1, 2]),
        ("l2", [5, 1, 2]),
        ("fpgm", [20**0.5 + 45**0.5, 20**0.5 + 5**0.5, 45**0.5 + 5**0.5]),
        ("bn_scale", [0.5, 2, 1]),
    ],
)
def test_scores_of_weights_by_hand(criterion: CriterionName, expected: list[float]) -> None:
    graph = cp.trace(by_hand(), torch.zeros(1, 2, 4, 4))
    found = scores(graph, criterion)
    assert list(found) == ["0"]
    assert found["0"].tolist() == pytest.approx(expected)


def test_a_channel_of_a_stream_has_the_sum_over_the_layers_that_make_it() -> None:
    graph = cp.trace(Stream(), torch.zeros(1, 2, 4, 4))
    assert scores(graph, "l1")["first"].tolist() == [7 + 0, 1 + 10, 2 + 1]
    assert scores(graph, "l2")["first"].tolist() == [5 + 0, 1 + 10, 2 + 1]


def test_identical_filters_are_no_distance_apart() -> None:
    model = by_hand()
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([123.456, 7.89])[:, None, None]
    assert scores(cp.trace(model, torch.zeros(1, 2, 4, 4)), "fpgm")["0"].tolist() == [0, 0, 0]


def test_hrank_averages_the_ranks_of_activated_maps_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 1)
    ).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0, 0.0])[:, None, None, None])
    # Rank 4 and rank 1; below zero ReLU leaves nothing; max pooling would make a plane of the diagonal.
    images = torch.stack([torch.eye(4), torch.ones(4, 4)])[:, None]
    graph = cp.trace(model, images[:1])
    assert scores(graph, "hrank", images=images)["0"].tolist() == [2.5, 0, 0]


def test_taylor_is_weight_times_gradient_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False)
    ).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2.0])[:, None, None, None])
        model[3].weight.copy_(torch.eye(2))
    # Logits (1, 2); ∂L/∂w = p - y for class 0: (-σ(1), σ(1)); for class 1: (σ(-1), -σ(-1)).
    images = torch.ones(3, 1, 4, 4)
    graph = cp.trace(model, images[:1])
    p = torch.sigmoid(torch.tensor(1.0)).item()
    one = scores(graph, "taylor", images=images, labels=torch.tensor([0, 0, 0]))["0"]
    assert one.tolist() == pytest.approx([p, 2 * p])
    mixed = scores(graph, "taylor", images=images, labels=torch.tensor([0, 1, 1]))["0"]
    gradient = abs(p - 2 * (1 - p)) / 3
    assert mixed.tolist() == pytest.approx([gradient, 2 * gradient])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_taylor_does_not_depend_on_how_images_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    _, graph, images = ready(Plain())
    together = scores(graph, "taylor", images=images, labels=labelled())
    monkeypatch.setattr("clusterprune.criteria.taylor.gradient_batch_size", lambda graph: 7)
    for name, score in scores(graph, "taylor", images=images, labels=labelled()).items():
        assert torch.allclose(score, together[name], rtol=1e-4)


def test_random_scores_follow_the_seed() -> None:
    _, graph, _ = ready(Plain())
    first, again, other = (scores(graph, "random", seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def traced_resnet() -> cp.ChannelGraph:
    return cp.trace(build("resnet20", seed=0), torch.zeros(1, 3, 16, 16))


@pytest.fixture(scope="module")
def resnet() -> cp.ChannelGraph:
    return traced_resnet()


@settings(max_examples=examples(25), deadline=None)
@given(
    keep=st.floats(0.002, 1.0),
    criterion=st.sampled_from(["l1", "l2", "fpgm", "bn_scale", "random"]),
    scope=st.sampled_from(["local", "global"]),
    quantity=st.sampled_from(["macs", "params"]),
)
def test_the_budget_is_met_within_one_percent_or_refused(
    resnet: cp.ChannelGraph, keep: float, criterion: CriterionName, scope: str, quantity: str
) -> None:
    try:
        plan = prune_by(resnet, criterion, **{f"keep_{quantity}": keep}, round_to=1, scope=scope)
    except BudgetError as error:
        assert keep < 0.02
        assert "keep_" in str(error)  # noqa: PT017
        return
    cost = CostModel(resnet)
    kept = plan.by_group
    widths = np.array([len(kept[g.name].kept) if g.name in kept else g.width for g in resnet.groups], dtype=float)
    share = cost.total(quantity, widths) / cost.total(quantity)
    assert keep - 0.01 <= share <= keep + 1e-9


@pytest.mark.parametrize("criterion", names())
@pytest.mark.parametrize("network", [Plain, Grouped])
def test_every_criterion_compresses_streams_and_grouped_convolutions(network: type, criterion: CriterionName) -> None:
    model, graph, images = ready(network())
    plan = prune_by(graph, criterion, images=images, labels=labelled(), keep_macs=0.6, scope="global", seed=1)
    small = cp.apply(model, plan, graph=graph)
    share = evaluate.macs(small, images[:1]) / evaluate.macs(model, images[:1])
    assert 0.4 < share <= 0.6
    assert plan.notes["criterion"] == criterion
    assert prune_by(graph, criterion, images=images, labels=labelled(), keep_macs=0.6, scope="global", seed=1) == plan


def test_the_filters_of_lowest_score_go() -> None:
    model, graph, _ = ready(Plain())
    found = scores(graph, "l1")
    for merge in prune_by(graph, "l1", keep_macs=0.5, round_to=1).merges:
        score = found[merge.group].numpy()
        assert score[merge.kept].min() >= np.delete(score, merge.kept).max()
    assert model[0][0].out_channels == 12


def test_locally_every_group_keeps_the_same_fraction(resnet: cp.ChannelGraph) -> None:
    merges = prune_by(resnet, "l1", keep_macs=0.5, round_to=1).merges
    fractions = [len(m.kept) / resnet.by_name[m.group].width for m in merges]
    assert len(merges) == len(resnet.prunable)
    assert max(fractions) - min(fractions) < 0.2


def test_globally_scores_are_compared_across_groups() -> None:
    model, _, images = ready(Plain())
    with torch.no_grad():
        model[1][0].weight[::2] *= 1e-3  # half of one layer's filters hardly do anything
    graph = cp.trace(model, images[:1])
    everywhere = {
        merge.group: merge for merge in prune_by(graph, "l2", keep_macs=0.6, round_to=1, scope="global").merges
    }
    assert set(everywhere["1.0"].kept.tolist()) <= set(range(1, 12, 2))
    assert len(everywhere["1.0"].kept) <= 6
    assert all(len(merge.kept) > 8 for name, merge in everywhere.items() if name != "1.0")


def test_what_takes_over_comes_closer_than_what_drops() -> None:
    model, graph, images = ready(Plain())
    error = {}
    for merge in ("drop", "least_squares", "refit"):
        small = cp.apply(model, prune_by(graph, "l1", images=images, keep_macs=0.6, merging=merge), graph=graph)
        with torch.no_grad():
            error[merge] = float((small(images) - model(images)).norm())
    assert error["refit"] < error["least_squares"] < error["drop"]


def test_a_latency_target_is_handed_to_the_measured_search(monkeypatch: pytest.MonkeyPatch) -> None:
    _, graph, _ = ready(Plain())
    asked: list[float] = []

    def search(graph: cp.ChannelGraph, cost: object, share_of: Any, plan_at: Any, *_: object) -> Any:
        asked.append(share_of(20.0))
        return plan_at(0.5, "macs"), {}

    monkeypatch.setattr(sys.modules["clusterprune.methods.meeting"], "plan_for_latency", search)
    plan = prune_by(graph, "l1", keep_latency=0.8)
    assert asked == [0.8]
    assert plan.notes["keep_latency"] == 0.8
    assert plan.widths == prune_by(graph, "l1", keep_macs=0.5).widths


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"criterion": "l3"}, "criterion='l3'"),
        ({"scope": "both"}, "scope='both'"),
        ({"merging": "add"}, "merging='add'"),
        ({"merging": "refit"}, "images=None"),
        ({"criterion": "hrank"}, "images=None"),
        ({"criterion": "taylor"}, "images=None"),
        ({"criterion": "taylor", "images": torch.randn(4, 3, 12, 12)}, "labels=None"),
        ({"criterion": "taylor", "images": torch.randn(4, 3, 12, 12), "labels": torch.zeros(3).long()}, r"\(3,\)"),
        ({"criterion": "taylor", "images": torch.randn(4, 3, 12, 12), "labels": torch.zeros(4)}, "float32"),
        ({"criterion": "taylor", "images": torch.randn(4, 3, 12, 12), "labels": torch.tensor([0, 1, 5, 2])}, r"0\.\.5"),
        ({"criterion": "hrank", "images": torch.randn(4, 3, 9, 9)}, "do not fit"),
        ({"keep_macs": 1.5}, "keep_macs=1.5"),
    ],
)
def test_bad_arguments_are_refused(given: dict, said: str) -> None:
    _, graph, _ = ready(Plain())
    with pytest.raises(ArgumentError, match=said):
        prune_by(graph, **{"criterion": "l1", "keep_macs": 0.5, **given})


def test_batch_norm_scales_need_a_batch_norm() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with pytest.raises(ArgumentError, match="but 0 has none"):
        prune_by(cp.trace(model, torch.zeros(1, 3, 8, 8)), "bn_scale", keep_macs=0.5)


@pytest.mark.parametrize("network", [Plain, Grouped])
def test_soft_pruning_zeroes_the_weakest_filters_and_dropping_them_changes_nothing(network: type) -> None:
    model, _, images = ready(network())
    model, images = model.double(), images.double()
    graph = cp.trace(model, images[:1])
    norms = scores(graph, "l2")
    hook = SoftPruning(graph, keep_macs=0.5, round_to=1)
    hook.after_epoch(model, 1, 3)
    plan = hook.finish()
    assert len(plan.merges) == len(graph.prunable)
    for merge in plan.merges:
        group = graph.by_name[merge.group]
        gone = np.delete(np.arange(group.width), merge.kept)
        if group.n_blocks == 1:
            assert norms[merge.group][merge.kept].min() >= norms[merge.group][gone].max()
        assert (scores(graph, "l2")[merge.group][gone] == 0).all()
        assert (scores(graph, "bn_scale")[merge.group][gone] == 0).all()
    small = cp.apply(model, plan, graph=graph)
    with torch.no_grad():
        assert float((small(images) - model(images)).norm() / model(images).norm()) < 1e-12
    assert evaluate.macs(small, images[:1]) <= 0.5 * evaluate.macs(model, images[:1])


def test_soft_pruned_filters_grow_back_and_compete_anew() -> None:
    model, graph, images = ready(Plain())
    labels = labelled()
    hook = SoftPruning(graph, keep_macs=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    chosen = []
    for epoch in range(1, 5):
        model.train()
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        assert all((score > 0).all() for score in scores(graph, "l2").values())
        hook.after_epoch(model, epoch, 4)
        chosen.append({m.group: m.kept.tolist() for m in hook.finish().merges})
    assert {name: len(kept) for name, kept in chosen[-1].items()} == {n: hook.widths[n] for n in chosen[-1]}
    assert hook.tensors() == {}


def test_soft_pruning_goes_along_with_training_also_after_a_stop(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (96, 3, 12, 12), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 5, (96,), generator=generator)
    config = train.TrainConfig(epochs=3, batch_size=32, lr=0.05, precision="float32", device="cpu")

    def after(out: Path | None, **given: Any) -> tuple[nn.Module, SoftPruning]:
        model, graph, _ = ready(Plain())
        hook = SoftPruning(graph, keep_macs=0.5)
        normal = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
        with contextlib.suppress(KeyboardInterrupt):
            train.fit(model, Classification((pixels, labels), **normal), config, out=out, hook=hook, **given)
        return model.eval(), hook

    def stop(event: train.Progress) -> None:
        if event.kind == "epoch" and event.epoch == 2:
            raise KeyboardInterrupt

    torch.manual_seed(0)
    whole, hook = after(None)
    small = cp.apply(whole, hook.finish())
    images = torch.randn(8, 3, 12, 12, generator=generator)
    with torch.no_grad():
        assert torch.allclose(small(images), whole(images), atol=1e-5)
    torch.manual_seed(0)
    after(tmp_path, progress=stop)
    resumed, _ = after(tmp_path, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_soft_pruning_refuses_a_model_that_is_not_the_traced_one() -> None:
    _, graph, _ = ready(Plain())
    with pytest.raises(ArgumentError, match="no parameter"):
        SoftPruning(graph, keep_macs=0.5).after_epoch(nn.Linear(2, 2), 1, 1)

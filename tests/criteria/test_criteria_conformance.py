"""What every criterion must satisfy. A new one is added to CRITERIA and nothing else."""

import copy
import dataclasses
from collections.abc import Iterator

import pytest
import torch
from networks import reordered, residual_network
from torch import Tensor

import clusterprune as cp
from clusterprune.criteria import (
    FPGM,
    L1,
    L2,
    BatchNormScale,
    Criterion,
    HRank,
    Random,
    ScoreInputs,
    Taylor,
    create,
    name_of,
    names,
    read_criterion,
)
from clusterprune.errors import ArgumentError
from clusterprune.methods.prune_by import scores
from clusterprune.tasks import Classification

CRITERIA: tuple[Criterion, ...] = (L1(), L2(), FPGM(), BatchNormScale(), HRank(), Taylor(), Random())
DRAWN = {"random"}
"""Those whose scores do not depend on the channels."""
IMAGES = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 5


def inputs_of(graph: cp.ChannelGraph, seed: int = 0) -> ScoreInputs:
    task = Classification((torch.zeros(5, 3, 8, 8, dtype=torch.uint8), torch.arange(5)), mean=[0.5] * 3, std=[0.5] * 3)
    generator = torch.Generator().manual_seed(seed)
    return ScoreInputs(graph, graph.prunable, (IMAGES,), lambda positions: LABELS[positions], generator, task)


@pytest.fixture(scope="module")
def graph() -> Iterator[cp.ChannelGraph]:
    model = residual_network()
    before = copy.deepcopy(model.state_dict())
    yield cp.trace(model, IMAGES[:1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
class TestEveryCriterion:
    def test_there_is_a_finite_score_of_at_least_zero_for_every_channel(
        self, graph: cp.ChannelGraph, criterion: Criterion
    ) -> None:
        found = criterion(inputs_of(graph))
        assert set(found) == {group.name for group in graph.prunable} == {"stem", "inner"}
        for group in graph.prunable:
            assert found[group.name].shape == (group.width,)
            assert found[group.name].isfinite().all()
            assert (found[group.name] >= 0).all()
            assert not found[group.name].requires_grad
            assert found[group.name].device == next(graph.model.parameters()).device

    def test_reordered_channels_reorder_the_scores(self, graph: cp.ChannelGraph, criterion: Criterion) -> None:
        other, orders = reordered(graph.model, graph.prunable)
        with torch.no_grad():
            torch.testing.assert_close(other(IMAGES), graph.model(IMAGES))
        before, after = criterion(inputs_of(graph)), criterion(inputs_of(cp.trace(other, IMAGES[:1])))
        for name, order in orders.items():
            expected = before[name] if criterion.name in DRAWN else before[name][order]
            torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-6)

    def test_a_seed_repeats_the_scores(self, graph: cp.ChannelGraph, criterion: Criterion) -> None:
        first, again, other = (criterion(inputs_of(graph, seed)) for seed in (3, 3, 4))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert all(torch.equal(first[name], other[name]) for name in first) == (criterion.name not in DRAWN)

    def test_it_can_be_given_by_name_or_as_an_object(self, graph: cp.ChannelGraph, criterion: Criterion) -> None:
        assert isinstance(criterion, Criterion)
        assert create(criterion.name, **dataclasses.asdict(criterion)) == criterion  # type: ignore[call-overload]
        given = {"images": IMAGES, "labels": LABELS, "keep_macs": 0.7}
        plan = cp.prune_by(graph, criterion, **given)
        assert plan == cp.prune_by(graph, criterion.name, **given)  # type: ignore[arg-type]
        assert plan.notes["criterion"] == name_of(criterion) == criterion.name


def test_every_criterion_is_covered() -> None:
    assert {criterion.name for criterion in CRITERIA} == set(names())


def test_a_criterion_of_ones_own_is_any_function(graph: cp.ChannelGraph) -> None:
    def middle(inputs: ScoreInputs) -> dict[str, Tensor]:
        assert inputs.images is not None
        assert len(inputs.images[0]) == inputs.count == 20
        return {g.name: -(torch.arange(g.width) - g.width / 2).abs() + g.width for g in graph.groups}

    plan = cp.prune_by(graph, middle, images=IMAGES, keep_macs=0.5, round_to=1)
    assert plan.notes["criterion"] == "middle"
    assert [merge.kept.tolist() for merge in plan.merges] == [[2, 3, 4, 5, 6], [2, 3, 4, 5]]


class Squared:
    """The loss of a network of one's own, whose targets are numbers in a dictionary."""

    def check(self, outputs: Tensor, images: Tensor) -> None:
        assert len(outputs) == len(images)

    def loss(self, outputs: Tensor, images: Tensor, targets: dict[str, Tensor]) -> Tensor:
        return (outputs - targets["wanted"]).square().sum(1).mean()


def test_taylor_differentiates_the_loss_of_the_task(graph: cp.ChannelGraph) -> None:
    wanted = torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    found = scores(graph, "taylor", images=IMAGES, labels=lambda at: {"wanted": wanted[at]}, task=Squared())
    model = copy.deepcopy(graph.model)
    (model(IMAGES) - wanted).square().sum(1).mean().backward()
    products = {n: (p * p.grad).abs().flatten(1).sum(1) for n, p in model.named_parameters() if p.ndim == 4}
    torch.testing.assert_close(found["inner"].float(), products["inner.weight"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        found["stem"].float(), products["stem.weight"] + products["outer.weight"], rtol=1e-3, atol=1e-5
    )
    with pytest.raises(ArgumentError, match="labels=None"):
        scores(graph, "taylor", images=IMAGES, task=Squared())
    with pytest.raises(ArgumentError, match="has none; give images with labels"):
        scores(graph, "taylor", images=IMAGES, labels=lambda _: None, task=Squared())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (torch.ones(8), "must return a dictionary .* returned a Tensor"),
        ({"stem": torch.ones(8)}, "each of the 6 channels of inner, but returned None"),
        ({"stem": torch.ones(8), "inner": torch.ones(6, 1)}, r"inner, but returned shape \(6, 1\)"),
        ({"stem": torch.ones(8), "inner": [1.0] * 6}, r"inner, but returned \[1.0"),
        ({"stem": torch.tensor([1.0] * 7 + [-2]), "inner": torch.ones(6)}, "channel 7 of stem it returned -2"),
        ({"stem": torch.ones(8), "inner": torch.full((6,), torch.nan)}, "channel 0 of inner it returned nan"),
        ({"stem": torch.ones(8), "inner": torch.full((6,), torch.inf)}, "channel 0 of inner it returned inf"),
    ],
)
def test_bad_scores_are_refused_by_the_name_of_their_group(graph: cp.ChannelGraph, answer: object, said: str) -> None:
    def mine(inputs: ScoreInputs) -> object:
        return answer

    with pytest.raises(ArgumentError, match=f"criterion='mine' .*{said}"):
        cp.prune_by(graph, mine, keep_macs=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["l3", ["l1"], None, L1, object()])
def test_what_is_no_criterion_is_refused(wrong: object) -> None:
    with pytest.raises(ArgumentError, match=f"criterion must be one of {', '.join(names())}, or"):
        read_criterion(wrong)  # type: ignore[arg-type]

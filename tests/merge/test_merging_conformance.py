"""What every merging must satisfy. A new one is added to MERGINGS and nothing else."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import clusterprune as cp
from clusterprune.clustering import DBSCAN
from clusterprune.errors import ArgumentError
from clusterprune.merge import (
    Add,
    Drop,
    Kept,
    LeastSquares,
    Merging,
    Refit,
    ScaledAdd,
    assemble,
    create,
    merged,
    names,
    read_merging,
)  # fmt: skip

MERGINGS: tuple[Merging, ...] = (Drop(), Add(), ScaledAdd(), LeastSquares(), LeastSquares(ridge=0.1), Refit())
IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
REPRESENTATIVE = np.array([0, 1, 2, 3, 0, 1, 2, 3])
KEPT = Kept(np.arange(4), REPRESENTATIVE)


class Small(nn.Module):
    """A convolution whose channels an ordinary, a depthwise and a flattened layer read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise, self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 6, 3)
        self.head = nn.Linear(6 + 8 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x)).relu()
        y = self.second(self.depthwise(x).relu()).relu().mean((2, 3))
        return self.head(torch.cat([y, nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)], 1))


def network(*, alike: bool) -> nn.Module:
    """Return a network; if asked to, channels 4 to 7 of its first group repeat channels 0 to 3."""
    torch.manual_seed(0)
    model = Small().eval()
    with torch.no_grad():
        model.norm.running_mean.normal_()
        if alike:
            for module in (model.first, model.norm, model.depthwise):
                for tensor in (*module.parameters(), *module.buffers()):
                    if tensor.ndim:
                        tensor[4:] = tensor[:4]
    return model


def plan_by(merging: Merging, graph: cp.ChannelGraph) -> cp.Plan:
    generator = torch.Generator().manual_seed(0)
    return assemble(graph, {"first": KEPT}, merging, IMAGES, generator=generator)


@pytest.mark.parametrize("merging", MERGINGS, ids=repr)
class TestEveryMerging:
    def test_the_kept_stay_and_stand_for_themselves(self, merging: Merging) -> None:
        graph = cp.trace(network(alike=False), IMAGES[:1])
        plan = plan_by(merging, graph)
        (merge,) = plan.merges
        assert merge.kept.tolist() == [0, 1, 2, 3]
        for mixing in merge.mixing.values():
            assert torch.equal(mixing[:4], torch.eye(4))
        assert cp.apply(graph.model, plan, graph=graph)(IMAGES).isfinite().all()

    def test_identical_channels_are_merged_without_loss_or_dropped(self, merging: Merging) -> None:
        model = network(alike=True)
        graph = cp.trace(model, IMAGES[:1])
        small = cp.apply(model, plan_by(merging, graph), graph=graph)
        with torch.no_grad():
            error = float((small(IMAGES) - model(IMAGES)).norm() / model(IMAGES).norm())
        # A ridge shrinks, and a refit is solved from some of the positions.
        within = {"drop": np.inf, "add": 1e-5, "scaled_add": 1e-5}.get(merging.name, 0.05)
        assert error < within
        assert merging.name != "drop" or error > 0.05

    def test_a_seed_repeats_the_plan_and_the_network_stays_as_it_is(self, merging: Merging) -> None:
        model = network(alike=False)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        graph = cp.trace(model, IMAGES[:1])
        assert plan_by(merging, graph) == plan_by(merging, graph)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_what_it_needs_it_says(self, merging: Merging) -> None:
        graph = cp.trace(network(alike=False), IMAGES[:1])
        if merging.needs_images:
            with pytest.raises(ArgumentError, match="images=None"):
                assemble(graph, {"first": KEPT}, merging, None, generator=torch.Generator())
        if merging.by_cluster:
            with pytest.raises(ArgumentError, match="clusters say to which"):
                merged(graph, {"first": Kept(KEPT.channels)}, merging, lambda use: (torch.eye(9), use))
            with pytest.raises(ArgumentError, match="not kept by clusters"):
                cp.prune_by(graph, "l1", images=IMAGES, merging=merging, keep_macs=0.5)
        else:
            merged(graph, {"first": Kept(KEPT.channels)}, merging)

    def test_it_can_be_given_by_name_or_as_an_object(self, merging: Merging) -> None:
        assert isinstance(merging, Merging)
        assert create(merging.name, **dataclasses.asdict(merging)) == merging  # type: ignore[call-overload]
        assert read_merging(merging) is merging
        assert read_merging(merging.name) == create(merging.name)
        graph = cp.trace(network(alike=False), IMAGES[:1])
        cluster = {"clustering": DBSCAN(eps=0.3, min_samples=2)}
        plan = cp.cluster(graph, IMAGES, merging=merging, **cluster)
        assert plan.notes["merging"] == merging.name
        if merging == create(merging.name):
            assert plan == cp.cluster(graph, IMAGES, merging=merging.name, **cluster)  # type: ignore[arg-type]


def test_every_merging_is_covered() -> None:
    assert {merging.name for merging in MERGINGS} == set(names())


@dataclasses.dataclass(frozen=True)
class Halved:
    """A merging of one's own: like addition, at half the strength."""

    name = "halved"
    by_cluster = True
    needs_images = False

    def merge(self, graph, group, kept, moments) -> cp.Merge:
        merge = Add().merge(graph, group, kept, moments)
        return dataclasses.replace(merge, mixing={path: mixing / 2 for path, mixing in merge.mixing.items()})

    def finish(self, graph, plan, images, *, generator, progress=None) -> cp.Plan:
        return plan


def test_a_merging_of_ones_own_needs_no_base_class() -> None:
    graph = cp.trace(network(alike=True), IMAGES[:1])
    plan = cp.cluster(graph, IMAGES, merging=Halved(), clustering=DBSCAN(eps=1e-6, min_samples=2))
    assert {float(m.max()) for merge in plan.merges for m in merge.mixing.values()} == {0.5}


@pytest.mark.parametrize("wrong", ["glue", ["add"], None, Drop, object()])
def test_what_is_no_merging_is_refused(wrong: object) -> None:
    with pytest.raises(ArgumentError, match="merging must be one of drop, add, scaled_add, least_squares, refit, or"):
        read_merging(wrong)  # type: ignore[arg-type]


def test_a_ridge_is_above_zero() -> None:
    with pytest.raises(ArgumentError, match="ridge must be above 0, but got ridge=0"):
        LeastSquares(ridge=0)

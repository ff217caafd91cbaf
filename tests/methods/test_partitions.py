import numpy as np
import pytest
import torch

import clusterprune as cp
from clusterprune import evaluate
from clusterprune.clustering import DBSCAN
from clusterprune.models import build


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("keep", [0.8, 0.6])
def test_what_the_smallest_epsilon_leaves_of_the_budget_is_used(images: torch.Tensor, keep: float) -> None:
    model = build("resnet20", seed=0)
    graph = cp.trace(model, images[:1])
    inner = graph.only(cp.inner_groups(graph))
    plan = cp.cluster(inner, images, clustering=DBSCAN(eps=0.02), merging="drop", keep_macs=keep, round_to=1)
    kept = evaluate.macs(cp.apply(model, plan, graph=graph), images[:1]) / evaluate.macs(model, images[:1])
    # One channel of the widest inner layer costs 0.3 % of this network.
    assert keep - 0.004 < kept <= keep


def test_blocks_stay_equal_and_widths_stay_permitted(images: torch.Tensor) -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 3, groups=4), torch.nn.ReLU(),
        torch.nn.Conv2d(32, 24, 3), torch.nn.ReLU(), torch.nn.Conv2d(24, 5, 3),
    ).eval()  # fmt: skip
    graph = cp.trace(model, images[:1])
    plan = cp.cluster(graph, images, clustering=DBSCAN(eps=0.02, min_samples=2), keep_macs=0.5, round_to=4)
    assert plan.merges
    for merge in plan.merges:
        group = graph.by_name[merge.group]
        assert len(merge.kept) % 4 == 0
        counts = np.bincount(group.blocks[merge.kept], minlength=group.n_blocks)
        assert len(set(counts.tolist())) == 1

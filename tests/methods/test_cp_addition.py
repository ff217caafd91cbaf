"""Channel addition: what repeats goes, and nothing is lost."""

import copy

import numpy as np
import pytest
import torch
from cp_networks import X, lively, plain, pruned, relative_error
from small_networks import Grouped, trained_statistics
from torch import Tensor, nn

import clusterprune as cp
from clusterprune import evaluate
from clusterprune.clustering import Agglomerative, Birch, MeanShift, Spectral
from clusterprune.errors import PlanError
from clusterprune.methods.cp import CP, ClusterPruning, channel_addition
from clusterprune.methods.cp_rates import Constant
from clusterprune.models import build
from clusterprune.models.vgg import VGG

# Channel addition loses nothing.

SLOW = pytest.mark.slow
NARROW_VGG = ((8,) * 2, (16,) * 2, (32,) * 3, (64,) * 3, (64,) * 3)


@pytest.mark.parametrize("batch_norm", ["tied", "removed"])
@pytest.mark.parametrize(
    "name", ["resnet20", "narrow vgg", *(pytest.param(n, marks=SLOW) for n in ("vgg16", "resnet56", "googlenet"))]
)
def test_channel_addition_changes_no_output(name: str, batch_norm: str) -> None:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    whole = lively(VGG(NARROW_VGG) if name == "narrow vgg" else build(name, seed=0))
    model, graph = pruned(whole, CP(batch_norm=batch_norm), images[:1])
    plan = channel_addition(model, graph)
    small = cp.apply(model, plan, graph=graph)
    hook = ClusterPruning(graph, CP(batch_norm=batch_norm))
    assert {merge.group for merge in plan.merges} == {group.name for group in hook.groups}
    assert evaluate.macs(small, images[:1]) < 0.6 * evaluate.macs(whole, images[:1])
    assert relative_error(small, model, images) < 1e-5
    with torch.no_grad():
        assert torch.equal(small(images).argmax(1), model(images).argmax(1))
    double = copy.deepcopy(model).double()
    graph = cp.trace(double, images[:1].double())
    small = cp.apply(double, channel_addition(double, graph), graph=graph)
    assert relative_error(small, double, images.double()) < 1e-12


@pytest.mark.parametrize("batch_norm", ["tied", "removed"])
@pytest.mark.parametrize(
    "clustering",
    [None, Spectral(n_clusters=2), Agglomerative(n_clusters=2), Birch(n_clusters=2), MeanShift()],
    ids=lambda c: "warm k-means" if c is None else type(c).__name__,
)
def test_every_clustering_ends_without_loss(clustering: object, batch_norm: str) -> None:
    config = CP(clustering=clustering, batch_norm=batch_norm, clusters=Constant(share=0.25))
    model, graph = pruned(plain(), config)
    small = cp.apply(model, channel_addition(model, graph), graph=graph)
    assert relative_error(small, model, X) < 1e-5


def test_plan_widths_survive_the_disk(tmp_path: object) -> None:
    model, graph = pruned(plain(), CP())
    plan = channel_addition(model, graph)
    plan.save(tmp_path / "plan")
    small = cp.apply(model, cp.Plan.load(tmp_path / "plan"), graph=graph)
    assert relative_error(small, model, X) < 1e-5


# What may be merged.


def alike(model: nn.Module, factor: float = 1.0) -> nn.Module:
    """Channels 5, 6 and 7 of the second layer become multiples of channel 4, batch norm included."""
    conv, norm = model[1][0], model[1][1]
    with torch.no_grad():
        for channel in (5, 6, 7):
            for tensor in (conv.weight, norm.running_mean, norm.running_var, norm.weight, norm.bias):
                tensor[channel] = tensor[4]
            norm.weight[channel] *= factor
            norm.bias[channel] *= factor
    return model


def test_equal_channels_are_found_without_the_hook() -> None:
    model = alike(plain())
    graph = cp.trace(model, X[:1])
    (merge,) = channel_addition(model, graph).merges
    assert merge.group == "1.0"
    assert merge.kept.tolist() == [0, 1, 2, 3, 4, 8, 9, 10, 11]


def test_proportional_channels_are_added_with_their_factor() -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model = alike(plain().to(dtype), 1.75)
        graph = cp.trace(model, X[:1].to(dtype))
        assert not [merge for merge in channel_addition(model, graph).merges if len(merge.kept) < 10]
        small = cp.apply(model, channel_addition(model, graph, scaled=True), graph=graph)
        assert small[1][0].out_channels == 9
        assert relative_error(small, model, X.to(dtype)) < tolerance


def test_factors_do_not_pass_what_is_not_homogeneous() -> None:
    model = plain()
    model[1][2] = nn.SiLU()
    alike(model, 1.75)
    graph = cp.trace(model, X[:1])
    groups = channel_addition(model, graph, scaled=True).widths
    assert groups == {"1.0": 10}  # 5, 6 and 7 are equal; 4 is not


def test_a_negative_factor_is_no_factor() -> None:
    model = alike(plain(), -1.0)
    graph = cp.trace(model, X[:1])
    groups = channel_addition(model, graph, scaled=True).widths
    assert groups == {"1.0": 10}


class Halves(nn.Module):
    """Half of the channels go through ReLU, the other half do not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(torch.cat([x[:, :4], torch.relu(x[:, 4:])], 1))


def test_equal_channels_that_code_treats_differently_stay() -> None:
    torch.manual_seed(0)
    model = Halves()
    with torch.no_grad():
        for channel in (1, 4, 5):
            model.conv.weight[channel] = model.conv.weight[0]
            model.conv.bias[channel] = model.conv.bias[0]
    graph = cp.trace(model, X[:1])
    small = cp.apply(model, channel_addition(model, graph), graph=graph)
    assert relative_error(small, model, X) < 1e-5


def test_blocks_of_a_grouped_convolution_keep_equally_many() -> None:
    torch.manual_seed(2)
    model = trained_statistics(Grouped(), X).eval()
    conv, norm = model.b[0], model.b[1]
    with torch.no_grad():
        for source, target in ((0, 1), (0, 2), (4, 5), (8, 9)):
            for tensor in (conv.weight, norm.running_mean, norm.running_var, norm.weight, norm.bias):
                tensor[target] = tensor[source]
    graph = cp.trace(model, X[:1])
    plan = channel_addition(model, graph)
    (merge,) = (merge for merge in plan.merges if merge.group == "b.0")
    blocks = graph.by_name["b.0"].blocks
    assert np.bincount(blocks[merge.kept]).tolist() == [3, 3, 3]
    assert relative_error(cp.apply(model, plan, graph=graph), model, X) < 1e-5


def test_the_graph_of_another_network_is_refused() -> None:
    model = plain()
    with pytest.raises(PlanError, match="trace the model again"):
        channel_addition(copy.deepcopy(model), cp.trace(model, X[:1]))

"""Models and inputs that a user may bring and that the library cannot take: clear errors, and nothing half-done."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import clusterprune as cp
from clusterprune import evaluate
from clusterprune.errors import ClusterpruneError, ModelError, PlanError, TraceError


def images(count: int = 32, size: int = 8) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def plain(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1),
    ).eval()


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum() > 0 else self.b(x)


class Sorting(nn.Module):
    """Sorts one branch over its channels, which has no rule; the other layers are ordinary."""

    def __init__(self):
        super().__init__()
        self.stem, self.odd = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1)
        self.next, self.head = nn.Conv2d(6, 10, 1), nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.renorm(torch.relu(self.odd(x)), 2, 1, 1.0)
        return self.head(torch.relu(self.next(x)))


def test_data_dependent_control_flow():
    model = DataDependent().train()
    with pytest.raises(TraceError, match=r"cannot export DataDependent on an example of shape \(1, 3, 8, 8\)") as error:
        cp.trace(model, images(1))
    assert "move it out of forward" in str(error.value)
    assert "\n" not in str(error.value)
    assert model.training


def test_operations_without_a_rule_freeze_what_they_read_and_nothing_else():
    torch.manual_seed(0)
    model = Sorting().eval()
    graph = cp.trace(model, images(1))
    assert list(graph.unknown) == ["aten.renorm"]
    assert {g.name for g in graph.prunable} == {"stem", "next"}
    assert "has no rule" in str(graph.by_name["odd"].frozen)
    text = str(graph)
    assert "operations without a rule" in text
    assert "aten.renorm: at renorm" in text
    small = cp.apply(model, cp.oneshot(graph, images(), keep_macs=0.7), graph=graph)
    assert small.odd.out_channels == 6
    assert evaluate.macs(small, images(1)) <= 0.7 * evaluate.macs(model, images(1))
    with torch.no_grad():
        assert (small(images()) - model(images())).square().mean() < 0.5 * model(images()).var()


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (8, 8), (1, 3, 1, 1)])
def test_examples_of_a_wrong_shape(shape: tuple[int, ...]):
    with pytest.raises(TraceError, match="does not run on an example of shape") as error:
        cp.trace(plain(), torch.zeros(shape))
    assert "Give an example of the shape" in str(error.value)


def test_too_many_inputs():
    with pytest.raises(TraceError, match="does not run"):
        cp.trace(plain(), (images(1), images(1)))


@pytest.mark.parametrize("example", ["images", None, 3, np.zeros((1, 3, 8, 8))])
def test_examples_that_are_no_tensors(example):
    with pytest.raises(ClusterpruneError, match="example"):
        cp.trace(plain(), example)


def test_a_model_that_is_none():
    with pytest.raises(ClusterpruneError, match=r"torch\.nn\.Module"):
        cp.trace("resnet20", images(1))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var", "5.bias"])
def test_unsound_weights(name: str, value: float):
    model = plain()
    with torch.no_grad():
        model.state_dict()[name].view(-1)[0] = value
    with pytest.raises(ModelError, match=f"weight '{name}' holds NaN or infinity"):
        cp.trace(model, images(1))


def test_plans_for_another_model():
    model = plain()
    graph = cp.trace(model, images(1))
    plan = cp.oneshot(graph, images(), keep_macs=0.5)
    with pytest.raises(PlanError, match=r"belongs to another model: .* first 0\.bias"):
        cp.apply(plain(width=10), plan)
    other = plain()
    with torch.no_grad():
        other[0].weight.add_(0.1)
    with pytest.raises(PlanError, match="same architecture with other weights"):
        cp.apply(other, plan)
    assert cp.apply(model, plan)[0].out_channels < 8


def test_plans_without_matrices_may_move_to_other_weights():
    graph = cp.trace(plain(), images(1))
    other = plain()
    with torch.no_grad():
        other[0].weight.add_(0.1)
    small = cp.apply(other, cp.Plan.of(graph, (cp.Merge("0", np.arange(4)),)))
    assert torch.equal(small[0].weight, other[0].weight[:4])


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        (cp.Merge("nowhere", np.arange(2)), "which this model does not have"),
        (cp.Merge("5", np.arange(2)), "must stay whole"),
        (cp.Merge("0", np.array([], dtype=int)), "at least one"),
        (cp.Merge("0", np.array([0, 0])), "distinct"),
        (cp.Merge("0", np.array([0, 8])), r"in 0\.\.7"),
        (cp.Merge("0", np.array([-1, 2])), r"in 0\.\.7"),
        (cp.Merge("0", np.array([3, 1])), "ascending"),
        (cp.Merge("0", np.arange(2), {"5.weight": torch.zeros(8, 2)}), "does not read this group"),
        (cp.Merge("0", np.arange(2), {"3.weight": torch.zeros(2, 8)}), r"has shape \(2, 8\), not \(8, 2\)"),
        (cp.Merge("0", np.arange(2), {"3.weight": torch.full((8, 2), torch.nan)}), "holds NaN or infinity"),
        (cp.Merge("0", np.arange(2), {}, {"3.weight": torch.full((8,), torch.inf)}), "holds NaN or infinity"),
    ],
)
def test_impossible_merges(merge: cp.Merge, message: str):
    model = plain()
    graph = cp.trace(model, images(1))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(PlanError, match=message):
        cp.apply(model, cp.Plan.of(graph, (merge,)), graph=graph)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"nowhere.weight": torch.zeros(3)}, "replaces 'nowhere.weight', which this model does not have"),
        ({"3.weight": torch.zeros(6, 8, 3, 3)}, r"has shape \(6, 8, 3, 3\), but the cut leaves \(6, 4, 3, 3\)"),
        ({"3.weight": torch.full((6, 4, 3, 3), torch.nan)}, "holds NaN or infinity"),
    ],
)
def test_impossible_replacements(replaced: dict[str, Tensor], message: str):
    model = plain()
    graph = cp.trace(model, images(1))
    plan = replace(cp.Plan.of(graph, (cp.Merge("0", np.arange(4)),)), replaced=replaced)
    with pytest.raises(PlanError, match=message):
        cp.apply(model, plan, graph=graph)

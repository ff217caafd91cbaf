"""The price of a cut is what it costs the network's own prediction."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import clusterprune as cp
from clusterprune.graph.program import named_tensors
from clusterprune.merge.elimination import eliminate, refitted
from clusterprune.merge.layer_inputs import consumers, kernel_change, layer_input
from clusterprune.merge.measured import Measured
from clusterprune.merge.sensitivity import calibrated, fisher_losses, levels
from clusterprune.merge.statistics import input_moments, output_importance


class Small(nn.Module):
    """Two convolutions; the first one's channels are nearly combinations of three of them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 5, 3, padding=1)
        self.head = nn.Linear(5, 4)
        self.example = torch.zeros(1, 3, size, size)
        with torch.no_grad():
            self.first.weight[3:] = torch.einsum("ij,j...->i...", torch.randn(3, 3), self.first.weight[:3])
            self.first.weight += 0.01 * torch.randn_like(self.first.weight)
            self.head.weight *= 4

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)).mean((2, 3)))


@pytest.mark.parametrize("size", [9, 4])  # maps on which kernel gradients pay, and maps on which they do not
def test_the_price_is_the_divergence_of_the_prediction(size: int) -> None:
    torch.manual_seed(0)
    model = Small(size).double()
    graph = cp.trace(model, model.example.double())
    images = torch.randn(4000, *model.example.shape[1:], dtype=torch.float64)
    state = {path: tensor.detach() for path, tensor in named_tensors(graph).items()}
    group = graph.by_name["first"]
    (call,) = [c.node for c in graph.calls if c.weight == "second.weight"]
    whole = {call: True}
    common = {"batch_size": 500, "generator": torch.Generator().manual_seed(0)}
    moments = input_moments(graph, state, images, whole, rows=400_000, **common)
    importance = output_importance(graph, state, images, [call], **common)
    (consumer,) = consumers(graph, group, whole)
    weight = state["second.weight"]
    read = [layer_input(consumer, weight, moments[call], importance[call])]
    path = eliminate(
        read,
        blocks=group.blocks, damping=1e-9,
    )  # fmt: skip
    measured = Measured(moments, importance, whole, {})
    snapshots = refitted(read, path.order, levels(group), damping=1e-9)
    total = fisher_losses(graph, state, images, [(group, snapshots)], measured, moments, **common)
    priced = calibrated(path, {level: loss / len(images) for (_, level), loss in total.items()})
    before = model(images).log_softmax(1).detach()
    for level in (1, 2, 3):
        change, bias = kernel_change(consumer, weight, snapshots[level][0], moments[call], importance[call])
        cut = Small(size).double()
        cut.load_state_dict({**state, "second.weight": weight + change, "second.bias": state["second.bias"] + bias})
        after = cut(images).log_softmax(1).detach()
        divergence = functional.kl_div(after, before, reduction="batchmean", log_target=True)
        assert priced[level] == pytest.approx(float(divergence), rel=0.1)
        assert priced[level] > 0

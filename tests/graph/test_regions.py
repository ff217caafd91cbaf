"""Regions of another precision or gradient mode inside a forward are the same operations, and channels pass them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import clusterprune as cp
from clusterprune.errors import TraceError
from clusterprune.graph.program import Program, named_tensors


class Regions(nn.Module):
    """Three convolutions; how they are run is up to a function."""

    def __init__(self, run: Callable[["Regions", Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 1)
        self.gain = nn.Parameter(torch.rand(16, 1, 1))
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def disabled(m: Regions, x: Tensor) -> Tensor:
    x = m.a(x).relu()
    with torch.autocast("cpu", enabled=False):
        x = m.b(x.float()).relu()
    return m.c(x)


def lower(m: Regions, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = m.b(m.a(x).relu() * m.gain)
        x = torch.cat([x[:, :8].softmax(1), x[:, 8:].float()], 1)
    return m.c(x.float())


def nested(m: Regions, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = m.a(x)
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            x = x + m.b(nn.functional.pad(x, (1, 1, 1, 1)).float())
        x = m.c(x)
    return x.float()


def gradients(m: Regions, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = m.a(x)
        with torch.enable_grad():
            x = m.b(x.relu())
    with torch.inference_mode():
        return m.c(x)


def saved(m: Regions, x: Tensor) -> Tensor:
    x = checkpoint(m.a, x, use_reentrant=False)
    return m.c(checkpoint(m.b, x, use_reentrant=False))


def branch(m: Regions, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.c(torch.cond(x.sum() > 0, m.b, lambda y: -m.b(y), (x,)))


@pytest.mark.parametrize("run", [disabled, lower, nested, gradients, saved])
def test_a_region_is_its_operations(run: Callable[[Regions, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Regions(run).eval()
    images = torch.randn(16, 3, 10, 10)
    graph = cp.trace(model, images[:1])
    with torch.no_grad():
        assert torch.equal(Program(graph).run(named_tensors(graph), (images,))[0], model(images)), (
            "same, casts included"
        )
    assert graph.unknown == {}
    if run is not lower:
        assert graph.prunable[0].name == "a"
        small = cp.apply(model, cp.oneshot(graph, images, keep_macs=0.6), graph=graph)
        assert small(images).shape == model(images).shape


def test_a_branch_is_refused_by_name() -> None:
    with pytest.raises(TraceError, match=r"runs cond .*a branch or a loop over tensors"):
        cp.trace(Regions(branch).eval(), torch.randn(1, 3, 10, 10))

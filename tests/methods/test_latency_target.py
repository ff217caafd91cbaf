"""A target in time: layers give prices, the real network decides, and a user's own clock is taken too."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import clusterprune as cp
from clusterprune import models
from clusterprune.budget.cost import CostModel
from clusterprune.budget.latency import LatencyModel, timed_layers
from clusterprune.errors import ArgumentError, BudgetError, DataError
from clusterprune.methods.latency import Clock
from clusterprune.runtimes.layer_times import LatencyTable, LayerShape
from clusterprune.runtimes.running import Torch


class Known(LatencyTable):
    """Layers whose times are a surface of the kind that is fitted."""

    def ms(self, shape: LayerShape) -> float:
        places = 1
        for length in shape.size:
            places *= length
        pairs = shape.inputs * shape.outputs // shape.groups
        return 0.01 + places * (1e-5 * shape.inputs + 2e-5 * shape.outputs + 1e-6 * pairs)


@pytest.fixture(scope="module")
def traced() -> tuple[nn.Module, cp.ChannelGraph]:
    model = models.build("resnet20", seed=0)
    return model, cp.trace(model, torch.randn(1, 3, 32, 32))


def test_every_layer_is_timed_and_the_network_is_their_sum(traced: tuple[nn.Module, cp.ChannelGraph]) -> None:
    _, graph = traced
    table = Known(Torch())
    layers = timed_layers(graph)
    assert len(layers) == len(graph.calls) == 20
    told = sum(table.ms(layer.shape) for layer in layers)
    cost = CostModel(graph)
    cost.add("latency", LatencyModel(graph, table, 2 * told).terms)
    assert cost.total("latency") == pytest.approx(2 * told, rel=1e-3)
    inner = next(group for group in graph.prunable if group.name == "layer1.0.conv1")
    narrow = cost.total("latency", cost.with_widths({inner.name: 8}))
    shapes = [layer for layer in layers if layer.shape.size == (32, 32)][1:3]
    saved = sum(table.ms(layer.shape) for layer in shapes)
    saved -= table.ms(shapes[0].at(16, 8)) + table.ms(shapes[1].at(8, 16))
    assert cost.total("latency") - narrow >= saved * 0.99  # and what is between the layers gets cheaper too


def test_a_user_s_own_clock_decides(traced: tuple[nn.Module, cp.ChannelGraph]) -> None:
    model, graph = traced

    def clock(network: nn.Module) -> float:
        return sum(p.numel() for p in network.parameters()) / 1e3

    plan = cp.prune_by(graph, "l1", keep_latency=0.6, latency=clock)
    assert 0.5 < clock(cp.apply(model, plan, graph=graph)) / clock(model) <= 0.6
    assert plan.notes["latency"]["original_ms"] == clock(model)
    with pytest.raises(BudgetError, match=r"keep_latency=0\.6 was not reached"):
        cp.prune_by(graph, "l1", keep_latency=0.6, latency=lambda _: 1.0)
    with pytest.raises(ArgumentError, match="milliseconds above 0"):
        cp.prune_by(graph, "l1", keep_latency=0.6, latency=lambda _: -1.0)
    with pytest.raises(ArgumentError, match="latency must be a runtime"):
        cp.prune_by(graph, "l1", keep_latency=0.6, latency=3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="runtime='tpu'"):
        Clock("tpu")


def test_a_runtime_s_table_is_kept_and_is_only_its_own(
    traced: tuple[nn.Module, cp.ChannelGraph], tmp_path: Path
) -> None:
    table = LatencyTable(Torch(1), tmp_path / "times.json", seconds=1e-3)
    shape = timed_layers(traced[1])[1].shape
    took = table.ms(shape)
    table.save()
    again = LatencyTable(Torch(1), tmp_path / "times.json")
    assert again.ms(shape) == took
    assert again.measured == 0
    with pytest.raises(DataError, match="is of the runtime"):
        LatencyTable(Torch(2), tmp_path / "times.json")
    document = json.loads((tmp_path / "times.json").read_text())
    (tmp_path / "times.json").write_text(json.dumps(document | {"ms": {shape.key: -1}}))
    with pytest.raises(DataError, match="remove that line"):
        LatencyTable(Torch(1), tmp_path / "times.json")

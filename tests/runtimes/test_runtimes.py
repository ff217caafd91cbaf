"""Runtimes run the model as it is in evaluation mode; races say who is the faster, or that nobody is."""

import itertools

import pytest
import torch
from torch import nn

from clusterprune.errors import ArgumentError
from clusterprune.runtimes.racing import Race, race
from clusterprune.runtimes.running import OnnxRuntime, Torch, create_runtime, runtime_names

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 5))


@pytest.mark.parametrize("name", ["torch", "torch:threads=1", "onnxruntime", "onnxruntime:threads=1"])
def test_a_runtime_computes_what_the_model_does_in_evaluation_and_leaves_it_alone(name: str) -> None:
    if name.startswith("onnx"):
        pytest.importorskip("onnxruntime")
    model, threads = network(), torch.get_num_threads()
    mean = model[1].running_mean.clone()
    expected = model.eval()(IMAGES)
    model.train()
    found = create_runtime(name).prepare(model, IMAGES)()
    found = found[0] if isinstance(found, list) else found
    assert torch.allclose(found, expected, atol=1e-5)
    assert model.training
    assert model[1].running_mean.equal(mean)
    assert torch.get_num_threads() == threads


def test_runtimes_by_text() -> None:
    assert create_runtime("torch") == Torch()
    assert create_runtime("onnxruntime:threads=2") == OnnxRuntime(2)
    assert set(runtime_names()) == {"torch", "torch.compile", "onnxruntime"}
    for text in ("tensorrt", "torch:2", "torch:threads=0", "onnxruntime:threads=", 3):
        with pytest.raises(ArgumentError, match=r"runtime=|threads="):
            create_runtime(text)  # type: ignore[arg-type]


def test_a_gain_within_its_spread_is_none() -> None:
    steady = Race(((10.0, 10.2, 9.9, 10.1), (5.0, 5.1, 4.9, 5.0), (9.0, 11.0, 9.5, 10.6)))
    assert steady.speedup(1).certain
    assert steady.speedup(1).times == pytest.approx(2, rel=0.05)
    assert not steady.speedup(2).certain
    assert "within the spread" in str(steady.speedup(2))
    assert steady.speedup(0, over=1).certain  # a loss is as certain as a gain
    assert steady.median_ms(1) == 5.0


def test_a_race_times_the_networks_in_turns() -> None:
    order: list[str] = []
    found = race([lambda: order.append("a"), lambda: order.append("b")], rounds=4, seconds=1e-4)
    assert [len(times) for times in found.rounds_ms] == [4, 4]
    assert sum(one != other for one, other in itertools.pairwise(order)) >= 4
    with pytest.raises(ArgumentError, match="runs="):
        race([])
    with pytest.raises(ArgumentError, match="rounds=1"):
        race([lambda: None], rounds=1)

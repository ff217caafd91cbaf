import pytest
import torch
from torch import nn

from clusterprune import evaluate
from clusterprune.errors import ArgumentError, ModelError


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.modes = []

    def forward(self, images):
        self.modes.append((self.training, torch.is_inference_mode_enabled()))
        return images


def test_statistics_leave_out_the_warm_up(monkeypatch):
    durations = [900.0, 800.0, 1.0, 2.0, 3.0, 4.0, 10.0]
    # The module itself is hidden behind the function of the same name.
    monkeypatch.setitem(evaluate.latency.__globals__, "_timer", lambda *_: iter(durations).__next__)
    result = evaluate.latency(nn.Identity(), torch.zeros(3, 1), warmup=2, runs=5)
    assert result == evaluate.Latency(median_ms=3.0, iqr_ms=2.0, runs=5, batch=3)


def test_runs_in_evaluation_and_inference_mode():
    model = Counting().train()
    result = evaluate.latency(model, torch.zeros(1, 3), warmup=2, runs=3)
    assert model.modes == [(False, True)] * 5
    assert model.training
    assert result.median_ms > 0
    assert result.iqr_ms >= 0


def test_more_work_takes_longer():
    small, large = nn.Linear(8, 8), nn.Linear(1500, 1500)
    quick = evaluate.latency(small, torch.zeros(1, 8))
    slow = evaluate.latency(large, torch.zeros(64, 1500))
    assert slow.median_ms > quick.median_ms


def test_several_inputs():
    assert evaluate.latency(nn.Bilinear(2, 3, 4), (torch.zeros(5, 2), torch.zeros(5, 3))).batch == 5


@pytest.mark.parametrize("arguments", [{"runs": 0}, {"warmup": -1}])
def test_bad_arguments(arguments):
    with pytest.raises(ArgumentError, match=next(iter(arguments))):
        evaluate.latency(nn.Identity(), torch.zeros(1), **arguments)


def test_a_failing_model():
    with pytest.raises(ModelError, match="example of shape"):
        evaluate.latency(nn.Linear(2, 2), torch.zeros(1, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    model = nn.Linear(64, 64)
    assert evaluate.latency(model, torch.zeros(1, 64), device="cuda").median_ms > 0
    assert model.weight.device.type == "cpu"

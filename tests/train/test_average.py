from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from clusterprune import data, evaluate, train
from clusterprune.train import checkpoint
from clusterprune.train.average import WeightAverage

Fit = Callable[..., train.TrainResult]


class StopError(Exception):
    """Stands for anything that ends a run."""


def test_two_updates_by_hand() -> None:
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, 0.9)
    for weight, mean in ((2.0, 10.0), (3.0, 20.0)):
        with torch.no_grad():
            model.weight.fill_(weight)
            model.running_mean.fill_(mean)
        average.update(model)
    # 0.9 · (0.9 · 1 + 0.1 · 2) + 0.1 · 3, and 0.9 · (0.9 · 0 + 0.1 · 10) + 0.1 · 20.
    assert average.tensors["weight"].item() == pytest.approx(1.29)
    assert average.tensors["running_mean"].item() == pytest.approx(2.9)
    assert "num_batches_tracked" not in average.tensors
    with average.in_place_of(model):
        assert model.weight.item() == pytest.approx(1.29)
    assert (model.weight.item(), model.running_mean.item()) == (3, 20)
    average.write_to(model)
    assert model.weight.item() == pytest.approx(1.29)


def test_the_average_is_measured_and_kept(tmp_path: Path, fit: Fit, worker: ModuleType, finished: dict) -> None:
    model = worker.network()
    result = fit(model, ema_decay=0.9, out=tmp_path)
    tensors, _ = checkpoint.read(tmp_path / checkpoint.FILE_NAME)
    # The trained weights go their own way; the model ends as their average.
    assert all(torch.equal(tensors[f"model.{name}"], finished[name]) for name in finished)
    state = model.state_dict()
    assert all(
        torch.equal(tensors[name], state[name.removeprefix("average.")]) for name in tensors if "average." in name
    )
    assert not torch.equal(state["10.weight"], finished["10.weight"])
    held_out = data.Split.from_tensors(*worker.images(50, seed=1))
    measured = evaluate.accuracy(model, held_out, mean=worker.MEAN, std=worker.STD)
    assert result.history[-1]["validation_accuracy"] == pytest.approx(measured.top1)


@pytest.mark.parametrize("step", [7, 25])
def test_a_stopped_run_resumes_with_its_average(
    tmp_path: Path, fit: Fit, worker: ModuleType, same: Callable, step: int
) -> None:
    whole, resumed = worker.network(), worker.network()
    expected = fit(whole, ema_decay=0.95)
    left = step

    def stop(event: train.Progress) -> None:
        nonlocal left
        left -= event.kind == "step"
        if left == 0:
            raise StopError

    with pytest.raises(StopError):
        fit(out=tmp_path, ema_decay=0.95, checkpoint_minutes=1e-9, progress=stop)
    result = fit(resumed, out=tmp_path, ema_decay=0.95, resume=True)
    assert same(resumed, whole)
    assert [r["validation_accuracy"] for r in result.history] == [r["validation_accuracy"] for r in expected.history]
    # A finished run, resumed once more, holds the average too.
    again = worker.network()
    fit(again, out=tmp_path, ema_decay=0.95, resume=True)
    assert same(again, whole)


def test_compile_is_asked_for_and_undone(
    fit: Fit, worker: ModuleType, finished: dict[str, Tensor], same: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []

    def note(function: Callable) -> Callable:
        def run(*args: object) -> object:
            compiled.append(function.__self__)
            return function(*args)

        return run

    monkeypatch.setattr(torch, "compile", note)
    model = worker.network()
    fit(model, compile=True)
    # 11 steps of training and 2 of validation in each of 5 epochs.
    assert compiled == [model] * (5 * 13)
    assert same(model, finished)
    assert model._compiled_call_impl is None


def test_float16_scales_the_loss_and_keeps_the_scale(
    tmp_path: Path, fit: Fit, worker: ModuleType, same: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The scaler works on a CPU as well; that float16 is slow there is why it is refused.
    monkeypatch.setattr("clusterprune.train.prepare.resolve_precision", lambda *_: torch.float16)
    whole, resumed = worker.network(), worker.network()
    seen: set[torch.dtype] = set()
    handle = whole[0].register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
    result = fit(whole, clip_norm=1.0, out=tmp_path / "whole")
    handle.remove()
    assert torch.float16 in seen
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    left = 20

    def stop(event: train.Progress) -> None:
        nonlocal left
        left -= event.kind == "step"
        if left == 0:
            raise StopError

    with pytest.raises(StopError):
        fit(out=tmp_path / "stopped", clip_norm=1.0, checkpoint_minutes=1e-9, progress=stop)
    tensors, _ = checkpoint.read(tmp_path / "stopped" / checkpoint.FILE_NAME)
    assert tensors["scaler._growth_tracker"] == 19
    assert tensors["scaler.scale"] == 2.0**16
    fit(resumed, clip_norm=1.0, out=tmp_path / "stopped", resume=True)
    assert same(resumed, whole)
    ends = [checkpoint.read(tmp_path / name / checkpoint.FILE_NAME)[0] for name in ("whole", "stopped")]
    for name in ("scaler.scale", "scaler._growth_tracker"):
        assert ends[0][name] == ends[1][name]

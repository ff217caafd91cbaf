from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from clusterprune import train
from clusterprune.errors import ArgumentError, TrainingError
from clusterprune.train import checkpoint

Fit = Callable[..., train.TrainResult]


class StopError(Exception):
    """Stands for anything that ends a run."""


class Nudge:
    """Moves the last layer's bias towards its own running mean, with some noise: a state and draws to lose."""

    def __init__(self) -> None:
        self.mean = torch.zeros(5)
        self.seen: list[tuple[int, int, bool, bool]] = []

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int) -> None:
        self.seen.append((epoch, epochs, model.training, torch.is_grad_enabled()))
        bias = model.get_parameter("10.bias")
        self.mean = 0.5 * self.mean + 0.5 * bias.detach().clone()
        bias.copy_(self.mean + 0.01 * torch.randn(5))

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.mean = tensors["mean"].clone()


def test_it_is_called_after_each_epoch_and_before_validation(fit: Fit, worker: ModuleType) -> None:
    class Blind(Nudge):
        def after_epoch(self, model: nn.Module, epoch: int, epochs: int) -> None:
            super().after_epoch(model, epoch, epochs)
            model.get_parameter("10.weight").zero_()
            model.get_parameter("10.bias").copy_(torch.tensor([0.0, 0, 1, 0, 0]))

    hook, model = Blind(), worker.network()
    _, labels = worker.images(50, seed=1)
    result = fit(model, hook=hook)
    assert hook.seen == [(epoch, 5, True, False) for epoch in range(1, 6)]
    share = 100 * (labels == 2).float().mean().item()
    assert [record["validation_accuracy"] for record in result.history] == pytest.approx([share] * 5)
    assert not model.get_parameter("10.weight").any()


@pytest.mark.parametrize("step", [3, 12, 30, 55])
def test_a_stopped_run_with_a_hook_resumes_bit_equal(
    tmp_path: Path, fit: Fit, worker: ModuleType, same: Callable, step: int
) -> None:
    whole, hook = worker.network(), Nudge()
    fit(whole, hook=hook)
    left = step

    def stop(event: train.Progress) -> None:
        nonlocal left
        left -= event.kind == "step"
        if left == 0:
            raise StopError

    with pytest.raises(StopError):
        fit(out=tmp_path, hook=Nudge(), checkpoint_minutes=1e-9, progress=stop)
    resumed, other = worker.network(), Nudge()
    fit(resumed, out=tmp_path, hook=other, resume=True)
    assert same(resumed, whole)
    assert torch.equal(other.mean, hook.mean)
    tensors, _ = checkpoint.read(tmp_path / checkpoint.FILE_NAME)
    assert torch.equal(tensors["hook.mean"], hook.mean)


def test_a_weight_that_it_spoils_stops_the_run(fit: Fit, worker: ModuleType) -> None:
    class Spoil(Nudge):
        def after_epoch(self, model: nn.Module, epoch: int, epochs: int) -> None:
            if epoch == 2:
                model.get_parameter("10.bias")[0] = float("nan")

    model = worker.network()
    with pytest.raises(TrainingError, match="diverged in epoch 2: Spoil left a weight that is not finite"):
        fit(model, hook=Spoil())
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_resume_with_another_loss_or_hook_is_refused(tmp_path: Path, fit: Fit, worker: ModuleType) -> None:
    fit(out=tmp_path, epochs=2)
    with pytest.raises(ArgumentError, match=r"loss='TaskLoss\(.*smoothing=0.1\)'.*has 'TaskLoss"):
        fit(out=tmp_path, epochs=2, resume=True, loss=train.TaskLoss(worker.task(), 0.1))
    with pytest.raises(ArgumentError, match=r"Guidance\(teacher=<Sequential [0-9a-f]{16}>, .*beta=1.0"):
        fit(out=tmp_path, epochs=2, resume=True, loss=train.Guidance(worker.network(), worker.task()))
    with pytest.raises(ArgumentError, match=r"hook='Nudge' \(the checkpoint has None\)"):
        fit(out=tmp_path, epochs=2, resume=True, hook=Nudge())
    # A loss that says the same is the same.
    fit(out=tmp_path, epochs=2, resume=True, loss=train.TaskLoss(worker.task()))


def test_a_function_is_known_by_its_name_not_its_place(tmp_path: Path, fit: Fit, worker: ModuleType) -> None:
    def halved() -> train.Loss:
        def half(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            loss, logits = train.TaskLoss(worker.task())(model, images, labels)
            return loss / 2, logits

        return half

    result = fit(out=tmp_path, epochs=2, loss=halved())
    assert fit(out=tmp_path, epochs=2, loss=halved(), resume=True) == result
    assert result.history[0]["loss"] < 0.6 * fit(epochs=2).history[0]["loss"]


def test_a_checkpoint_from_before_these_settings_can_be_resumed(tmp_path: Path, fit: Fit) -> None:
    result = fit(out=tmp_path, epochs=2)
    path = tmp_path / checkpoint.FILE_NAME
    tensors, header = checkpoint.read(path)
    new = {"hook", "ema_decay", "compile"}
    header = header.model_copy(
        update={
            "config": {name: value for name, value in header.config.items() if name not in new},
            "environment": {name: value for name, value in header.environment.items() if name != "processes"},
        }
    )
    checkpoint.write(path, tensors, header)
    events: list[train.Progress] = []
    assert fit(out=tmp_path, epochs=2, resume=True, progress=events.append) == result
    assert len(events) == 1


def test_settings_that_would_have_no_effect_are_refused(fit: Fit, worker: ModuleType) -> None:
    with pytest.raises(ArgumentError, match=r"label_smoothing=0\.1 belongs to the loss"):
        fit(label_smoothing=0.1, loss=train.TaskLoss(worker.task()))
    with pytest.raises(ArgumentError, match=r"ema_decay=0\.9 would average away"):
        fit(ema_decay=0.9, hook=Nudge())

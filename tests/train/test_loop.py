import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from clusterprune import data, evaluate, train
from clusterprune.data.augment import augment
from clusterprune.errors import ArgumentError, ModelError
from clusterprune.train import loop
from clusterprune.train.prepare import Run

Fit = Callable[..., train.TrainResult]


def test_it_learns_and_reports(fit: Fit, worker: ModuleType) -> None:
    model = worker.network()
    events: list[train.Progress] = []
    result = fit(model, precision="float32", progress=events.append)  # what it is measured in again below
    assert [record["epoch"] for record in result.history] == [1, 2, 3, 4, 5]
    last = result.history[-1]
    assert last["validation_accuracy"] > 60
    held_out = data.Split.from_tensors(*worker.images(50, seed=1))
    measured = evaluate.accuracy(model, held_out, mean=worker.MEAN, std=worker.STD)
    assert last["validation_accuracy"] == pytest.approx(measured.top1)
    assert last["loss"] < result.history[0]["loss"]
    assert result.epochs == 5
    assert result.seconds == sum(record["seconds"] for record in result.history)
    # 330 images in batches of 32 are 11 steps, and 55 in all.
    steps = [event for event in events if event.kind == "step"]
    assert [(event.epoch, event.step) for event in steps] == [
        (epoch, step) for epoch in range(1, 6) for step in range(1, 12)
    ]
    rates = [train.learning_rate(worker.CONFIG, taken / 55) for taken in range(55)]
    assert [event.learning_rate for event in steps] == pytest.approx(rates)
    assert [event.record for event in events if event.kind == "epoch"] == result.history
    assert [record["learning_rate"] for record in result.history] == pytest.approx(rates[10::11])


def test_accuracy_and_loss_are_those_of_the_model(fit: Fit, worker: ModuleType) -> None:
    # A vanishing rate, no augmentation and no dropout: training measures the model it was given.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    pixels, labels = worker.images()
    logits = model(data.normalize(pixels, worker.MEAN, worker.STD))
    right = 100 * (logits.argmax(1) == labels).float().mean().item()
    settings = {"lr": 1e-30, "augment": "none", "precision": "float32"}
    result = fit(model, epochs=1, warmup_epochs=0, validation=(pixels, labels), **settings)
    record = result.history[0]
    assert record["loss"] == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert record["train_accuracy"] == pytest.approx(right)
    assert record["validation_accuracy"] == pytest.approx(right)


def test_one_step_by_hand(fit: Fit, worker: ModuleType) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    pixels, labels = worker.images()
    weight = model.get_parameter("1.weight")
    before = weight.detach().clone()
    logits = model(data.normalize(pixels, worker.MEAN, worker.STD))
    functional.cross_entropy(logits, labels, label_smoothing=0.1).backward()
    assert weight.grad is not None
    # Nesterov's first step is (1 + momentum) times the gradient, decay included.
    expected = before - 0.2 * 1.9 * (weight.grad + 0.01 * before)
    settings = {"lr": 0.2, "weight_decay": 0.01, "label_smoothing": 0.1, "augment": "none", "precision": "float32"}
    fit(model, epochs=1, warmup_epochs=0, batch_size=330, **settings)
    torch.testing.assert_close(weight.detach(), expected)


def test_clip_norm_bounds_the_step(fit: Fit) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    settings = {"momentum": 0, "nesterov": False, "weight_decay": 0, "batch_size": 330}
    fit(model, epochs=1, warmup_epochs=0, lr=0.5, clip_norm=0.01, **settings)
    after = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert (after - before).norm().item() == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_seeds(fit: Fit, worker: ModuleType, finished: dict[str, Tensor], same: Callable) -> None:
    model, other = worker.network(), worker.network()
    torch.manual_seed(123)
    fit(model)
    assert same(model, finished)
    fit(other, seed=1)
    assert not same(other, finished)


def test_a_stream_gives_the_same_result(
    fit: Fit, worker: ModuleType, finished: dict[str, Tensor], same: Callable
) -> None:
    model = worker.network()
    fit(model, train=data.Split.from_tensors(*worker.images()), memory_limit_gib=0)
    assert same(model, finished)


def test_random_windows_are_those_that_augment_draws(
    fit: Fit, worker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn for a whole epoch at once, also from its middle on, and wherever the images come from."""
    seen: list[tuple[Run, Tensor]] = []
    inputs = Run.inputs

    def note(run: Run, pixels: Tensor) -> Tensor:
        seen.append((run, pixels))
        return inputs(run, pixels)

    def batches(**given: Any) -> list[Tensor]:
        seen.clear()
        fit(**{"epochs": 1, "warmup_epochs": 0, "augment": "resized_crop_flip", "validation": None, **given})
        return [pixels for _, pixels in seen if len(pixels) > 1]  # the first is a check of the model

    monkeypatch.setattr(Run, "inputs", note)
    whole = batches()
    run, (images, _) = seen[0][0], worker.images()
    order = torch.randperm(330, generator=run.generator(0)).split(32)
    expected = [augment(images[mine], "resized_crop_flip", run.generator(0, step)) for step, mine in enumerate(order)]
    streamed = batches(train=data.Split.from_tensors(*worker.images()), memory_limit_gib=0)

    def stop(event: train.Progress) -> None:
        if event.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batches(out=tmp_path, checkpoint_minutes=1e-9, progress=stop)
    rest = batches(out=tmp_path, resume=True)
    for found, wanted in [(whole, expected), (streamed, expected), (rest, expected[-len(rest) :])]:
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert len(rest) == 7


def test_the_caller_finds_things_as_they_were(fit: Fit, worker: ModuleType) -> None:
    model = worker.network().eval()
    model[1].train()
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    fit(model, epochs=2)
    assert torch.equal(torch.rand(2), expected)
    assert [module.training for module in model] == [index == 1 for index in range(11)]
    assert all(parameter.grad is None for parameter in model.parameters())
    save(dict(nn.Sequential(model[0], model[1]).state_dict()))  # refuses other memory formats
    assert not torch.backends.cudnn.deterministic


def test_frozen_parameters_stay(fit: Fit, worker: ModuleType) -> None:
    model = worker.network()
    model[0].weight.requires_grad_(False)
    frozen, trained = model[0].weight.clone(), model[10].weight.clone()
    fit(model, epochs=2)
    assert torch.equal(model[0].weight, frozen)
    assert not torch.equal(model[10].weight, trained)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ArgumentError, match="no parameter to train"):
        fit(model)


def test_bfloat16_keeps_the_weights_in_float32(fit: Fit, worker: ModuleType) -> None:
    model = worker.network()
    seen: set[torch.dtype] = set()
    model[0].register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
    result = fit(model, epochs=2, precision="bfloat16")
    assert torch.bfloat16 in seen
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert math.isfinite(result.history[-1]["loss"])


@pytest.mark.parametrize(("count", "steps"), [(64, 2), (65, 2), (66, 3), (1, 1), (32, 1)])
def test_a_last_batch_of_one_image_is_left_out(fit: Fit, worker: ModuleType, count: int, steps: int) -> None:
    events: list[train.Progress] = []
    fit(train=worker.images(count), epochs=2, progress=events.append)
    assert [event.step for event in events if event.kind == "epoch"] == [steps, steps]


def test_losses_may_be_read_late(
    fit: Fit,
    worker: ModuleType,
    finished: dict[str, Tensor],
    same: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As on an accelerator, where every read would wait for the device.
    monkeypatch.setattr(loop, "_steps_between_reads", lambda _device: 4)
    model = worker.network()
    events: list[train.Progress] = []
    late = fit(model, progress=events.append)
    assert same(model, finished)
    assert [event.step for event in events if event.epoch == 1] == [4, 8, 11, 11]
    monkeypatch.undo()
    for a, b in zip(late.history, fit().history, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_without_validation_there_is_no_validation_accuracy(fit: Fit) -> None:
    assert fit(validation=None, epochs=2).history[1]["validation_accuracy"] is None


def test_one_channel_images_fit_a_mean_of_three(fit: Fit) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    assert fit(model, epochs=2, mean=(0.5,) * 3, std=(0.2,) * 3).epochs == 2


def test_what_does_not_fit_is_found_before_the_first_step(fit: Fit, worker: ModuleType) -> None:
    pixels, labels = worker.images()
    with pytest.raises(ArgumentError, match=r"train has labels up to 4, .*3 outputs; .*num_classes=5"):
        fit(worker.network(classes=3))
    with pytest.raises(ArgumentError, match="validation has labels up to 9"):
        fit(validation=(pixels, labels + 5))
    with pytest.raises(ModelError, match=r"images of shape \(1, 12, 12\)"):
        fit(train=(functional.pad(pixels, (2, 2, 2, 2)), labels))
    with pytest.raises(ModelError, match="must return logits"):
        fit(nn.Conv2d(1, 5, 3))
    with pytest.raises(ArgumentError, match="above 0"):
        fit(std=(0,))
    with pytest.raises(ArgumentError, match="one value per channel"):
        fit(mean=(0.5, 0.5, 0.5))
    with pytest.raises(ArgumentError, match="3 channels"):
        fit(train=(pixels.repeat(1, 3, 1, 1), labels))

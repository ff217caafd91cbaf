"""Recorded steps, with a recorder that remembers what it is to do and does it again: all but the card itself."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clusterprune import train
from clusterprune.train import Guidance, Progress, captured

Fit = Callable[..., train.TrainResult]


class Again:
    """Replays by running the step again; counts what it is asked for."""

    def __init__(self, waits: list[str] | None = None, refusal: str | None = None) -> None:
        self.waits, self.refusal = waits or [], refusal
        self.rehearsed = self.recorded = self.replayed = 0

    def rehearse(self, step: Callable[[], None]) -> list[str]:
        self.rehearsed += 1
        step()
        return self.waits

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        if self.refusal is not None:
            raise RuntimeError(self.refusal)
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            step()

        return replay


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Again]:
    """Have `fit` record with an `Again`, however short the run is."""

    def on(**given: Any) -> Again:
        recorder = Again(**given)
        monkeypatch.setattr(captured, "recorder_for", lambda _: recorder)
        monkeypatch.setattr(captured, "WORTH", 0)
        monkeypatch.setattr(captured, "_said", set())
        return recorder

    return on


def states(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_close(left: nn.Module, right: nn.Module) -> None:
    for name, value in left.state_dict().items():
        torch.testing.assert_close(value, right.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        {"augment": "crop_flip", "schedule": "onecycle", "warmup_epochs": 0},
        {"augment": "resized_crop_flip", "label_smoothing": 0.1, "clip_norm": 0.5},
        {"augment": "none", "ema_decay": 0.9, "weight_decay": 0.0, "momentum": 0.0, "nesterov": False},
    ],
)
def test_recorded_steps_do_what_steps_one_by_one_do(
    fit: Fit, worker: Any, record: Callable[..., Again], settings: dict[str, Any]
) -> None:
    plain, recorded = worker.network(), worker.network()
    expected = fit(plain, **settings)
    recorder = record()
    result = fit(recorded, **settings)
    assert_close(recorded, plain)
    for mine, theirs in zip(result.history, expected.history, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["learning_rate"] == theirs["learning_rate"]
        assert mine["train_accuracy"] == pytest.approx(theirs["train_accuracy"], abs=1)
    full = worker.images()[0].shape[0] // worker.CONFIG.batch_size
    assert recorder.recorded == 1
    assert recorder.rehearsed + recorder.replayed == full * worker.CONFIG.epochs


def test_a_teacher_is_part_of_what_is_recorded(fit: Fit, worker: Any, record: Callable[..., Again]) -> None:
    def trained() -> nn.Module:
        model = worker.network()
        fit(model, loss=Guidance(worker.network(), worker.task(), alpha=0.5, beta=0.0))
        return model

    plain = trained()
    recorder = record()
    assert_close(trained(), plain)
    assert recorder.replayed


def test_a_run_that_was_stopped_inside_an_epoch_ends_with_the_same_bits(
    tmp_path: Path, fit: Fit, worker: Any, record: Callable[..., Again], same: Callable[..., bool]
) -> None:
    record()
    undisturbed, stopped, resumed = worker.network(), worker.network(), worker.network()
    fit(undisturbed)
    steps = 0

    def stop(event: Progress) -> None:
        nonlocal steps
        steps += event.kind == "step"
        if steps == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(stopped, out=tmp_path, progress=stop, checkpoint_minutes=1e-9)
    assert not same(undisturbed, stopped)
    fit(resumed, out=tmp_path, resume=True, checkpoint_minutes=1e-9)
    assert same(undisturbed, resumed)


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [
        ({"waits": ["called a synchronizing operation"]}, "waits for the device .called a synchronizing"),
        ({"refusal": "operation not permitted when stream is capturing\nmore"}, "not permitted when stream is captur"),
    ],
)
def test_what_cannot_be_recorded_is_taken_step_by_step_and_said_once(
    fit: Fit, worker: Any, record: Callable[..., Again], recorder: dict[str, Any], reason: str
) -> None:
    plain, other = worker.network(), worker.network()
    fit(plain)
    asked = record(**recorder)
    notes: list[str] = []
    for _ in range(2):
        fit(other := worker.network(), progress=lambda event: notes.append(event.message))
    assert_close(other, plain)
    assert asked.rehearsed == 2 * captured.REHEARSALS
    assert not asked.replayed
    said = [note for note in notes if note]
    assert len(said) == 1
    assert "one by one" in said[0]
    assert re.search(reason, said[0])


def test_weights_that_moved_are_recorded_anew(fit: Fit, worker: Any, record: Callable[..., Again]) -> None:
    class Moves:
        """Puts every weight elsewhere, as a hook should not but may."""

        def after_epoch(self, model: nn.Module, epoch: int, epochs: int) -> None:
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()

        def tensors(self) -> dict[str, Tensor]:
            return {}

        def restore(self, tensors: object) -> None: ...

    recorder = record()
    fit(hook=Moves())
    assert recorder.recorded == worker.CONFIG.epochs


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"memory_limit_gib": 0.0}, "raise memory_limit_gib"), ({"batch_size": 5000}, "no full batch")],
)
def test_runs_that_are_not_recorded_say_why(
    fit: Fit, record: Callable[..., Again], settings: dict[str, Any], reason: str
) -> None:
    recorder = record()
    notes: list[str] = []
    fit(progress=lambda event: notes.append(event.message), **settings)
    assert not recorder.rehearsed
    assert sum(reason in note for note in notes) == 1


def test_nothing_is_recorded_where_that_was_not_asked_for(fit: Fit, record: Callable[..., Again]) -> None:
    recorder = record()
    fit(capture=False)
    assert not recorder.rehearsed


def test_compiling_by_itself_needs_a_long_run_on_a_card(fit: Fit, worker: Any) -> None:
    model = worker.network()
    compiled: list[bool] = []
    fit(model, compile="auto", progress=lambda _: compiled.append(model._compiled_call_impl is not None))
    assert not any(compiled)

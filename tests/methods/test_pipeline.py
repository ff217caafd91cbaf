"""Every method through the one call, on handwritten digits: it compresses, and a stop changes nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_task import FAST, make_task
from torch import nn

from clusterprune import evaluate
from clusterprune.errors import ArgumentError, OutputError
from clusterprune.methods.pipeline import Outcome, Task, compress
from clusterprune.methods.settings import METHODS, TRAINED
from clusterprune.plan import Plan
from clusterprune.train import Progress

ICP = {"keep_macs": 0.6, "steps": 2, "epochs_between": 1, "samples": 64, "min_samples": 2, "alpha": 0.0, "beta": 0.0}
ACP = {"keep_macs": 0.6, "fitness": "merge", "samples": 64, "min_samples": 2, "particles": 2, "cycles": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    **{method: {"keep_macs": 0.6, "images": 64} for method in METHODS},
    "icp": ICP,
    "acp": ACP,
    "cp": {"keep_macs": 0.6},
    "sfp": {"keep_macs": 0.6},
}


class StoppedError(Exception):
    """Stands for a kill: nothing of ours catches it."""


@pytest.fixture(scope="module")
def task() -> Task:
    torch.set_num_threads(1)
    return make_task()


def run(task: Task, method: str, out: Path | None = None, stop_at: int = 0, **more: Any) -> Outcome:
    """Compress; end with an error in the step of the trainings with this number, counted from 1."""
    left = stop_at

    def watch(phase: str, event: Progress) -> None:
        nonlocal left
        left -= event.kind == "step"
        if event.kind == "step" and left == 0:
            raise StoppedError

    settings = SETTINGS[method] | more.pop("settings", {})
    return compress(task, method, settings, **{"training": FAST, "out": out, "watch": watch, **more})


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one: nn.Module, other: nn.Module) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_every_method_meets_the_budget_and_leaves_the_model_alone(task: Task, method: str) -> None:
    before = weights(task.model)
    made = run(task, method)
    assert 0.4 < evaluate.macs(made.model, task.example) / evaluate.macs(task.model, task.example) <= 0.6
    assert not made.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(task.model).items())
    accuracy = evaluate.accuracy(made.model, task.validation, mean=task.mean, std=task.std, topk=(1,)).top1
    # ACP begins anew from random weights, and few epochs of few images do not bring it far.
    assert accuracy > (11 if method == "acp" else 20)
    if method == "icp":
        assert [step["epochs"] for step in made.record["steps"]] == [0, 1, 2]
    else:
        assert made.record["epochs"] >= 2
        assert made.record["accuracy"] is not None
    assert (made.plan is None) == (method in ("icp", "cp", "sfp"))
    assert (made.cut is None) == (method in ("cp", "sfp"))
    if made.cut is not None:
        assert evaluate.params(made.cut) == evaluate.params(made.model)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "method", ["oneshot", "icp", "cp", *(pytest.param(m, marks=slow) for m in ("acp", "sfp", "taylor"))]
)
def test_a_stop_in_the_last_training_changes_nothing(task: Task, method: str, tmp_path: Path) -> None:
    whole = run(task, method, tmp_path / "whole")
    with pytest.raises(StoppedError):
        run(task, method, tmp_path / "stopped", stop_at=6)
    went_on = run(task, method, tmp_path / "stopped")
    assert_same(went_on.model, whole.model)
    assert went_on.plan == whole.plan
    if whole.plan is not None:
        assert Plan.load(tmp_path / "stopped" / "plan") == whole.plan


def test_a_stop_between_cut_and_training_changes_nothing(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(task, "oneshot", tmp_path / "whole")

    def stop(*_: object, **__: object) -> None:
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr("clusterprune.train.fit", stop)
        with pytest.raises(StoppedError):
            run(task, "oneshot", tmp_path / "stopped")
    assert (tmp_path / "stopped" / "plan").exists()
    # The cut is not made again: what it would be made with may be gone.
    with monkeypatch.context() as patch:
        patch.setattr("clusterprune.methods.pipeline.oneshot", stop)
        went_on = run(task, "oneshot", tmp_path / "stopped")
    assert_same(went_on.model, whole.model)
    assert went_on.record["accuracy_cut"] == whole.record["accuracy_cut"]


def test_the_same_seed_gives_the_same_and_another_another(task: Task) -> None:
    one, same, other = (run(task, "random", training=None, seed=seed) for seed in (0, 0, 1))
    assert_same(one.model, same.model)
    assert one.plan == same.plan
    assert one.plan != other.plan


def test_methods_that_cut_once_need_no_training(task: Task, tmp_path: Path) -> None:
    made = run(task, "l1", tmp_path, training=None)
    assert made.record.keys() == {"accuracy_cut"}
    assert not (tmp_path / "training").exists()


@pytest.mark.parametrize("method", ["cp", "sfp"])
def test_from_scratch_the_weights_are_not_used(task: Task, method: str) -> None:
    other = replace(task, model=make_other(task))
    made = [run(each, method, settings={"scratch": True}) for each in (task, other)]
    assert_same(made[0].model, made[1].model)


def make_other(task: Task) -> nn.Module:
    """Return the network with other weights."""
    torch.manual_seed(9)
    return task.factory().eval()


def test_inner_layers_alone_are_cut_when_asked(task: Task) -> None:
    made = run(task, "l1", training=None, settings={"layers": "inner"})
    assert made.plan is not None
    assert {merge.group for merge in made.plan.merges} == {"first.0", "last.0"}


@pytest.mark.parametrize("method", TRAINED)
def test_methods_that_train_need_a_training(task: Task, method: str) -> None:
    with pytest.raises(ArgumentError, match=f"method='{method}' trains, but training=None; give a TrainConfig"):
        run(task, method, training=None)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("magic", {}, "method='magic' is not known; choose from oneshot, icp"),
        ("l1", {"eps": 0.1}, "eps=0.1 is no setting of method='l1', which has ignore, images, keep_latency"),
        ("icp", {"steps": 0}, "steps must be a whole number of at least 1"),
        ("acp", {"particles": "many"}, "particles='many' is not accepted"),
    ],
)
def test_bad_settings_are_named_before_any_work(task: Task, method: str, settings: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        compress(task, method, {"keep_macs": 0.5, **settings}, training=FAST)


def test_acp_needs_images_to_choose_by(task: Task) -> None:
    with pytest.raises(ArgumentError, match="hold some out of the training set"):
        run(replace(task, validation=None), "acp")


def test_acp_without_cycles_goes_on_to_the_same_network(task: Task, tmp_path: Path) -> None:
    settings = {"cycles": 0, "fitness": "train"}
    made = run(task, "acp", tmp_path, settings=settings)
    assert (made.record["fitness"], made.record["evaluations"]) == (None, 0)
    assert made.record["best"] == made.record["start"]
    assert_same(run(task, "acp", tmp_path, settings=settings).model, made.model)


def test_cp_as_published_trains_from_random_weights_without_batch_norms(task: Task) -> None:
    made = run(task, "cp", settings={"preset": "published"})
    assert_same(made.model, run(task, "cp", settings={"batch_norm": "removed", "scratch": True}).model)
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) for model in (made.model, task.model)]
    assert norms[0] < norms[1]


@pytest.mark.parametrize("inherits", [False, True])
def test_of_acp_the_last_training_inherits_by_a_setting_of_its_own(
    task: Task, monkeypatch: pytest.MonkeyPatch, inherits: bool
) -> None:
    asked = []

    def retrain(*_: Any, **more: Any) -> None:
        asked.append(more["inherit"])
        raise StoppedError

    monkeypatch.setattr("clusterprune.methods.acp.retrain", retrain)
    with pytest.raises(StoppedError):
        run(task, "acp", settings={"candidates_inherit": not inherits, "retraining_inherits": inherits})
    assert asked == [inherits]


def test_a_folder_that_cannot_be_made_is_named(task: Task, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the folder"):
        run(task, "l1", tmp_path / "file" / "run")

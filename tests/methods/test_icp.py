"""ICP on handwritten digits: what each step does, what it leaves on disk, and that a kill changes nothing."""

import importlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import clusterprune as cp
from clusterprune import data, evaluate, train
from clusterprune.clustering import DBSCAN
from clusterprune.data import Split
from clusterprune.errors import ArgumentError, BudgetError, OutputError, WeightsError
from clusterprune.files.locking import locked
from clusterprune.methods.criteria import scores
from clusterprune.methods.icp import ICP, TRAINING, ICPResult, icp
from clusterprune.models import ResNet
from clusterprune.plan import Plan
from clusterprune.tasks import Classification
from clusterprune.train import Progress, TrainConfig

module = importlib.import_module("clusterprune.methods.icp")
MEAN, STD = (0.3,), (0.4,)
FAST = TrainConfig(batch_size=64, lr=0.05, augment="none", precision="float32", device="cpu")
QUICK = {"samples": 32, "min_samples": 2, "epochs_between": 1, "final_epochs": 2, "stages": ("layer1", "layer2")}


class Small(ResNet):
    """A residual network of three blocks that reads grey images."""

    def __init__(self) -> None:
        super().__init__(1)
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)


def splits() -> tuple[Split, Split]:
    """Return 256 images to train on, and 64 held out."""
    return data.holdout(data.sample(data.load("digits", image_size=8).train, 320, 0), 0.2)


def teacher(images: Split) -> nn.Module:
    torch.manual_seed(0)
    model = Small()
    train.fit(model, Classification(images, mean=MEAN, std=STD), FAST.model_copy(update={"epochs": 4}))
    return model.eval()


@pytest.fixture(scope="module")
def digits() -> tuple[Split, Split]:
    return splits()


@pytest.fixture(scope="module")
def trained(digits: tuple[Split, Split]) -> nn.Module:
    return teacher(digits[0])


@pytest.fixture
def run(trained: nn.Module, digits: tuple[Split, Split]) -> Callable[..., ICPResult]:
    """`icp` with small settings where none are given."""

    def call(**given: Any) -> ICPResult:
        config = given.pop("config", None) or ICP(**{"keep_macs": 0.5, **QUICK})
        arguments = {"validation": digits[1], "training": FAST, "mean": MEAN, "std": STD}
        return icp(trained, digits[0], config=config, **{**arguments, **given})

    return call


def same(left: nn.Module, right: nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_target_is_spread_over_the_steps_and_met(run: Callable[..., ICPResult], trained: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    result = run()
    assert [(step.step, step.epochs) for step in result.steps] == [(0, 0), (1, 1), (2, 1), (3, 2)]
    macs = [step.macs for step in result.steps]
    share = 0.5 ** (1 / 3)
    assert share - 0.05 < macs[1] / macs[0] <= share
    assert macs[0] > macs[1] > macs[2] > macs[3]
    assert 0.45 < macs[3] / macs[0] <= 0.5
    assert macs[3] == evaluate.macs(result.model, torch.zeros(1, 1, 8, 8))
    assert result.steps[3].params == evaluate.params(result.model)
    for step in result.steps:
        assert step.accuracy is not None
        assert step.accuracy_cut is not None
        assert 0 <= step.accuracy_cut <= 100
    assert result.steps[3].accuracy > 30
    assert not result.model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())


@pytest.mark.parametrize("by", ["clusters", "oneshot"])
def test_says_how_far_the_choice_of_channels_is(run: Callable[..., ICPResult], by: Any) -> None:
    told: list[tuple[str, int, int]] = []
    run(config=ICP(**{**QUICK, "steps": 2}, keep_macs=0.5, by=by), report=lambda *event: told.append(event))
    for number in (1, 2):
        mine = [(done, total) for phase, done, total in told if phase.startswith(f"cut {number} of 2: ")]
        assert any(done == total > 0 for done, total in mine)
    assert all(0 <= done <= total for _, done, total in told)


def test_cuts_that_go_by_all_that_one_shot_knows(run: Callable[..., ICPResult]) -> None:
    config = ICP(**{**QUICK, "steps": 2}, keep_macs=0.5, by="oneshot", layers="all")
    result = run(config=config)
    macs = [step.macs / result.steps[0].macs for step in result.steps]
    assert macs[1:] == pytest.approx([0.5**0.5, 0.5], rel=0.02)
    with pytest.raises(ArgumentError, match="by must be 'clusters', or 'oneshot' with keep_macs"):
        ICP(eps=0.02, by="oneshot")
    with pytest.raises(ArgumentError, match="layers must be 'inner' or 'all'"):
        ICP(eps=0.02, layers="some")  # type: ignore[arg-type]


def test_a_cut_keeps_clusters_and_noise_and_of_the_filters_the_largest(
    run: Callable[..., ICPResult], trained: nn.Module, digits: tuple[Split, Split], tmp_path: Path
) -> None:
    run(config=ICP(eps=0.1, steps=1, **QUICK), out=tmp_path)
    plan = Plan.load(tmp_path / "step-1" / "cut" / "plan")
    images = data.normalize(data.sample(digits[0], 32, 0).load()[0], MEAN, STD)
    maps: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, made, name=name: maps.update({name: made.mean(0).flatten(1)}))
        for name, layer in trained.named_modules()
        if name.endswith(".conv1")
    ]
    with torch.no_grad():
        trained(images)
    for hook in hooks:
        hook.remove()
    norms = scores(cp.trace(trained, images[:1]), "l1")
    assert plan.merges
    for merge in plan.merges:
        clusters = DBSCAN(eps=0.1, min_samples=2).fit(distances=cosine(maps[merge.group].double()))
        assert len(merge.kept) == clusters.as_partition().labels.max() + 1
        assert merge.kept.tolist() == sorted(np.argsort(-norms[merge.group].numpy())[: len(merge.kept)].tolist())


def cosine(vectors: Tensor) -> Tensor:
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    return (1 - unit @ unit.T).clamp_min(0).fill_diagonal_(0)


class StopError(Exception):
    """Stands for a kill."""


TWO_STEPS = {**QUICK, "eps": 0.1, "steps": 2, "epochs_between": 2, "carry_momentum": True}  # what can go wrong most


@pytest.fixture(scope="module")
def undisturbed(trained: nn.Module, digits: tuple[Split, Split]) -> ICPResult:
    return icp(trained, *digits, config=ICP(**TWO_STEPS), training=FAST, mean=MEAN, std=STD)


@pytest.mark.parametrize("place", ["first training", "second cut", "last training"])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    run: Callable[..., ICPResult],
    undisturbed: ICPResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    def stop(phase: str, event: Progress) -> None:
        trainings = {"first training": "training after cut 1 of 2", "last training": "training after cut 2 of 2"}
        if event.kind == "epoch" and phase == trainings.get(place):
            raise StopError

    config = ICP(**TWO_STEPS)
    with monkeypatch.context() as patch:
        if place == "second cut":
            patch.setattr(module.compact, "save", failing_after(1))
        with pytest.raises(StopError):
            run(config=config, out=tmp_path, progress=stop)
    for _ in range(2):  # the second time everything is done
        result = run(config=config, out=tmp_path, resume=True)
        assert same(result.model, undisturbed.model)
        assert [(s.macs, s.accuracy_cut, s.accuracy) for s in result.steps] == [
            (s.macs, s.accuracy_cut, s.accuracy) for s in undisturbed.steps
        ]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("icp.json", b'{"eps": 0.1, "st', "is damaged"),
        ("icp.json", b"[1, 2]", "is damaged; choose another folder"),
        ("step-1/cut/momentum.safetensors", b"\xff" * 100, "remove the folder .*cut to have this cut made again"),
        ("step-1/cut/momentum.safetensors", b"", "remove the folder .*cut to have this cut made again"),
    ],
)
def test_damaged_files_of_a_run_are_named(
    run: Callable[..., ICPResult], tmp_path: Path, file: str, content: bytes, said: str
) -> None:
    config = ICP(**TWO_STEPS)
    run(config=config, out=tmp_path / "run")
    damaged = tmp_path / "run" / file
    damaged.write_bytes(content)
    with pytest.raises((OutputError, WeightsError), match=f"(?s){re.escape(str(damaged))} .*{said}"):
        run(config=config, out=tmp_path / "run", resume=True)
    assert damaged.read_bytes() == content  # nothing is thrown away unasked


def test_two_runs_in_one_folder_do_not_write_over_each_other(run: Callable[..., ICPResult], tmp_path: Path) -> None:
    """Another thread stands for another process: the lock belongs to whoever took it."""
    with ThreadPoolExecutor(1) as other, locked(tmp_path / "run"):
        with pytest.raises(OutputError, match=f"is in use: process {os.getpid()} on"):
            other.submit(run, config=ICP(**TWO_STEPS), out=tmp_path / "run").result()
        assert not (tmp_path / "run").exists()
        run(config=ICP(**TWO_STEPS), out=tmp_path / "run")  # the command has taken it, and calls this


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_kill_9_at_random_moments_changes_nothing(
    run: Callable[..., ICPResult], undisturbed: ICPResult, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(5):
        command = [sys.executable, __file__, str(tmp_path)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(random.uniform(0, 3))
        process.kill()
        process.communicate()
    assert same(run(config=ICP(**TWO_STEPS), out=tmp_path, resume=True).model, undisturbed.model)


def test_momentum_may_be_left_behind(run: Callable[..., ICPResult], undisturbed: ICPResult) -> None:
    result = run(config=ICP(**{**TWO_STEPS, "carry_momentum": False}))
    assert [step.macs for step in result.steps][:2] == [step.macs for step in undisturbed.steps][:2]
    assert result.steps[1].accuracy == undisturbed.steps[1].accuracy
    assert not same(result.model, undisturbed.model)


def failing_after(calls: int) -> Callable[..., None]:
    made, save = [], cp.save

    def call(*args: Any) -> None:
        if len(made) == calls:
            raise StopError
        made.append(args)
        save(*args)

    return call


def test_every_step_is_on_disk(run: Callable[..., ICPResult], trained: nn.Module, tmp_path: Path) -> None:
    result = run(out=tmp_path, config=ICP(eps=0.1, **{**QUICK, "steps": 2}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["icp.json", "step-1", "step-2"]
    for number in (1, 2):
        folder = tmp_path / f"step-{number}"
        assert Plan.load(folder / "cut" / "plan").merges
        assert json.loads((folder / "step.json").read_text()) == asdict(result.steps[number])
        assert evaluate.params(cp.load(folder / "cut" / "compact", Small)) == result.steps[number].params
        assert len((folder / "training" / "log.jsonl").read_text().splitlines()) == result.steps[number].epochs
    with pytest.raises(OutputError, match="resume=True"):
        run(out=tmp_path)
    with pytest.raises(ArgumentError, match="another eps"):
        run(out=tmp_path, resume=True, config=ICP(eps=0.2, **{**QUICK, "steps": 2}))
    (tmp_path / "icp.json").write_text("{")
    with pytest.raises(OutputError, match="damaged"):
        run(out=tmp_path, resume=True)


@pytest.mark.parametrize("carry", [False, True])
def test_training_is_guided_by_the_original_and_its_optimizer_starts_anew_unless_momentum_is_to_follow(
    run: Callable[..., ICPResult], trained: nn.Module, monkeypatch: pytest.MonkeyPatch, carry: bool
) -> None:
    calls: list[dict[str, Any]] = []
    fit = train.fit

    def spy(network: nn.Module, *args: Any, **kwargs: Any) -> train.TrainResult:
        calls.append({**kwargs, "config": args[1], "shapes": {name: p.shape for name, p in network.named_parameters()}})
        return fit(network, *args, **kwargs)

    monkeypatch.setattr(module, "fit", spy)
    own = {"carry_momentum": True} if carry else {}
    run(config=ICP(eps=0.1, seed=7, alpha=0.4, beta=2.0, temperature=5.0, **{**QUICK, "steps": 2}, **own))
    assert [call["config"].epochs for call in calls] == [1, 2]
    assert [call["config"].seed for call in calls] == [8, 9]
    for call in calls:
        guidance = call["loss"]
        assert (guidance.temperature, guidance.alpha, guidance.beta) == (5.0, 0.4, 2.0)
        assert same(guidance._teacher.network, trained)
    assert calls[0]["momentum"] == {}
    momentum = calls[1]["momentum"]
    if not carry:
        assert momentum == {}
        return
    assert {name: tensor.shape for name, tensor in momentum.items()} == calls[1]["shapes"]
    assert any(tensor.abs().max() > 0 for tensor in momentum.values())


def test_what_takes_over_loses_less_than_what_drops(run: Callable[..., ICPResult]) -> None:
    accuracy = {}
    for merge, survivors in (("drop", "l1"), ("least_squares", "medoid"), ("refit", "l1")):
        config = ICP(keep_macs=0.4, merge=merge, survivors=survivors, **{**QUICK, "steps": 1, "final_epochs": 1})
        accuracy[merge] = run(config=config).steps[1].accuracy_cut
    assert min(accuracy["least_squares"], accuracy["refit"]) > accuracy["drop"]


def test_without_validation_images_there_are_no_accuracies(run: Callable[..., ICPResult]) -> None:
    result = run(validation=None, config=ICP(eps=0.1, steps=1, **QUICK))
    assert [(step.accuracy_cut, step.accuracy) for step in result.steps] == [(None, None), (None, None)]


def test_a_network_without_inner_convolutions_is_refused(run: Callable[..., ICPResult]) -> None:
    with pytest.raises(ArgumentError, match="no convolution inside a block"):
        run(config=ICP(eps=0.1, ignore=("*",), **QUICK))


def test_where_no_channels_are_alike_nothing_is_cut(run: Callable[..., ICPResult]) -> None:
    result = run(config=ICP(eps=1e-9, **{**QUICK, "min_samples": 5, "steps": 1}))
    assert result.steps[1].macs == result.steps[0].macs
    assert result.steps[1].accuracy_cut == result.steps[0].accuracy


def test_a_target_out_of_reach_is_refused(run: Callable[..., ICPResult]) -> None:
    with pytest.raises(BudgetError, match="keep_macs"):
        run(config=ICP(keep_macs=0.001, **{**QUICK, "steps": 1}))


def test_the_published_settings() -> None:
    cifar, imagenet = ICP(eps=0.015), ICP.imagenet(eps=0.08)
    assert [cifar.epochs(step) for step in (1, 2, 3)] == [10, 10, 200]
    assert not cifar.carry_momentum
    assert not imagenet.carry_momentum
    assert (cifar.temperature, cifar.alpha, cifar.beta, cifar.merge, cifar.survivors) == (20, 0.3, 1, "drop", "l1")
    assert [imagenet.epochs(step) for step in range(1, 6)] == [4, 4, 4, 4, 90]
    assert (imagenet.temperature, imagenet.alpha, imagenet.beta) == (20, 0.5, 50)
    assert ICP.imagenet(keep_macs=0.5, steps=2).steps == 2
    assert (TRAINING.lr, TRAINING.momentum, TRAINING.weight_decay, TRAINING.batch_size) == (0.1, 0.9, 2e-4, 128)
    assert not TRAINING.nesterov


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "either eps or keep_macs"),
        ({"eps": 0.1, "keep_macs": 0.5}, "either eps or keep_macs"),
        ({"eps": -0.1}, "eps"),
        ({"keep_macs": 1.5}, "keep_macs=1.5"),
        ({"eps": 0.1, "steps": 0}, "steps=0"),
        ({"eps": 0.1, "epochs_between": 1.5}, "epochs_between=1.5"),
        ({"eps": 0.1, "final_epochs": True}, "final_epochs=True"),
        ({"eps": 0.1, "samples": 0}, "samples=0"),
        ({"eps": 0.1, "min_samples": 0}, "min_samples"),
        ({"eps": 0.1, "seed": -1}, "seed=-1"),
    ],
)
def test_settings_are_checked(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        ICP(**given)


def test_images_are_checked(run: Callable[..., ICPResult], trained: nn.Module, digits: tuple[Split, Split]) -> None:
    with pytest.raises(ArgumentError, match="samples=1000"):
        run(config=ICP(eps=0.1, **{**QUICK, "samples": 1000}))
    with pytest.raises(ArgumentError, match="train must be a Split"):
        icp(trained, digits[0].load(), config=ICP(eps=0.1), mean=MEAN, std=STD)
    with pytest.raises(ArgumentError, match="validation must be a Split"):
        run(validation=digits[1].load())


def main(folder: str) -> None:
    """Go on with a run until somebody ends it."""
    torch.set_num_threads(1)
    digits = splits()
    model = teacher(digits[0])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    icp(model, *digits, config=ICP(**TWO_STEPS), training=FAST, mean=MEAN, std=STD, out=folder, resume=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

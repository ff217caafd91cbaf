"""ICP on handwritten digits: what each step does, what it leaves on disk, and that a kill changes nothing."""

import importlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import first
from torch import Tensor, nn

import clusterprune as cp
from clusterprune import data, evaluate, train
from clusterprune.clustering import DBSCAN
from clusterprune.data import Split
from clusterprune.errors import ArgumentError, BudgetError, OutputError, WeightsError
from clusterprune.files.locking import locked
from clusterprune.methods import ClusterCut, Network, OneShotCut, Outcome, Work
from clusterprune.methods.icp import ICP
from clusterprune.methods.prune_by import scores
from clusterprune.models import ResNet
from clusterprune.plan import Plan
from clusterprune.tasks import Classification
from clusterprune.train import Progress, TrainConfig

module = importlib.import_module("clusterprune.methods.icp_steps")
MEAN, STD = (0.3,), (0.4,)
FAST = TrainConfig(epochs=2, batch_size=64, lr=0.05, augment="none", precision="float32", device="cpu")
QUICK = {"samples": 32, "min_samples": 2, "epochs_between": 1, "stages": ("layer1", "layer2")}
EXAMPLE = torch.zeros(1, 1, 8, 8)


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


def settings(**given: Any) -> ICP:
    """Return small settings; of those that are no knob, what is not given is as in QUICK."""
    found = {**QUICK, **({} if "eps" in given else {"keep_macs": 0.5}), **given}
    return ICP.read({name: value for name, value in found.items() if value is not None})


def icp(model: nn.Module, splits: tuple[Split, Split | None], config: ICP, **work: Any) -> Outcome:
    return config.run(
        Network(model, EXAMPLE), Classification(*splits, mean=MEAN, std=STD), Work(**{"training": FAST, **work})
    )


@pytest.fixture
def run(trained: nn.Module, digits: tuple[Split, Split]) -> Callable[..., Outcome]:
    """ICP with small settings where none are given."""

    def call(config: ICP | None = None, validation: Split | None = digits[1], **work: Any) -> Outcome:
        return icp(trained, (digits[0], validation), config or settings(), **work)

    return call


def steps_of(made: Outcome) -> list[Any]:
    return [module.StepRecord(**step) for step in made.record["steps"]]


def same(left: nn.Module, right: nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_target_is_spread_over_the_steps_and_met(run: Callable[..., Outcome], trained: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    result = run()
    assert [(step.step, step.epochs) for step in steps_of(result)] == [(0, 0), (1, 1), (2, 1), (3, 2)]
    macs = [step.macs for step in steps_of(result)]
    share = 0.5 ** (1 / 3)
    assert share - 0.05 < macs[1] / macs[0] <= share
    assert macs[0] > macs[1] > macs[2] > macs[3]
    assert 0.45 < macs[3] / macs[0] <= 0.5
    assert macs[3] == evaluate.macs(result.model, torch.zeros(1, 1, 8, 8))
    assert steps_of(result)[3].params == evaluate.params(result.model)
    for step in steps_of(result):
        assert step.accuracy is not None
        assert step.accuracy_cut is not None
        assert 0 <= step.accuracy_cut <= 100
    assert steps_of(result)[3].accuracy > 30
    assert not result.model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())


@pytest.mark.parametrize("by", first(1, [{}, {"cut": "oneshot", "min_samples": None}]))
def test_says_how_far_the_choice_of_channels_is(run: Callable[..., Outcome], by: Any) -> None:
    told: list[tuple[str, int, int]] = []
    run(settings(steps=2, **by), report=lambda *event: told.append(event))
    for number in (1, 2):
        mine = [(done, total) for phase, done, total in told if phase.startswith(f"cut {number} of 2: ")]
        assert any(done == total > 0 for done, total in mine)
    assert all(0 <= done <= total for _, done, total in told)


def test_cuts_that_go_by_all_that_one_shot_knows(run: Callable[..., Outcome]) -> None:
    result = run(settings(steps=2, cut="oneshot", min_samples=None))
    macs = [step.macs / steps_of(result)[0].macs for step in steps_of(result)]
    assert macs[1:] == pytest.approx([0.5**0.5, 0.5], rel=0.02)
    with pytest.raises(ArgumentError, match="give at least one of keep_macs, keep_params, keep_latency"):
        ICP(cut=OneShotCut())
    with pytest.raises(ArgumentError, match="layers must be 'inner' or 'all'"):
        ClusterCut(eps=0.02, layers="some")  # type: ignore[arg-type]


def test_a_cut_keeps_clusters_and_noise_and_of_the_filters_the_largest(
    run: Callable[..., Outcome], trained: nn.Module, digits: tuple[Split, Split], tmp_path: Path
) -> None:
    run(settings(eps=0.1, steps=1), folder=tmp_path)
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


TWO_STEPS = settings(eps=0.1, steps=2, epochs_between=2, carry_momentum=True)  # what can go wrong most


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run; `undisturbed` leaves it there."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture(scope="module")
def undisturbed(trained: nn.Module, digits: tuple[Split, Split], finished: Path) -> Outcome:
    return icp(trained, digits, TWO_STEPS, folder=finished)


@pytest.mark.parametrize("place", first(1, ["second cut", "first training", "last training"]))
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    run: Callable[..., Outcome],
    undisturbed: Outcome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    def stop(phase: str, event: Progress) -> None:
        trainings = {"first training": "training after cut 1 of 2", "last training": "training after cut 2 of 2"}
        if event.kind == "epoch" and phase == trainings.get(place):
            raise StopError

    with monkeypatch.context() as patch:
        if place == "second cut":
            patch.setattr(module.compact, "save", failing_after(1))
        with pytest.raises(StopError):
            run(TWO_STEPS, folder=tmp_path, watch=stop)
    for _ in range(2):  # the second time everything is done
        result = run(TWO_STEPS, folder=tmp_path, resume=True)
        assert same(result.model, undisturbed.model)
        assert [(s.macs, s.accuracy_cut, s.accuracy) for s in steps_of(result)] == [
            (s.macs, s.accuracy_cut, s.accuracy) for s in steps_of(undisturbed)
        ]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("asked.json", b'{"method": "icp", "st', "is damaged"),
        ("asked.json", b"[1, 2]", "is damaged; choose another folder"),
        ("step-1/cut/momentum.safetensors", b"\xff" * 100, "remove the folder .*cut to have this cut made again"),
        ("step-1/cut/momentum.safetensors", b"", "remove the folder .*cut to have this cut made again"),
    ],
)
def test_damaged_files_of_a_run_are_named(
    run: Callable[..., Outcome],
    undisturbed: Outcome,
    finished: Path,
    tmp_path: Path,
    file: str,
    content: bytes,
    said: str,
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    damaged = tmp_path / "run" / file
    damaged.write_bytes(content)
    with pytest.raises((OutputError, WeightsError), match=f"(?s){re.escape(str(damaged))} .*{said}"):
        run(TWO_STEPS, folder=tmp_path / "run", resume=True)
    assert damaged.read_bytes() == content  # nothing is thrown away unasked


def test_two_runs_in_one_folder_do_not_write_over_each_other(run: Callable[..., Outcome], tmp_path: Path) -> None:
    """Another thread stands for another process: the lock belongs to whoever took it."""
    with ThreadPoolExecutor(1) as other, locked(tmp_path / "run"):
        with pytest.raises(OutputError, match=f"is in use: process {os.getpid()} on"):
            other.submit(run, TWO_STEPS, folder=tmp_path / "run").result()
        assert not (tmp_path / "run").exists()
        run(TWO_STEPS, folder=tmp_path / "run")  # the command has taken it, and calls this


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
def test_kill_9_at_random_moments_changes_nothing(
    run: Callable[..., Outcome], undisturbed: Outcome, tmp_path: Path
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
    assert same(run(TWO_STEPS, folder=tmp_path, resume=True).model, undisturbed.model)


def test_momentum_may_be_left_behind(run: Callable[..., Outcome], undisturbed: Outcome) -> None:
    result = run(replace(TWO_STEPS, carry_momentum=False))
    assert [step.macs for step in steps_of(result)][:2] == [step.macs for step in steps_of(undisturbed)][:2]
    assert steps_of(result)[1].accuracy == steps_of(undisturbed)[1].accuracy
    assert not same(result.model, undisturbed.model)


def failing_after(calls: int) -> Callable[..., None]:
    made, save = [], cp.save

    def call(*args: Any) -> None:
        if len(made) == calls:
            raise StopError
        made.append(args)
        save(*args)

    return call


def test_every_step_is_on_disk(run: Callable[..., Outcome], trained: nn.Module, tmp_path: Path) -> None:
    result = run(settings(eps=0.1, steps=2), folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["asked.json", "cut-record", "step-1", "step-2"]
    for number in (1, 2):
        folder = tmp_path / f"step-{number}"
        assert Plan.load(folder / "cut" / "plan").merges
        assert json.loads((folder / "step.json").read_text()) == asdict(steps_of(result)[number])
        assert evaluate.params(cp.load(folder / "cut" / "compact", Small)) == steps_of(result)[number].params
        assert len((folder / "training" / "log.jsonl").read_text().splitlines()) == steps_of(result)[number].epochs
    with pytest.raises(OutputError, match="resume=True"):
        run(settings(eps=0.1, steps=2), folder=tmp_path)
    with pytest.raises(ArgumentError, match=r"other settings, .*eps=0\.1.* than asked for now, .*eps=0\.2"):
        run(settings(eps=0.2, steps=2), folder=tmp_path, resume=True)
    (tmp_path / "asked.json").write_text("{")
    with pytest.raises(OutputError, match="damaged"):
        run(settings(eps=0.1, steps=2), folder=tmp_path, resume=True)


@pytest.mark.parametrize("carry", [False, True])
def test_training_is_guided_by_the_original_and_its_optimizer_starts_anew_unless_momentum_is_to_follow(
    run: Callable[..., Outcome], trained: nn.Module, monkeypatch: pytest.MonkeyPatch, carry: bool
) -> None:
    calls: list[dict[str, Any]] = []
    fit = train.fit

    def spy(network: nn.Module, *args: Any, **kwargs: Any) -> train.TrainResult:
        calls.append({**kwargs, "config": args[1], "shapes": {name: p.shape for name, p in network.named_parameters()}})
        return fit(network, *args, **kwargs)

    monkeypatch.setattr(train, "fit", spy)
    own = {"carry_momentum": True} if carry else {}
    run(settings(eps=0.1, alpha=0.4, beta=2.0, temperature=5.0, steps=2, **own), seed=7)
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


def test_what_takes_over_loses_less_than_what_drops(run: Callable[..., Outcome]) -> None:
    accuracy = {}
    for merge, survivors in (("drop", "l1"), ("least_squares", "medoid")):
        config = settings(keep_macs=0.4, merging=merge, survivors=survivors, steps=1)
        made = run(config, training=FAST.model_copy(update={"epochs": 1}))
        accuracy[merge] = steps_of(made)[1].accuracy_cut
    assert accuracy["least_squares"] > accuracy["drop"]


def test_without_validation_images_there_are_no_accuracies(run: Callable[..., Outcome]) -> None:
    result = run(settings(eps=0.1, steps=1), None)
    assert [(step.accuracy_cut, step.accuracy) for step in steps_of(result)] == [(None, None), (None, None)]


def test_a_network_without_inner_convolutions_is_refused(run: Callable[..., Outcome]) -> None:
    with pytest.raises(ArgumentError, match="no convolution inside a block"):
        run(settings(eps=0.1, ignore=("*",)))


def test_where_no_channels_are_alike_nothing_is_cut(run: Callable[..., Outcome]) -> None:
    result = run(settings(eps=1e-9, min_samples=5, steps=1))
    assert steps_of(result)[1].macs == steps_of(result)[0].macs
    assert steps_of(result)[1].accuracy_cut == steps_of(result)[0].accuracy


def test_a_target_out_of_reach_is_refused(run: Callable[..., Outcome]) -> None:
    with pytest.raises(BudgetError, match="keep_macs"):
        run(settings(keep_macs=0.001, steps=1))


def test_the_published_settings() -> None:
    cifar, imagenet, training = ICP(keep_macs=0.5), ICP.preset("imagenet", eps=0.08), ICP.training
    assert (cifar.steps, cifar.epochs_between, cifar.carry_momentum) == (3, 10, False)
    assert (cifar.temperature, cifar.alpha, cifar.beta) == (20, 0.3, 1)
    assert cifar.cut == ClusterCut(min_samples=5, merging="drop", survivors="l1", layers="inner")
    assert (imagenet.steps, imagenet.epochs_between, imagenet.carry_momentum) == (5, 4, False)
    assert (imagenet.temperature, imagenet.alpha, imagenet.beta) == (20, 0.5, 50)
    assert ICP.preset("imagenet", keep_macs=0.5, steps=2).steps == 2
    assert training is not None
    assert (training.lr, training.momentum, training.weight_decay, training.batch_size) == (0.1, 0.9, 2e-4, 128)
    assert (training.epochs, training.nesterov) == (200, False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "either eps or keep_macs"),
        ({"eps": 0.1, "keep_macs": 0.5}, "either eps or keep_macs"),
        ({"eps": -0.1}, "eps"),
        ({"keep_macs": 1.5}, "keep_macs=1.5"),
        ({"eps": 0.1, "steps": 0}, "steps=0"),
        ({"eps": 0.1, "epochs_between": 1.5}, "epochs_between=1.5"),
        ({"eps": 0.1, "samples": 0}, "samples=0"),
        ({"eps": 0.1, "min_samples": 0}, "min_samples"),
    ],
)
def test_settings_are_checked(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        ICP.read(given)


def test_images_are_checked(run: Callable[..., Outcome], trained: nn.Module, digits: tuple[Split, Split]) -> None:
    with pytest.raises(ArgumentError, match="samples=1000"):
        run(settings(eps=0.1, samples=1000))
    with pytest.raises(ArgumentError, match="train must be a Split"):
        icp(trained, (digits[0].load()[0], None), settings(eps=0.1))
    with pytest.raises(ArgumentError, match="validation must be a Split"):
        run(None, digits[1].load()[0])
    with pytest.raises(ArgumentError, match="seed"):
        run(seed=-1)


def main(folder: str) -> None:
    """Go on with a run until somebody ends it."""
    torch.set_num_threads(1)
    digits = splits()
    model = teacher(digits[0])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    icp(model, digits, TWO_STEPS, folder=folder, resume=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

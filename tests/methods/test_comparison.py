"""Methods that compete: who they are, how long each trains, and that what is finished is not done again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_task import FAST, make_task

from clusterprune import data, evaluate
from clusterprune.errors import ArgumentError, OutputError
from clusterprune.methods.acp import ACP
from clusterprune.methods.cp import CP
from clusterprune.methods.icp import ICP
from clusterprune.methods.pipeline import Task
from clusterprune.methods.settings import BesideACP, BesideCP, read_method
from clusterprune.studies import comparison
from clusterprune.studies.comparison import Contender, Entry, compare, label, settings_of
from clusterprune.surgery import compact
from clusterprune.train import TrainConfig

MACS = 0.6
TEST = data.load("digits", image_size=8).test


@pytest.fixture(scope="module")
def task() -> Task:
    torch.set_num_threads(1)
    return make_task()


@pytest.mark.parametrize("text", ["icp", "icp:merge=drop:steps=1", "cp:schedule=slow-fast", "acp:fitness=merge"])
def test_contenders_read_as_they_are_written(text: str) -> None:
    assert str(Contender.read(text)) == text


def test_values_are_those_of_yaml() -> None:
    assert Contender.read("icp: alpha=0.5 :steps=2").changes == (("alpha", 0.5), ("steps", 2))
    assert Contender.read("sfp:scratch=true").changes == (("scratch", True),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magic", "methods='magic' names no method; choose from oneshot"),
        ("icp:steps", "methods='icp:steps' is not of the form METHOD:NAME=VALUE"),
        ("icp:=2", "is not of the form"),
        ("icp:steps=", "is not of the form"),
    ],
)
def test_other_contenders_are_refused(text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Contender.read(text)


@pytest.mark.parametrize(
    ("text", "epochs", "between", "last"),
    [("icp", 10, 2, 6), ("icp:steps=1", 10, 2, 10), ("icp:epochs_between=4", 10, 4, 2), ("icp", 3, 1, 1)],
)
def test_icp_trains_as_long_as_the_others(text: str, epochs: int, between: int, last: int) -> None:
    settings, training = settings_of(Contender.read(text), 0.5, TrainConfig(epochs=epochs))
    assert settings["epochs_between"] == between
    assert training.epochs == last
    assert (settings["steps"] - 1) * between + last == epochs


def test_icp_needs_epochs_enough() -> None:
    with pytest.raises(ArgumentError, match="epochs=2 are too few for icp with steps=3 and epochs_between=1"):
        settings_of(Contender.read("icp"), 0.5, TrainConfig(epochs=2))


@pytest.mark.parametrize("method", ["oneshot", "l1", "cp", "acp"])
def test_all_others_have_the_budget_and_the_training(method: str) -> None:
    settings, training = settings_of(Contender.read(method), 0.3, FAST)
    assert settings["keep_macs"] == 0.3
    assert training == FAST
    if method == "acp":
        assert settings["equal_macs"] is False


OURS = {
    "icp": {
        "by": "oneshot", "layers": "all", "samples": 1024, "steps": 3, "epochs_between": 2, "carry_momentum": True,
    },
    "acp": {
        "by": "oneshot", "layers": "all", "samples": 1024, "fitness": "merge", "merge": "refit", "equal_macs": False,
        "candidates_inherit": True, "retraining_inherits": True, "velocity_max": None,
    },
    "cp": {"curvature": 20.0, "mean_of": "replaced"},
    "oneshot": {},
    "l1": {},
}  # fmt: skip


@pytest.mark.parametrize("method", OURS)
def test_ours_is_what_it_was_and_the_papers_is_asked_for(method: str) -> None:
    contender, training = Contender.read(method), TrainConfig(epochs=10)
    assert settings_of(contender, 0.5, training)[0] == {"keep_macs": 0.5, **OURS[method]}
    papers, length = settings_of(contender, 0.5, training, published=True)
    if method in ("oneshot", "l1"):
        assert papers == {"keep_macs": 0.5}
        assert label(contender) == label(contender, published=True) == method
        return
    alone = Contender.read(f"{method}:preset=published")
    assert settings_of(alone, 0.5, training) == (papers, length)
    assert [label(contender), label(contender, published=True)] == [f"{method} (ours)", f"{method} (published)"]
    assert label(alone) == f"{method}:preset=published (published)"
    config, beside = read_method(method, papers, epochs=length.epochs)
    budget = {"keep_macs": 0.5}
    if method == "icp":
        assert config == ICP(**budget, samples=128, epochs_between=2, final_epochs=6)
    elif method == "acp":
        assert config == ACP(**budget, samples=200)
        assert beside == BesideACP(equal_macs=False)
    else:
        assert (config, beside) == (CP.published(), BesideCP(keep_macs=0.5, scratch=True))


def run(task: Task, out: Path, *contenders: str, **more: Any) -> list[Entry]:
    chosen = [Contender.read(text) for text in contenders]
    return compare(task, TEST, chosen, **{"keep_macs": MACS, "training": FAST, "out": out, **more})


def test_every_contender_and_seed_has_an_entry_and_a_folder(task: Task, tmp_path: Path) -> None:
    told: list[Entry] = []
    entries = run(task, tmp_path, "l1", "l1:merge=refit", seeds=(0, 1), done=told.append)
    assert told == entries
    assert [(e.contender, e.seed) for e in entries] == [
        ("l1", 0), ("l1:merge=refit", 0), ("l1", 1), ("l1:merge=refit", 1)
    ]  # fmt: skip
    for entry in entries:
        folder = tmp_path / entry.contender / f"seed-{entry.seed}"
        assert Entry(**json.loads((folder / "entry.json").read_text())) == entry
        small = compact.load(folder / "compact", task.factory)
        assert evaluate.params(small) == entry.params
        top1 = evaluate.accuracy(small.eval(), TEST, mean=task.mean, std=task.std, topk=(1,)).top1
        assert top1 == entry.accuracy
        assert entry.macs <= MACS * evaluate.macs(task.model, task.example)
        assert entry.accuracy_cut is not None
        assert entry.seconds is not None
    # Whoever takes over the work of the others loses less by the cut.
    assert entries[1].accuracy_cut > entries[0].accuracy_cut


def test_what_is_finished_is_not_done_again(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(task, tmp_path, "l1", "l2")
    began = []
    genuine = comparison.compress
    monkeypatch.setattr(comparison, "compress", lambda task, method, *a, **k: (
        began.append(method), genuine(task, method, *a, **k))[1]
    )  # fmt: skip
    again = run(task, tmp_path, "l1", "l2", "fpgm")
    assert began == ["fpgm"]
    assert again[:2] == first


def test_a_stopped_contender_goes_on_and_says_no_time(task: Task, tmp_path: Path) -> None:
    whole = run(task, tmp_path / "whole", "l1")

    def stop(phase: str, event: Any) -> None:
        if event.kind == "epoch":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(task, tmp_path / "stopped", "l1", watch=stop)
    (entry,) = run(task, tmp_path / "stopped", "l1")
    assert entry.seconds is None
    assert (entry.accuracy, entry.accuracy_cut) == (whole[0].accuracy, whole[0].accuracy_cut)


def test_another_budget_or_training_is_refused(task: Task, tmp_path: Path) -> None:
    run(task, tmp_path, "l1")
    with pytest.raises(OutputError, match="was begun with other settings; compare in another folder"):
        run(task, tmp_path, "l1", keep_macs=0.7)
    with pytest.raises(OutputError, match="was begun with other training"):
        run(task, tmp_path, "l1", training=FAST.model_copy(update={"lr": 0.01}))

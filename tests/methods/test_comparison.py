"""Methods that compete: who they are, how long each trains, and that what is finished is not done again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_task import FAST, make_task

from clusterprune import data, evaluate
from clusterprune.errors import ArgumentError
from clusterprune.methods import CP, ICP, Method, Network, OneShotCut
from clusterprune.methods.acp import ACP
from clusterprune.studies.comparison import Contender, Entry, compare, label, method_of
from clusterprune.surgery import compact
from clusterprune.tasks import Task
from clusterprune.train import TrainConfig

MACS = 0.6
TEST = data.load("digits", image_size=8).test


@pytest.fixture(scope="module")
def task() -> tuple[Network, Task]:
    torch.set_num_threads(1)
    return make_task()


@pytest.mark.parametrize(
    "text", ["icp", "icp:cut=clusters:steps=1", "mine.py:Mine:share=0.5", "cp:schedule=slow-fast", "acp:fitness=merge"]
)
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
    method, training = method_of(Contender.read(text), 0.5, TrainConfig(epochs=epochs))
    assert isinstance(method, ICP)
    assert method.epochs_between == between
    assert training.epochs == last
    assert (method.steps - 1) * between + last == epochs


def test_icp_needs_epochs_enough() -> None:
    with pytest.raises(ArgumentError, match="epochs=2 are too few for icp with steps=3 and epochs_between=1"):
        method_of(Contender.read("icp"), 0.5, TrainConfig(epochs=2))


@pytest.mark.parametrize("method", ["oneshot", "l1", "cp", "acp"])
def test_all_others_have_the_budget_and_the_training(method: str) -> None:
    found, training = method_of(Contender.read(method), 0.3, FAST)
    assert found.keep_macs == 0.3
    assert training == FAST
    if method == "acp":
        assert found.equal_macs is False


BUDGET = {"keep_macs": 0.5}
OURS: dict[str, Method] = {
    "icp": ICP(**BUDGET, cut=OneShotCut(), samples=1024, steps=3, epochs_between=2, carry_momentum=True),
    "acp": ACP(
        **BUDGET, cut=OneShotCut(), samples=1024, fitness="merge", merging="refit", equal_macs=False,
        candidates_inherit=True, retraining_inherits=True, velocity_max=None,
    ),
    "cp": CP(**BUDGET, curvature=20.0, mean_of="replaced"),
}  # fmt: skip
PAPERS: dict[str, Method] = {
    "icp": ICP(**BUDGET, samples=128, epochs_between=2),
    "acp": ACP(**BUDGET, samples=200, equal_macs=False),
    "cp": CP(**BUDGET, batch_norm="removed", scratch=True),
}


@pytest.mark.parametrize("method", [*OURS, "oneshot", "l1"])
def test_ours_is_what_it_was_and_the_papers_is_asked_for(method: str) -> None:
    contender, training = Contender.read(method), TrainConfig(epochs=10)
    ours, papers = (method_of(contender, 0.5, training, published=published) for published in (False, True))
    if method in ("oneshot", "l1"):
        assert ours == papers
        assert label(contender) == label(contender, published=True) == method
        return
    assert (ours[0], papers[0]) == (OURS[method], PAPERS[method])
    assert papers[1].epochs == (6 if method == "icp" else 10)
    alone = Contender.read(f"{method}:preset=published")
    assert method_of(alone, 0.5, training) == papers
    assert [label(contender), label(contender, published=True)] == [f"{method} (ours)", f"{method} (published)"]
    assert label(alone) == f"{method}:preset=published (published)"


def run(task: tuple[Network, Task], out: Path, *contenders: str, **more: Any) -> list[Entry]:
    chosen = [Contender.read(text) for text in contenders]
    return compare(*task, TEST, chosen, **{"keep_macs": MACS, "training": FAST, "out": out, **more})


def test_every_contender_and_seed_has_an_entry_and_a_folder(task: tuple[Network, Task], tmp_path: Path) -> None:
    (network, digits), told = task, []
    entries = run(task, tmp_path, "l1", "l1:merging=refit", seeds=(0, 1), done=told.append)
    assert told == entries
    assert [(e.contender, e.seed) for e in entries] == [
        ("l1", 0), ("l1:merging=refit", 0), ("l1", 1), ("l1:merging=refit", 1)
    ]  # fmt: skip
    for entry in entries:
        folder = tmp_path / entry.contender / f"seed-{entry.seed}"
        assert Entry(**json.loads((folder / "entry.json").read_text())) == entry
        small = compact.load(folder / "compact", network.factory)
        assert evaluate.params(small) == entry.params
        top1 = evaluate.accuracy(small.eval(), TEST, mean=digits.mean, std=digits.std, topk=(1,)).top1
        assert top1 == entry.accuracy
        assert entry.macs <= MACS * evaluate.macs(network.model, network.example)
        assert entry.accuracy_cut is not None
        assert entry.seconds is not None
    # Whoever takes over the work of the others loses less by the cut.
    assert entries[1].accuracy_cut > entries[0].accuracy_cut


def test_what_is_finished_is_not_done_again(
    task: tuple[Network, Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(task, tmp_path, "l1", "l2")
    began = []
    genuine = Method.run
    monkeypatch.setattr(Method, "run", lambda self, *a, **k: (began.append(self.name), genuine(self, *a, **k))[1])
    again = run(task, tmp_path, "l1", "l2", "fpgm")
    assert began == ["fpgm"]
    assert again[:2] == first


def test_a_stopped_contender_goes_on_and_says_no_time(task: tuple[Network, Task], tmp_path: Path) -> None:
    whole = run(task, tmp_path / "whole", "l1")

    def stop(phase: str, event: Any) -> None:
        if event.kind == "epoch":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(task, tmp_path / "stopped", "l1", watch=stop)
    (entry,) = run(task, tmp_path / "stopped", "l1")
    assert entry.seconds is None
    assert (entry.accuracy, entry.accuracy_cut) == (whole[0].accuracy, whole[0].accuracy_cut)


def test_another_budget_or_training_is_refused(task: tuple[Network, Task], tmp_path: Path) -> None:
    run(task, tmp_path, "l1")
    with pytest.raises(ArgumentError, match=r"was begun with other settings, .*keep_macs=0\.6"):
        run(task, tmp_path, "l1", keep_macs=0.7)
    with pytest.raises(ArgumentError, match="was begun with other training"):
        run(task, tmp_path, "l1", training=FAST.model_copy(update={"lr": 0.01}))

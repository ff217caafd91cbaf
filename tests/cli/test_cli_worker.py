"""``worker``: joins a search from another process, and refuses what is not the same."""

import json
import re
from collections import Counter
from pathlib import Path

import optuna
import pytest
from command_line import Cli
from safetensors.torch import load_file, save_file

from clusterprune import data
from clusterprune.methods.acp_search import StructureFitness
from clusterprune.search import search

COMMON = ("--set", "samples=64", "--set", "min_samples=2", "--keep-macs", 0.6, "--epochs", 1, "--augment", "none")


def acp(tiny: str, weights: Path, out: str, *more: object) -> list[object]:
    command = ["compress", "--model", tiny, "--weights", weights, "--data", "digits", "--method", "acp", "--out", out]
    return [*command, "--storage", "search.db", "--study", "mine", *COMMON, *more]


QUICK = ("--set", "fitness=merge", "--set", "particles=2", "--set", "cycles=1")
WORKER = ("worker", "--storage", "search.db", "--study", "mine")


@pytest.mark.slow
def test_a_run_and_a_worker_share_a_search(trust: tuple[str, str], tiny: str, trained: Path, cli: Cli):
    worker = cli.start(*WORKER, *trust)
    run = cli.start(
        *acp(tiny, trained, "run", "--set", "particles=6", "--set", "cycles=2", "--set", "fitness_epochs=8")
    )
    printed, said = worker.communicate(timeout=170)
    assert worker.returncode == 0, said
    _, said_by_run = run.communicate(timeout=170)
    assert run.returncode == 0, said_by_run
    assert "Waiting for the search 'mine' to begin" in said

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name="mine", storage=f"sqlite:///{Path('search.db').absolute()}")
    assert len(study.trials) == 18
    trained_ones = [t for t in study.trials if "duplicate_of" not in t.user_attrs]
    structures = Counter(tuple(t.user_attrs["widths"].values()) for t in trained_ones)
    assert set(structures.values()) == {1}
    mine = [t for t in trained_ones if t.user_attrs["worker"]["pid"] == worker.pid]
    theirs = [t for t in trained_ones if t.user_attrs["worker"]["pid"] == run.pid]
    assert mine
    assert theirs
    assert len(mine) + len(theirs) == len(trained_ones)
    assert f"This worker evaluated {len(mine)} structures" in printed
    for trial in mine:
        widths = " ".join(str(width) for width in trial.user_attrs["widths"].values())
        assert f"{widths}  {trial.value:.2f} %" in said
    record = json.loads(Path("run/result.json").read_text())["record"]
    assert record["fitness"] == study.best_value


def test_a_worker_that_comes_late_is_told_the_result(trust: tuple[str, str], tiny: str, trained: Path, cli: Cli):
    assert cli(*acp(tiny, trained, "run", *QUICK)).exit_code == 0
    done = cli(*WORKER, *trust)

    assert done.exit_code == 0, done.output
    assert re.search(
        r"The search is over\. This worker evaluated 0 structures; the best of all has \d+\.\d\d %", done.stdout
    )


def test_a_worker_evaluates_what_a_stopped_run_left(
    trust: tuple[str, str], tiny: str, trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    genuine, calls = StructureFitness.__call__, []

    def stop_at_second(fitness: StructureFitness, widths: dict[str, int]) -> float:
        calls.append(widths)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return genuine(fitness, widths)

    with monkeypatch.context() as patch:
        patch.setattr(StructureFitness, "__call__", stop_at_second)
        stopped = cli(*acp(tiny, trained, "run", *QUICK))
    assert stopped.exit_code == 130

    # The same weights in another file, as on another machine.
    save_file(load_file(trained / "model.safetensors"), "elsewhere.safetensors")
    done = cli(*WORKER, "--weights", "elsewhere.safetensors", *trust)
    assert done.exit_code == 0, done.output
    shown = re.findall(r"structure \d of 4: ([\d ]+)  \d+\.\d\d %", done.stderr)
    assert len(shown) == 3
    assert " ".join(str(width) for width in calls[1].values()) in shown

    monkeypatch.setattr(StructureFitness, "__call__", genuine)
    went_on = cli("compress", "--out", "run", "--resume", *trust)
    assert went_on.exit_code == 0, went_on.output
    assert json.loads(Path("run/result.json").read_text())["record"]["evaluations"] == 4


def test_other_weights_and_data_are_refused(
    trust: tuple[str, str], tiny: str, trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    assert cli(*acp(tiny, trained, "run", *QUICK)).exit_code == 0
    state = load_file(trained / "model.safetensors")
    state["0.weight"] += 1
    save_file(state, "other.safetensors")
    message = cli.fails(*WORKER, "--weights", "other.safetensors", *trust)
    assert "these weights are not the ones that the search was begun with" in message

    # Another run of that name.
    message = cli.fails(*acp(tiny, trained, "again", *QUICK, "--seed", 1))
    assert "a search of this name already, begun with another seed" in message
    assert not Path("again").exists()

    genuine = data.holdout
    monkeypatch.setattr(data, "holdout", lambda split, share: genuine(split, share, 5))
    message = cli.fails(*WORKER, *trust)
    assert "the train images are not the ones that the search was begun with" in message


def test_a_search_that_does_not_begin_is_not_waited_for_forever(cli: Cli):
    message = cli.fails(*WORKER, "--timeout", 0)

    assert "there is no search study='mine' in this storage" in message
    # Looking for it makes no file that a run would stumble over.
    assert list(Path().iterdir()) == []


def test_a_search_of_another_kind_is_refused(cli: Cli):
    search({"a": (1, 3)}, lambda widths: widths["a"], start={"a": 2}, storage="search.db", name="mine", evaluations=2)

    assert "study='mine' does not say what its run works on" in cli.fails(*WORKER)

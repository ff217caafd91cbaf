"""The bee colony: where bees look, by hand, and the sampler in a study of anyone's own."""

from pathlib import Path

import optuna
import pytest

from clusterprune.errors import ArgumentError
from clusterprune.search import BeeColonySampler, search, work
from clusterprune.search.bees import attraction, neighbour


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def objective(trial: optuna.Trial) -> float:
    return -abs(trial.suggest_int("x", 1, 64) - 33) - abs(trial.suggest_int("y", 1, 16) - 11)


def study_of(sampler: BeeColonySampler, storage: str | None = None) -> optuna.Study:
    return optuna.create_study(
        direction="maximize", sampler=sampler, storage=storage, study_name="s", load_if_exists=True
    )


def found(study: optuna.Study) -> list[tuple]:
    return [(t.params, t.value, t.system_attrs["swarm"]) for t in study.trials]


def test_where_a_bee_looks_and_an_onlooker_goes_by_hand() -> None:
    assert neighbour(20, 12, 0.5) == 24
    assert neighbour(20, 12, -0.5) == 16
    # 0.9 · (1, 1/2, 0) + 0.1, divided by 1.65
    assert attraction([80.0, 40.0, 0.0]) == pytest.approx([1 / 1.65, 0.55 / 1.65, 0.1 / 1.65])
    assert attraction([-1.0, -3.0]) == pytest.approx([1 / 1.1, 0.1 / 1.1])


def test_a_colony_employs_watches_and_gives_up() -> None:
    study = study_of(BeeColonySampler(foods=4, limit=2, changes=1, seed=2))
    study.optimize(objective, n_trials=4 * (1 + 2 * 8))
    notes = [trial.system_attrs["swarm"] for trial in study.trials]
    assert [note["food"] for note in notes[:4]] == [0, 1, 2, 3] == [note["food"] for note in notes[4:8]]
    assert all(note["source"] is None for note in notes[:4])
    assert [note for note in notes[4:] if note["source"] is None], "no scout was sent"
    for trial, note in zip(study.trials, notes, strict=True):
        if note["source"] is not None:
            assert sum(trial.params[name] != at for name, at in note["source"].items()) <= 1
    assert study.best_value > max(trial.value for trial in study.trials[:4])


def test_a_colony_that_was_stopped_is_the_same(tmp_path: Path) -> None:
    whole = study_of(BeeColonySampler(foods=3, seed=5))
    whole.optimize(objective, n_trials=21)
    storage = f"sqlite:///{tmp_path / 'bees.db'}"
    for count in (4, 9, 8):
        study_of(BeeColonySampler(foods=3, seed=5), storage).optimize(objective, n_trials=count)
    assert found(study_of(BeeColonySampler(foods=3, seed=5), storage)) == found(whole)


def test_a_worker_joins_a_search_by_bees_without_being_told(tmp_path: Path) -> None:
    def fitness(widths: dict[str, int]) -> float:
        return -abs(widths["a"] - 9.0)

    sampler = BeeColonySampler(foods=3, limit=3)
    made = search(
        {"a": (1, 16, 1)}, fitness, start={"a": 4}, storage=tmp_path / "s.db", name="bees", sampler=sampler,
        evaluations=15,
    )  # fmt: skip
    assert made.history[0].widths == {"a": 4}
    assert len(made.history) == 15
    assert work(tmp_path / "s.db", "bees", fitness).best == made.best


def test_a_colony_says_what_it_cannot_do() -> None:
    with pytest.raises(ArgumentError, match="foods must be a whole number of at least 2, but got foods=1"):
        BeeColonySampler(foods=1)
    with pytest.raises(ArgumentError, match="follows one objective"):
        optuna.create_study(directions=["maximize", "minimize"], sampler=BeeColonySampler()).optimize(
            objective, n_trials=1
        )

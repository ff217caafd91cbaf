"""A search: resumed, repeated, without evaluating anything twice, and with clear words where it cannot be."""

import math
from collections import Counter
from pathlib import Path
from types import ModuleType

import optuna
import pytest
from optuna.samplers import TPESampler

from clusterprune.errors import ArgumentError, ClusterpruneError, OutputError
from clusterprune.search import Evaluation, ParticleSwarmSampler, StudyHeader, search, study_header, work

SPACE = {"a": (1, 16), "b": (1, 32)}
START = {"a": 8, "b": 16}


def fitness(widths: dict[str, int]) -> float:
    return -abs(widths["a"] - 9) - abs(widths["b"] - 20)


def find(function: object = fitness, **given: object):
    return search(**{"space": SPACE, "fitness": function, "start": START, **given})


def trials(result: object) -> list[tuple]:
    return [(e.slot, e.widths, e.values, e.duplicate_of, e.failure) for e in result.history]


def test_a_search_is_a_whole_swarm() -> None:
    seen: list[tuple[Evaluation, int, int]] = []
    result = find(progress=lambda *said: seen.append(said))
    assert [e.slot for e in result.history] == list(range(36))
    assert [(done, total) for _, done, total in seen] == [(k + 1, 36) for k in range(36)]
    assert tuple(e for e, _, _ in seen) == result.history
    assert result.value == max(fitness(e.widths) for e in result.history) == fitness(result.best)
    assert result.front[0].slot == min(e.slot for e in result.history if e.values == (result.value,))
    assert all(e.values == (fitness(e.widths),) for e in result.history)


def test_the_swarm_of_a_search_is_the_sampler_in_a_study() -> None:
    def objective(trial: optuna.Trial) -> float:
        return fitness({name: trial.suggest_int(name, *bounds) for name, bounds in SPACE.items()})

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=ParticleSwarmSampler(START, seed=4))
    study.optimize(objective, n_trials=36)
    assert [t.params for t in study.trials] == [e.widths for e in find(seed=4).history]


def test_no_structure_is_evaluated_twice() -> None:
    asked: Counter = Counter()

    def counted(widths: dict[str, int]) -> float:
        asked[tuple(widths.items())] += 1
        return fitness(widths)

    result = find(counted, space={"a": (7, 9), "b": (15, 17)})
    assert set(asked.values()) == {1}
    copies = [e for e in result.history if e.duplicate_of is not None]
    assert len(asked) + len(copies) == 36
    for copy in copies:
        original = result.history[copy.duplicate_of]
        assert original.duplicate_of is None
        assert (original.widths, original.values, copy.seconds) == (copy.widths, copy.values, 0.0)


@pytest.mark.parametrize("sampler", ["swarm", "tpe", "random"])
def test_an_interrupted_search_goes_on_as_if_nothing_had_happened(tmp_path: Path, sampler: str) -> None:
    """The worker is stopped in the middle of an evaluation, three times; its trial stays behind, running."""
    whole = find(sampler=sampler, evaluations=18, seed=5)
    left = iter((4, 1, 6))
    asked: Counter = Counter()

    def interrupted(widths: dict[str, int]) -> float:
        nonlocal budget
        budget -= 1
        if budget < 0:
            raise KeyboardInterrupt
        asked[tuple(widths.items())] += 1
        return fitness(widths)

    for budget in left:  # noqa: B007 - counted down by the fitness
        with pytest.raises(KeyboardInterrupt):
            find(interrupted, sampler=sampler, evaluations=18, seed=5, storage=tmp_path / "search.db")
    budget = 99
    result = find(interrupted, sampler=sampler, evaluations=18, seed=5, storage=tmp_path / "search.db")
    assert trials(result) == trials(whole)
    assert (result.best, result.value) == (whole.best, whole.value)
    assert set(asked.values()) == {1}
    again = find(lambda _: 1 / 0, sampler=sampler, evaluations=18, seed=5, storage=tmp_path / "search.db")
    assert trials(again) == trials(whole)


def test_two_objectives_give_a_front() -> None:
    result = find(
        lambda w: (fitness(w), w["a"] * w["b"]),
        sampler="nsga2",
        directions=("maximize", "minimize"),
        evaluations=48,
    )
    assert result.history[0].widths == START
    assert len(result.front) > 2
    accuracy, cost = zip(*(e.values for e in result.front), strict=True)
    assert sorted(accuracy, reverse=True) == list(accuracy)
    assert sorted(cost, reverse=True) == list(cost)
    for e in result.history:
        assert any(a >= e.values[0] and c <= e.values[1] for a, c in zip(accuracy, cost, strict=True))
    assert result.best == result.front[0].widths


def test_a_structure_that_is_not_permitted_is_repaired(tmp_path: Path) -> None:
    asked: Counter = Counter()

    def even(widths: dict[str, int]) -> dict[str, int]:
        return {name: max(2, width - width % 4) for name, width in widths.items()}

    def counted(widths: dict[str, int]) -> float:
        asked[tuple(widths.items())] += 1
        if sum(asked.values()) == 6:
            raise KeyboardInterrupt
        return fitness(widths)

    whole = find(repair=even)
    with pytest.raises(KeyboardInterrupt):
        find(counted, repair=even, storage=tmp_path / "search.db")
    result = find(counted, repair=even, storage=tmp_path / "search.db")
    assert trials(result) == trials(whole)
    assert all(even(e.widths) == e.widths for e in result.history)
    assert sum(asked.values()) == len(asked) + 1, "once each, and the one that was interrupted again"


def test_steps_and_samplers_of_ones_own() -> None:
    space = {"a": (4, 16, 4), "b": (1, 32)}
    for sampler in ("swarm", ParticleSwarmSampler(START, particles=3), TPESampler(seed=1, n_startup_trials=4)):
        result = find(space=space, sampler=sampler, evaluations=12)
        assert {e.widths["a"] for e in result.history} <= {4, 8, 12, 16}


def test_a_failure_is_reported_and_not_tried_again() -> None:
    asked: Counter = Counter()

    def fails(widths: dict[str, int]) -> float:
        asked[tuple(widths.items())] += 1
        if widths["a"] > 8:
            raise RuntimeError("too wide")
        return math.nan if widths["b"] > 16 else fitness(widths)

    result = find(fails)
    assert set(asked.values()) == {1}
    reasons = {e.failure for e in result.failed}
    assert reasons == {"RuntimeError: too wide", "the fitness is nan"}
    assert all(e.values is None for e in result.failed)
    assert result.value == max(e.values[0] for e in result.history if e.values)


def test_a_fitness_that_never_works_ends_the_search() -> None:
    with pytest.raises(ClusterpruneError, match=r"all of the first 3 structures.*ZeroDivisionError") as caught:
        find(lambda _: 1 / 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(ClusterpruneError, match="failed for all 1 structures"):
        find(lambda _: math.inf, evaluations=1)
    with pytest.raises(ArgumentError, match="2 numbers for 1 directions"):
        find(lambda _: (1.0, 2.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": {}}, "space is empty"),
        ({"space": {"a": (1, 16), "b": (32, 1)}}, r"space\['b'\] must be \(least, greatest\)"),
        ({"space": {"a": (1, 16, 4), "b": (1, 32)}}, "the step dividing their difference"),
        ({"start": {"a": 3}}, "only one of them has b"),
        ({"start": {"a": 3, "b": 40}}, r"start\['b'\]=40 is not in space"),
        ({"evaluations": 0}, "evaluations must be at least 1"),
        ({"directions": ("up",)}, "directions must each be"),
        ({"directions": ("maximize", "minimize")}, "use 'nsga2'"),
        ({"sampler": "ants"}, "sampler must be .* but got sampler='ants'"),
        ({"storage": "nosuchdatabase://here/x"}, "cannot be opened"),
        ({"storage": "sqlite:////proc/search.db"}, "cannot be opened"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        find(**options)


def test_storages_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot make the folder"):
        find(storage=tmp_path / "file" / "run" / "search.db")
    with pytest.raises(ArgumentError, match="no study of this storage, which holds: none"):
        work(tmp_path / "s.db", "search", fitness)
    with pytest.raises(ArgumentError) as caught:
        find(storage="postgresql://me:secret@localhost:1/x")
    assert "secret" not in str(caught.value)
    assert "psycopg[binary]" in str(caught.value) or "a server that runs" in str(caught.value)


def test_a_study_is_not_continued_with_other_settings(tmp_path: Path) -> None:
    find(storage=tmp_path / "search.db", evaluations=4, sampler="random")
    with pytest.raises(ArgumentError, match=r"begun with other settings: seed=1 \(was 0\)"):
        find(storage=tmp_path / "search.db", evaluations=4, sampler="random", seed=1)
    find(storage=tmp_path / "search.db", evaluations=4, sampler="random", seed=1, name="another")
    assert len(work(tmp_path / "search.db", "another", fitness).history) == 4


def test_a_foreign_study_is_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'search.db'}"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(study_name="search", storage=url, direction="maximize")
    study.optimize(lambda trial: trial.suggest_int("a", 1, 3), n_trials=2)
    with pytest.raises(ArgumentError, match="was not begun by search"):
        find(storage=tmp_path / "search.db")


def test_whoever_wants_to_join_finds_the_start_and_what_was_told(tmp_path: Path) -> None:
    assert study_header(tmp_path / "search.db", "search") is None
    assert list(tmp_path.iterdir()) == [], "looking must not make the file"
    find(storage=tmp_path / "search.db", evaluations=2, about={"model": "vgg16", "layers": [1, 2]})
    assert study_header(tmp_path / "search.db", "search") == StudyHeader(START, {"model": "vgg16", "layers": [1, 2]})
    assert study_header(tmp_path / "search.db", "another") is None
    # What a search was begun with stays, and whoever goes on with it need not tell it again.
    find(storage=tmp_path / "search.db", evaluations=2, about={"model": "vgg19"})
    find(storage=tmp_path / "search.db", evaluations=2, name="silent")
    assert study_header(tmp_path / "search.db", "search") == StudyHeader(START, {"model": "vgg16", "layers": [1, 2]})
    assert study_header(tmp_path / "search.db", "silent") == StudyHeader(START, None)


def test_nobody_joins_a_foreign_study(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'search.db'}"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(study_name="search", storage=url)
    assert study_header(url, "search") is None, "it may be about to begin"
    study.optimize(lambda trial: trial.suggest_int("a", 1, 3), n_trials=1)
    with pytest.raises(ArgumentError, match="the study 'search' was not begun by search; name another"):
        study_header(url, "search")


def test_optuna_keeps_quiet(tmp_path: Path, capfd: pytest.CaptureFixture, worker: ModuleType) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    worker.run(tmp_path / "s.db", evaluations=6)
    worker.run(tmp_path / "s.db", join=True)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == optuna.logging.INFO

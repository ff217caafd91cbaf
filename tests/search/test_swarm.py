"""The particle swarm: its equations by hand, and the sampler in a study of anyone's own."""

from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import IntDistribution
from optuna.trial import TrialState

from clusterprune.errors import ArgumentError
from clusterprune.search import ParticleSwarmSampler
from clusterprune.search.integers import to_allowed
from clusterprune.search.swarm import inertia_weight, initial_position, next_position, next_velocity
from clusterprune.search.trials import FIRST, HISTORY, slots

START = {"x": 20, "y": 8}


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def objective(trial: optuna.Trial) -> float:
    return -abs(trial.suggest_int("x", 1, 64) - 33) - abs(trial.suggest_int("y", 1, 16) - 11)


def study_of(sampler: ParticleSwarmSampler, storage: str | None = None, **given: object) -> optuna.Study:
    given = {"direction": "maximize", **given}
    return optuna.create_study(sampler=sampler, storage=storage, study_name="s", load_if_exists=True, **given)


def told(study: optuna.Study) -> list[tuple]:
    return [(t.params, t.value, t.system_attrs["swarm"]) for t in study.trials]


def test_where_the_swarm_starts_by_hand() -> None:
    """Eq. 3: the third particle of a layer with 20 clusters starts with 17, 20 or 23 channels."""
    assert [initial_position(20, 3, draw) for draw in (-1, 0, 1)] == [17, 20, 23]


def test_velocity_by_hand() -> None:
    """Eq. 5: 0.5 · 2 + 2 · 0.25 · (12 - 10) + 2 · 0.5 · (15 - 10) = 1 + 1 + 5."""
    given = {"inertia": 0.5, "weights": (2.0, 2.0), "draws": (0.25, 0.5)}
    assert next_velocity(2.0, 10, 12, 15, **given, limit=100) == 7.0
    assert next_velocity(2.0, 10, 12, 15, **given, limit=4) == 4.0
    assert next_velocity(-2.0, 15, 12, 10, **given, limit=4) == -4.0
    assert next_velocity(2.0, 10, 12, 15, **{**given, "weights": (1.0, 3.0)}, limit=100) == 1 + 0.5 + 7.5


def test_inertia_by_hand() -> None:
    """Eq. 6 with T = 5, from 0.9 to 0.4: a tenth less in each cycle."""
    weights = [inertia_weight(t, 5, 0.9, 0.4) for t in (0, 1, 2, 3, 4, 5, 9)]
    assert weights == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.4])


def test_position_by_hand() -> None:
    """Eq. 7 with r = 2, rounded, and clipped to the layer's width."""
    assert next_position(10, 3.6, 2.0) == pytest.approx(17.2)
    layer = IntDistribution(1, 16)
    assert [to_allowed(c, layer) for c in (17.2, 12.6, 0.2, -3)] == [16, 13, 1, 1]
    assert [to_allowed(c, IntDistribution(4, 16, step=4)) for c in (9.9, 10.1, 15)] == [8, 12, 16]


@given(
    st.floats(-50, 50),
    st.integers(1, 64),
    st.integers(1, 64),
    st.integers(1, 64),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_a_move_stays_within_its_limits(velocity: float, at: int, own: int, swarm: int, draws: tuple) -> None:
    given = {"inertia": 0.9, "weights": (2.0, 2.0), "draws": draws, "limit": 6.3}
    moved = next_velocity(velocity, at, own, swarm, **given)
    assert -6.3 <= moved <= 6.3
    assert 1 <= to_allowed(next_position(at, moved, 2.0), IntDistribution(1, 64)) <= 64
    if at == own == swarm:
        assert moved == pytest.approx(max(-6.3, min(6.3, 0.9 * velocity)))


def test_every_trial_moves_as_the_equations_say() -> None:
    """Replay a whole study: velocity first, then position, in every dimension, with the bests of that moment."""
    sampler = ParticleSwarmSampler(START, particles=4, cycles=3, velocity_max=5.0, seed=7)
    study = study_of(sampler)
    study.optimize(objective, n_trials=16)
    limits = {"x": IntDistribution(1, 64), "y": IntDistribution(1, 16)}
    for k, trial in enumerate(study.trials):
        record = trial.system_attrs["swarm"]
        n, t = k % 4 + 1, k // 4
        assert (record["particle"], record["cycle"], record["position"]) == (n, t, trial.params)
        if t == 0:
            assert all(trial.params[name] - START[name] in (-n, 0, n) for name in START)
            assert all(-5 <= v <= 5 for v in record["velocity"].values())
            continue
        before = study.trials[k - 4]
        own = max(study.trials[n - 1 : k : 4], key=lambda past: past.value)
        best = max(study.trials[:k], key=lambda past: past.value)
        for name in START:
            draws = sampler._generator(n, t, name).random(2)
            c, v = before.params[name], before.system_attrs["swarm"]["velocity"][name]
            w = 0.9 - 0.5 * t / 3
            v = w * v + 2 * draws[0] * (own.params[name] - c) + 2 * draws[1] * (best.params[name] - c)
            v = max(-5.0, min(5.0, v))
            assert record["velocity"][name] == pytest.approx(v)
            assert trial.params[name] == to_allowed(c + 2 * v, limits[name])
    assert len({tuple(t.params.values()) for t in study.trials}) > 8


def test_widths_move_a_few_channels_at_a_time_unless_the_limit_follows_the_range() -> None:
    """v_max = 2 and first velocities within it, as released; or a tenth of each range: 6.3 of x, 1.5 of y."""
    for options, limits in (({}, {"x": 2.0, "y": 2.0}), ({"velocity_max": None}, {"x": 6.3, "y": 1.5})):
        study = study_of(ParticleSwarmSampler(START, particles=32, cycles=2, **options))
        study.optimize(objective, n_trials=96)
        for name, limit in limits.items():
            speeds = [abs(t.system_attrs["swarm"]["velocity"][name]) for t in study.trials]
            assert max(speeds) <= limit + 1e-12
            assert 0.9 * limit < max(speeds[:32]) < limit  # uniform within it: the largest of 32 is near its end
            assert 0.3 * limit < sum(speeds[:32]) / 32 < 0.7 * limit


def test_a_seed_repeats_the_trials_and_another_does_not() -> None:
    runs = []
    for seed in (1, 1, 2):
        study = study_of(ParticleSwarmSampler(START, seed=seed))
        study.optimize(objective, n_trials=18)
        runs.append(told(study))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_everything_is_read_back_from_the_storage(tmp_path: Path) -> None:
    """Twelve trials, then a new storage object and a new sampler: the same as without the break."""
    whole = study_of(ParticleSwarmSampler(START, cycles=2))
    whole.optimize(objective, n_trials=18)
    url = f"sqlite:///{tmp_path / 's.db'}"
    for count in (3, 8, 7):
        study = study_of(ParticleSwarmSampler(START, cycles=2), url)
        study.optimize(objective, n_trials=count)
        study._storage.remove_session()
        study._storage._backend.engine.dispose()
    assert told(study) == told(whole)


def test_a_swarm_can_minimise() -> None:
    up, down = study_of(ParticleSwarmSampler(START)), study_of(ParticleSwarmSampler(START), direction="minimize")
    up.optimize(objective, n_trials=24)
    down.optimize(lambda trial: -objective(trial), n_trials=24)
    assert [t.params for t in up.trials] == [t.params for t in down.trials]


def test_a_failed_trial_is_a_move_without_a_fitness() -> None:
    def fails(trial: optuna.Trial) -> float:
        value = objective(trial)
        if trial.number in (2, 9):
            raise ValueError("no")
        return value

    study = study_of(ParticleSwarmSampler(START))
    study.optimize(fails, n_trials=24, catch=ValueError)
    assert [t.number for t in study.trials if t.state == TrialState.FAIL] == [2, 9]
    assert all(t.system_attrs["swarm"]["position"] == t.params for t in study.trials)


def test_repeats_take_the_place_of_the_trial_they_repeat() -> None:
    """As Optuna's callback for trials without a heartbeat makes them."""

    def fails(trial: optuna.Trial) -> float:
        if trial.number == 8:
            raise ValueError("no")
        return objective(trial)

    whole, study = (study_of(ParticleSwarmSampler(START)) for _ in range(2))
    whole.optimize(objective, n_trials=24)
    study.optimize(fails, n_trials=9, catch=ValueError)
    study.add_trial(
        optuna.create_trial(state=TrialState.WAITING, system_attrs={FIRST: 8, HISTORY: [8]}),
    )
    study.optimize(objective, n_trials=16)
    place = slots(study.trials)
    assert place[9] == 8
    assert [place[number] for number in (8, 9, 10, 24)] == [8, 8, 9, 23]
    finished = [t for t in study.trials if t.state == TrialState.COMPLETE]
    assert [(t.params, t.value) for t in finished] == [(t.params, t.value) for t in whole.trials]


def test_structures_that_someone_adds_are_part_of_the_swarm() -> None:
    study = study_of(ParticleSwarmSampler(START))
    study.enqueue_trial({"x": 33, "y": 11})
    study.optimize(objective, n_trials=30)
    assert study.trials[0].params == {"x": 33, "y": 11}
    near = sum(-t.value for t in study.trials[24:]) / 6
    assert near < sum(-t.value for t in study.trials[1:6]) / 5


def test_several_threads_share_a_swarm() -> None:
    study = study_of(ParticleSwarmSampler(START))
    study.optimize(objective, n_trials=36, n_jobs=3)
    places = [(t.system_attrs["swarm"]["particle"], t.system_attrs["swarm"]["cycle"]) for t in study.trials]
    assert sorted(places) == sorted((n, t) for n in range(1, 7) for t in range(6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"particles": 0}, "particles must be"),
        ({"cycles": 1.5}, "cycles must be"),
        ({"seed": -1}, "seed must be"),
        ({"velocity_max": 0}, "velocity_max must be positive"),
        ({"inertia": (0.4, 0.9)}, "inertia must be"),
    ],
)
def test_bad_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ParticleSwarmSampler(START, **options)


def test_what_a_swarm_cannot_search_is_refused() -> None:
    study = study_of(ParticleSwarmSampler(START))
    with pytest.raises(ArgumentError, match="'z' is a FloatDistribution"):
        study.optimize(lambda trial: trial.suggest_float("z", 0, 1), n_trials=1)
    study = study_of(ParticleSwarmSampler(START), direction=None, directions=["maximize", "minimize"])
    with pytest.raises(ArgumentError, match="one objective"):
        study.optimize(lambda trial: (objective(trial), 0), n_trials=1)

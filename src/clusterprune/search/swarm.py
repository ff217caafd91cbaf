"""The particle swarm of ACP (arXiv 2101.06407, section III-C) as an Optuna sampler.

N particles move through whole numbers, such as the widths of a network's layers. Each is drawn to the best
place that it has seen itself and to the best that any has seen; both are looked up when a particle moves, so
no particle waits for another (Algorithm 1, lines 10-24).

Nothing lives in memory. Which particle and cycle a trial is follows from its number, what the swarm knows is
read from the study's trials, and every random draw is a function of (seed, particle, cycle, parameter). A study
that was killed, or is shared by several workers, is therefore the same swarm.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from clusterprune.errors import ArgumentError
from clusterprune.search.integers import KEY, integers, movable, movable_of, sign_of, to_allowed
from clusterprune.search.trials import slots


def initial_position(start: float, particle: int, draw: int) -> float:
    """Return where a particle starts, c = c' + n·rand{-1, 0, 1} (Eq. 3).

    Parameters
    ----------
    start
        c', the width that clustering gave.
    particle
        n, counted from 1: later particles start farther away.
    draw
        -1, 0 or 1.
    """
    return start + particle * draw


def inertia_weight(cycle: int, cycles: int, highest: float, lowest: float) -> float:
    """Return w = (w_max - w_min)·(T - t)/T + w_min (Eq. 6); it stays at w_min after cycle T."""
    return (highest - lowest) * max(cycles - cycle, 0) / cycles + lowest


def next_velocity(
    velocity: float,
    position: float,
    own_best: float,
    swarm_best: float,
    *,
    inertia: float,
    weights: tuple[float, float],
    draws: tuple[float, float],
    limit: float,
) -> float:
    """Return v = w·v + a1·rand·(pbest - c) + a2·rand·(gbest - c), clipped to ±limit (Eq. 5).

    Parameters
    ----------
    velocity, position
        Of the cycle before.
    own_best, swarm_best
        pbest and gbest.
    inertia
        w.
    weights
        a1 and a2.
    draws
        The two random numbers in [0, 1).
    limit
        v_max.
    """
    own = weights[0] * draws[0] * (own_best - position)
    swarm = weights[1] * draws[1] * (swarm_best - position)
    return float(np.clip(inertia * velocity + own + swarm, -limit, limit))


def next_position(position: float, velocity: float, rate: float) -> float:
    """Return c = c + r·v (Eq. 7), with the velocity of this cycle, before rounding."""
    return position + rate * velocity


@dataclass(frozen=True, eq=False)
class ParticleSwarmSampler(BaseSampler):
    """Sample integer parameters as ACP's particle swarm does, in any Optuna study with one objective.

    A study of particles · (cycles + 1) trials is one whole search: trial k is particle k mod N of cycle k div N.
    A trial that repeats a failed one (marked as `optuna.storages.RetryHeartbeatStaleTrialCallback` marks it) takes
    the place of that trial and no place of its own. Further trials are further cycles at the least inertia.

    A trial that has no value counts as a move without a fitness. The bests are those of the trials that are
    complete when a particle moves; where two are equal the earlier stays (Algorithm 1 asks for greater).

    Attributes
    ----------
    start
        By parameter, the value around which the swarm starts (c' of Eq. 3): what clustering gave. A parameter
        without one starts in the middle of its range.
    particles, cycles
        N and T.
    a1, a2
        Pull towards a particle's own best and towards the swarm's.
    inertia
        w at the start and at the end.
    velocity_max
        Largest speed in each dimension; first velocities are uniform within it. The paper names no value, the released
        code has 2: with r, widths move by at most four channels a cycle. None, which is ours, is a tenth of the
        parameter's range, and at least 1.
    r
        How far a velocity carries.
    seed
        Seeds every draw. The two random numbers of Eq. 5 are drawn anew for each dimension.

    Raises
    ------
    ArgumentError
        For a value out of range, or on use, for a parameter that is no integer or a study of several objectives.

    Examples
    --------
    >>> import optuna
    >>> from clusterprune.search import ParticleSwarmSampler
    >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
    >>> study = optuna.create_study(direction="maximize", sampler=ParticleSwarmSampler(start={"x": 20}))
    >>> study.optimize(lambda trial: -((trial.suggest_int("x", 1, 64) - 30) ** 2), n_trials=36)
    >>> study.best_params
    {'x': 30}
    """

    start: Mapping[str, int] = field(default_factory=dict)
    particles: int = 6
    cycles: int = 5
    a1: float = 2.0
    a2: float = 2.0
    inertia: tuple[float, float] = (0.9, 0.4)
    velocity_max: float | None = 2.0
    r: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("particles", "cycles"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ArgumentError(f"{name} must be a whole number of at least 1, but got {name}={value!r}")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ArgumentError(f"seed must be a whole number of at least 0, but got seed={self.seed!r}")
        if self.velocity_max is not None and not self.velocity_max > 0:
            raise ArgumentError(f"velocity_max must be positive or None, but got velocity_max={self.velocity_max!r}")
        if len(self.inertia) != 2 or not self.inertia[0] >= self.inertia[1] >= 0:
            raise ArgumentError(f"inertia must be (highest, lowest), neither negative, but got {self.inertia!r}")

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the integer parameters of the finished trials; those of the first ones are sampled one by one."""
        return movable_of(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Move a particle in all dimensions that are known, and note its position and velocity."""
        if not search_space:
            return {}
        seen = self._look(study, trial)
        moves = {name: self._move(name, distribution, seen) for name, distribution in search_space.items()}
        self._remember(study, trial, seen, moves)
        return {name: position for name, (position, _) in moves.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> int:
        """Move a particle in one dimension."""
        seen = self._look(study, trial)
        move = self._move(param_name, param_distribution, seen)
        # The velocities of cycle 0 are drawn; anyone can draw them again.
        if seen.cycle:
            self._remember(study, trial, seen, {param_name: move})
        return move[0]

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Note where the particle was in the end, also where a parameter was given rather than sampled."""
        del state, values
        record = trial.system_attrs.get(KEY, {})
        if record.get("position") == trial.params:
            return
        seen = self._look(study, trial)
        known = record.get("velocity", {})
        moves = {
            name: (value, known.get(name, self._initial_velocity(name, trial.distributions[name], seen.particle)))
            for name, value in trial.params.items()
            if movable(trial.distributions[name])
        }
        self._remember(study, trial, seen, moves)

    def _look(self, study: Study, trial: FrozenTrial) -> "_Seen":
        """Read from the study what a particle knows when it moves."""
        sign = sign_of(study, "a particle swarm")
        trials = study.get_trials(deepcopy=False)
        slot = slots(trials)
        cycle, index = divmod(slot[trial.number], self.particles)
        mine = [t for t in trials if slot[t.number] % self.particles == index]
        complete = sorted((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: slot[t.number])
        own = [t for t in complete if slot[t.number] % self.particles == index]
        return _Seen(
            particle=index + 1,
            cycle=cycle,
            before=sorted(
                (t for t in mine if slot[t.number] // self.particles < cycle),
                key=lambda t: (-slot[t.number], -t.number),
            ),
            own_best=_positions(_best(own, sign)),
            swarm_best=_positions(_best(complete, sign)),
        )

    def _move(self, name: str, distribution: BaseDistribution, seen: "_Seen") -> tuple[int, float]:
        """Return a particle's new position and velocity in one dimension (Algorithm 1, lines 4-5 or 12-13)."""
        distribution = integers(name, distribution)
        if seen.cycle == 0:
            return self._initial_position(name, distribution, seen.particle), self._initial_velocity(
                name, distribution, seen.particle
            )
        position, velocity = self._before(name, distribution, seen)
        draws = self._generator(seen.particle, seen.cycle, name).random(2)
        velocity = next_velocity(
            velocity,
            position,
            seen.own_best.get(name, position),
            seen.swarm_best.get(name, position),
            inertia=inertia_weight(seen.cycle, self.cycles, *self.inertia),
            weights=(self.a1, self.a2),
            draws=(float(draws[0]), float(draws[1])),
            limit=self._limit(distribution),
        )
        return to_allowed(next_position(position, velocity, self.r), distribution), velocity

    def _before(self, name: str, distribution: IntDistribution, seen: "_Seen") -> tuple[int, float]:
        """Return position and velocity of the cycle before, or of the last one that is known."""
        for trial in seen.before:
            position = _positions(trial).get(name)
            velocity = trial.system_attrs.get(KEY, {}).get("velocity", {}).get(name)
            if position is not None and velocity is not None:
                return position, velocity
        return self._initial_position(name, distribution, seen.particle), self._initial_velocity(
            name, distribution, seen.particle
        )

    def _initial_position(self, name: str, distribution: IntDistribution, particle: int) -> int:
        start = self.start.get(name, (distribution.low + distribution.high) // 2)
        draw = int(self._generator(particle, 0, name).integers(-1, 2))
        return to_allowed(initial_position(start, particle, draw), distribution)

    def _initial_velocity(self, name: str, distribution: BaseDistribution, particle: int) -> float:
        generator = self._generator(particle, 0, name)
        generator.integers(-1, 2)  # the draw of the position comes first
        limit = self._limit(integers(name, distribution))
        return float(generator.uniform(-limit, limit))

    def _limit(self, distribution: IntDistribution) -> float:
        if self.velocity_max is not None:
            return self.velocity_max
        return max(1.0, 0.1 * (distribution.high - distribution.low))

    def _generator(self, particle: int, cycle: int, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, particle, cycle, zlib.crc32(name.encode())])

    def _remember(
        self, study: Study, trial: FrozenTrial, seen: "_Seen", moves: Mapping[str, tuple[int, float]]
    ) -> None:
        known = trial.system_attrs.get(KEY, {})
        record = {
            "particle": seen.particle,
            "cycle": seen.cycle,
            "position": {**known.get("position", {}), **{name: position for name, (position, _) in moves.items()}},
            "velocity": {**known.get("velocity", {}), **{name: velocity for name, (_, velocity) in moves.items()}},
        }
        # As Optuna's own samplers do: there is no public way to write an attribute of a frozen trial.
        study._storage.set_trial_system_attr(trial._trial_id, KEY, record)


@dataclass(frozen=True)
class _Seen:
    """What a particle knows: its place, its earlier trials (latest first), and the bests so far."""

    particle: int
    cycle: int
    before: list[FrozenTrial]
    own_best: Mapping[str, int]
    swarm_best: Mapping[str, int]


def _best(trials: Sequence[FrozenTrial], sign: int) -> FrozenTrial | None:
    """Return the first of the trials with the greatest value (`sign` 1) or the least (-1)."""
    return max(trials, key=lambda trial: sign * (trial.value or 0.0), default=None)


def _positions(trial: FrozenTrial | None) -> Mapping[str, int]:
    """Return where a trial was: its parameters, or before those are set, what its record says."""
    return {} if trial is None else {**trial.system_attrs.get(KEY, {}).get("position", {}), **trial.params}

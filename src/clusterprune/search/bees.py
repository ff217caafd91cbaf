"""The artificial bee colony of ABCPruner (Lin et al. 2020, arXiv 2001.08565) as an Optuna sampler.

n food sources are structures that the colony knows. In every cycle one employed bee looks near each of them; then n
onlookers look near those that are worth the most. Whoever finds better moves the source there. A source near which
nothing better was found for a while is given up, and a scout draws another.

As with :mod:`clusterprune.search.swarm`, nothing lives in memory: whose turn a trial is follows from its place, and
what the colony knows is read from the study's trials.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from clusterprune.errors import ArgumentError
from clusterprune.search.integers import KEY, integers, movable_of, sign_of, to_allowed
from clusterprune.search.trials import slots


def neighbour(position: float, other: float, draw: float) -> float:
    """Return where a bee looks: c + r·(c − c_other), with r, the draw, in [-1, 1), before rounding."""
    return position + draw * (position - other)


def attraction(values: Sequence[float]) -> np.ndarray:
    """Return how likely onlookers choose each source: 0.9 · f / max f + 0.1, divided by the sum.

    Where fitnesses are negative, that of the worst counts as 0.
    """
    worth = np.asarray(values) - min(0.0, *values)
    chances = 0.9 * worth / max(float(worth.max()), 1e-30) + 0.1
    return chances / chances.sum()


@dataclass(frozen=True, eq=False)
class BeeColonySampler(BaseSampler):
    """Sample integer parameters as a colony of bees does, in any Optuna study with one objective.

    A study of foods · (1 + 2 · cycles) trials is one whole search. Sources start anywhere in their ranges.

    Attributes
    ----------
    foods
        n, how many structures the colony knows; at least 2.
    limit
        How often nothing better is found near a source until it is given up.
    changes
        In how many dimensions a bee's place differs from its source's, as in the released code.
    seed
        Seeds every draw.

    Raises
    ------
    ArgumentError
        For a value out of range, or on use, for a parameter that is no integer or a study of several objectives.

    Examples
    --------
    >>> import optuna
    >>> from clusterprune.search import BeeColonySampler
    >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
    >>> study = optuna.create_study(direction="maximize", sampler=BeeColonySampler(foods=6))
    >>> study.optimize(lambda trial: -((trial.suggest_int("x", 1, 64) - 30) ** 2), n_trials=66)
    >>> abs(study.best_params["x"] - 30) <= 2
    True
    """

    foods: int = 6
    limit: int = 2
    changes: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        for name, least in (("foods", 2), ("limit", 1), ("changes", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ArgumentError(f"{name} must be a whole number of at least {least}, but got {name}={value!r}")

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the integer parameters of the finished trials; those of the first ones are sampled one by one."""
        return movable_of(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Send a bee, and note to which source."""
        if not search_space:
            return {}
        turn = self._turn(study, trial)
        draws = {name: self._generator(turn.slot, name).random() for name in search_space}
        moved = sorted(draws, key=lambda name: draws[name])[: self.changes]
        return {name: self._place(name, d, turn, moves=name in moved) for name, d in search_space.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> int:
        """Send a bee in one dimension."""
        return self._place(param_name, param_distribution, self._turn(study, trial), moves=True)

    def _place(self, name: str, distribution: BaseDistribution, turn: "_Turn", *, moves: bool) -> int:
        allowed = integers(name, distribution)
        draws = self._generator(turn.slot, name)
        draws.random()  # the draw that decides whether this dimension changes comes first
        if turn.source is None or name not in turn.source:
            return to_allowed(draws.uniform(allowed.low, allowed.high), allowed)
        here = turn.source[name]
        there = neighbour(here, turn.other.get(name, here), draws.uniform(-1, 1)) if moves else here
        return to_allowed(there, allowed)

    def _turn(self, study: Study, trial: FrozenTrial) -> "_Turn":
        """Return whose turn a trial is, and where it looks; decided once, when its first parameter is drawn."""
        sign = sign_of(study, "a bee colony")
        trials = study.get_trials(deepcopy=False)
        slot = slots(trials)
        mine = slot[trial.number]
        noted = next(t for t in trials if t.number == trial.number).system_attrs.get(KEY)
        if noted is None:
            noted = self._decide(mine, self._known(trials, slot, sign))
            # As Optuna's own samplers do: there is no public way to write an attribute of a frozen trial.
            study._storage.set_trial_system_attr(trial._trial_id, KEY, noted)
        return _Turn(mine, noted["source"], noted["other"])

    def _decide(self, slot: int, known: Mapping[int, "_Source"]) -> dict[str, Any]:
        """Return which source a place looks near, and which other source it looks at; no source for a scout."""
        draws = self._generator(slot, "")
        food, begins = slot % self.foods, slot < self.foods
        onlooks = not begins and (slot // self.foods) % 2 == 0
        if onlooks and known:
            numbers = sorted(known)
            food = int(draws.choice(numbers, p=attraction([known[number].value for number in numbers])))
        others = [number for number in sorted(known) if number != food]
        if begins or food not in known or known[food].failures >= self.limit or not others:
            return {"food": food, "source": None, "other": {}}
        other = known[int(draws.choice(others))].place
        return {"food": food, "source": dict(known[food].place), "other": dict(other)}

    def _known(self, trials: Sequence[FrozenTrial], slot: Mapping[int, int], sign: int) -> dict[int, "_Source"]:
        """Return the sources as they are now, from what bees found in the order of their places."""
        known: dict[int, _Source] = {}
        complete = [t for t in trials if t.state == TrialState.COMPLETE]
        for trial in sorted(complete, key=lambda t: slot[t.number]):
            value = sign * (trial.value or 0.0)
            noted = trial.system_attrs.get(KEY, {"food": slot[trial.number] % self.foods, "source": None})
            before = known.get(noted["food"])
            if before is None or noted["source"] is None or value > before.value:
                known[noted["food"]] = _Source(trial.params, value, 0)
            else:
                known[noted["food"]] = _Source(before.place, before.value, before.failures + 1)
        return known

    def _generator(self, slot: int, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, slot, zlib.crc32(name.encode())])


@dataclass(frozen=True)
class _Source:
    """A structure that the colony knows, its fitness (more is better), and how often nothing better was found near."""

    place: Mapping[str, Any]
    value: float
    failures: int


@dataclass(frozen=True)
class _Turn:
    """A place of the search, the source that is looked near (None for a scout), and another one."""

    slot: int
    source: Mapping[str, Any] | None
    other: Mapping[str, Any]

"""What samplers that move through whole numbers have in common, whatever draws them."""

import numpy as np
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from clusterprune.errors import ArgumentError

KEY = "swarm"
"""System attribute of a trial: particle, cycle, position and velocity; of a bee, where it looks."""


def to_allowed(position: float, distribution: IntDistribution) -> int:
    """Round to the nearest value that a distribution allows, its ends included."""
    low, high, step = distribution.low, distribution.high, distribution.step
    return int(np.clip(low + step * round((position - low) / step), low, high))


def sign_of(study: Study, mover: str) -> int:
    """Return 1 where more is better, and -1 where less is.

    Raises
    ------
    ArgumentError
        If the study has several objectives; `mover` says who follows one alone.
    """
    if len(study.directions) != 1:
        raise ArgumentError(
            f"{mover} follows one objective, but the study has {len(study.directions)}; use NSGA-II for several"
        )
    return 1 if study.direction == StudyDirection.MAXIMIZE else -1


def movable_of(study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
    """Return the integer parameters, with more than one value, of the finished trials but this one."""
    space: dict[str, BaseDistribution] = {}
    for earlier in study.get_trials(deepcopy=False):
        if earlier.number != trial.number and earlier.state.is_finished():
            space |= {name: d for name, d in earlier.distributions.items() if movable(d)}
    return dict(sorted(space.items()))


def movable(distribution: BaseDistribution) -> bool:
    """Tell whether a parameter takes whole numbers, and more than one."""
    return isinstance(distribution, IntDistribution) and not distribution.single()


def integers(name: str, distribution: BaseDistribution) -> IntDistribution:
    """Return the distribution of a parameter that takes whole numbers.

    Raises
    ------
    ArgumentError
        If it takes others.
    """
    if not isinstance(distribution, IntDistribution):
        raise ArgumentError(
            f"a swarm moves through integers, but parameter {name!r} is a {type(distribution).__name__}; "
            "use suggest_int, or another sampler"
        )
    return distribution

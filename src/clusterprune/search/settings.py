"""What a search was begun with: checked, stored with the study, and compared when others join or it goes on."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage

from clusterprune.errors import ArgumentError
from clusterprune.files.credentials import hidden
from clusterprune.search.bees import BeeColonySampler
from clusterprune.search.storage import quiet
from clusterprune.search.swarm import ParticleSwarmSampler

SamplerName = Literal["swarm", "bees", "tpe", "nsga2", "random"]
_OURS: dict[str, type[ParticleSwarmSampler | BeeColonySampler]] = {
    kind.__name__: kind for kind in (ParticleSwarmSampler, BeeColonySampler)
}
"""Samplers that follow one objective, and whose settings say all that a worker must know of them."""

_SETTINGS = "clusterprune"
"""User attribute of a study: what a worker must know to join."""
_ABOUT = "clusterprune.about"
"""User attribute of a study: what whoever began it wanted to tell workers."""


def check_settings(
    space: Mapping[str, Sequence[int]],
    start: Mapping[str, int],
    sampler: SamplerName | BaseSampler,
    evaluations: int,
    directions: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Check the arguments of a search, and return them as what is stored with the study."""
    if not space:
        raise ArgumentError("space is empty; give the least and greatest value of at least one width")
    ranges = {}
    for name, bounds in space.items():
        low, high, step = (*bounds, 1)[:3] if len(bounds) in (2, 3) else (1, 0, 0)
        if not (low <= high and step >= 1 and (high - low) % step == 0):
            raise ArgumentError(
                f"space[{name!r}] must be (least, greatest) or (least, greatest, step), the step dividing their "
                f"difference, but got {tuple(bounds)}"
            )
        ranges[name] = [int(low), int(high), int(step)]
    if start.keys() != space.keys():
        different = ", ".join(sorted(start.keys() ^ space.keys()))
        raise ArgumentError(f"start and space must name the same widths, but only one of them has {different}")
    for name, (low, high, step) in ranges.items():
        if not low <= start[name] <= high or (start[name] - low) % step:
            raise ArgumentError(f"start[{name!r}]={start[name]} is not in space[{name!r}]={tuple(space[name])}")
    if evaluations < 1:
        raise ArgumentError(f"evaluations must be at least 1, but got evaluations={evaluations}")
    if not directions or not set(directions) <= {"maximize", "minimize"}:
        raise ArgumentError(f"directions must each be 'maximize' or 'minimize', but got directions={tuple(directions)}")
    if not isinstance(sampler, BaseSampler) and sampler not in get_args(SamplerName):
        raise ArgumentError(
            f"sampler must be one of {', '.join(map(repr, get_args(SamplerName)))}, or an Optuna sampler, but got "
            f"sampler={sampler!r}"
        )
    if sampler == "swarm":
        sampler = ParticleSwarmSampler(dict(start), cycles=max(1, math.ceil(evaluations / 6) - 1), seed=seed)
    elif sampler == "bees":
        sampler = BeeColonySampler(seed=seed)
    about: dict[str, Any] = {"name": sampler if isinstance(sampler, str) else type(sampler).__name__}
    if isinstance(sampler, tuple(_OURS.values())):
        if len(directions) > 1:
            raise ArgumentError(
                f"sampler={about['name']!r} follows one objective, but directions has {len(directions)}; use 'nsga2'"
            )
        # As JSON gives it back, so that it can be compared.
        about |= json.loads(json.dumps(asdict(sampler)))
    return {
        "space": ranges,
        "start": {name: int(width) for name, width in start.items()},
        "evaluations": evaluations,
        "directions": list(directions),
        "seed": seed,
        "sampler": about,
    }


def read_study(storage: BaseStorage, name: str) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
    """Return the settings of a study and what was told about it; None where there is none, or not yet."""
    try:
        with quiet():
            study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return None
    attributes = study.user_attrs
    if _SETTINGS not in attributes and study.get_trials(deepcopy=False):
        raise ArgumentError(f"the study {name!r} was not begun by search; name another")
    return (attributes[_SETTINGS], attributes.get(_ABOUT)) if _SETTINGS in attributes else None


def open_study(
    storage: BaseStorage, name: str, settings: dict[str, Any] | None, about: Mapping[str, Any] | None = None
) -> tuple[optuna.Study, dict[str, Any]]:
    """Open a study, create it where `settings` are given, and return it with the settings it was created with."""
    with quiet():
        if settings is None:
            try:
                study = optuna.load_study(study_name=name, storage=storage)
            except KeyError as error:
                known = ", ".join(optuna.get_all_study_names(storage)) or "none"
                raise ArgumentError(
                    f"name={name!r} is no study of this storage, which holds: {known}. Begin it with search."
                ) from error
        else:
            study = optuna.create_study(
                study_name=name, storage=storage, directions=settings["directions"], load_if_exists=True
            )
    found = study.user_attrs.get(_SETTINGS)
    if found is None and settings is not None and not study.get_trials(deepcopy=False):
        if about is not None:
            study.set_user_attr(_ABOUT, hidden(about))
        # Last: whoever finds the settings finds all.
        study.set_user_attr(_SETTINGS, settings)
        found = settings
    if found is None:
        raise ArgumentError(f"the study {name!r} was not begun by search; use another name")
    if settings is not None and found != settings:
        changed = [key for key in settings if settings[key] != found.get(key)]
        different = ", ".join(f"{key}={settings[key]!r} (was {found.get(key)!r})" for key in changed)
        raise ArgumentError(
            f"the study {name!r} exists and was begun with other settings: {different}. Use the same to go on "
            "with it, or another name or storage for a new search."
        )
    return study, found


def sampler_of_slot(
    sampler: SamplerName | BaseSampler | None, settings: Mapping[str, Any]
) -> Callable[[int], BaseSampler]:
    """Return a function that gives the sampler of a slot.

    Those of Optuna draw from a generator in memory, which a kill loses. One that is seeded by the slot draws the
    same again, and everything else they know is in the study.
    """
    about = settings["sampler"]
    if isinstance(sampler, BaseSampler):
        return lambda _: sampler
    if about["name"] in _OURS:
        made = _OURS[about["name"]](**{key: value for key, value in about.items() if key != "name"})
        return lambda _: made
    population = max(4, settings["evaluations"] // 6)
    makers: dict[str, Callable[[int], BaseSampler]] = {
        "tpe": lambda seed: TPESampler(seed=seed),
        "nsga2": lambda seed: NSGAIISampler(population_size=population, seed=seed),
        "random": lambda seed: RandomSampler(seed=seed),
    }
    if about["name"] not in makers:
        raise ArgumentError(f"the study samples with {about['name']}; give it as sampler=")
    make = makers[about["name"]]
    return lambda slot: make(int(np.random.SeedSequence([settings["seed"], slot]).generate_state(1)[0]))

"""Searching as an Optuna study: every structure a trial, shared by any number of workers, resumed after any kill."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from sqlalchemy.exc import SQLAlchemyError

from clusterprune.search.searcher import Fitness, OnEvaluation, Repair, Searcher
from clusterprune.search.settings import SamplerName, check_settings, open_study, read_study, sampler_of_slot
from clusterprune.search.storage import close_storage, failures_named, is_missing_file, open_storage, storage_url
from clusterprune.search.trials import SearchResult


def search(
    space: Mapping[str, Sequence[int]],
    fitness: Fitness,
    *,
    start: Mapping[str, int],
    storage: str | Path | None = None,
    name: str = "search",
    sampler: SamplerName | BaseSampler = "swarm",
    evaluations: int = 36,
    directions: Sequence[Literal["maximize", "minimize"]] = ("maximize",),
    seed: int = 0,
    repair: Repair | None = None,
    about: Mapping[str, Any] | None = None,
    progress: OnEvaluation | None = None,
) -> SearchResult:
    """Search for the widths of greatest fitness, or go on with a search that was stopped.

    With one worker the same seed gives the same trials, also when the search was killed and resumed. It ends when
    every place is settled, including those that other workers have claimed.

    Parameters
    ----------
    space
        By name of a width: its least and greatest value, and optionally the step between values.
    fitness
        Maps a structure to a number, or to a tuple with one number per direction. Only finite numbers count; an
        exception or NaN makes a failed trial, which the history reports.
    start
        The structure to start from: the centre of the swarm, the first structure of any other sampler.
    storage
        Path of a SQLite file or an Optuna storage URL; no file, message or study repeats its password. Default: the
        memory, from which nothing can be resumed.
    name
        Of the study in the storage.
    sampler
        "swarm" (6 particles as ACP moves them, as many cycles as the evaluations allow), "bees" (a colony with 6 food
        sources), "tpe", "nsga2", "random" or any Optuna sampler. The named ones are seeded anew for each place; another
        one's memory is its own affair.
    evaluations
        Number of places, duplicates included: particles · (cycles + 1) for a whole swarm.
    directions
        One per objective; "swarm" and "bees" know one objective only.
    repair
        Maps a sampled structure to the nearest permitted one, which is evaluated and reported in its place.
    about
        What a worker must know besides, as JSON has it; kept, without passwords, with a study that this call begins
        (:func:`study_header`).
    progress
        Called with an :class:`Evaluation`, the number of settled places and their total.

    Raises
    ------
    ArgumentError
        For a bad argument, a storage that cannot be opened, or a study of that name with other settings.
    OutputError
        If the folder of a SQLite file cannot be made, or the storage fails while the search runs.
    ClusterpruneError
        If the fitness fails for the first three structures, or for all.

    Examples
    --------
    >>> found = search({"a": (1, 16), "b": (1, 32)}, lambda w: -abs(w["a"] - 9) - abs(w["b"] - 20),
    ...                start={"a": 8, "b": 16})
    >>> len(found.history), found.value > -8
    (36, True)
    """
    settings = check_settings(space, start, sampler, evaluations, directions, seed)
    url = storage_url(storage)
    return _run(url, name, fitness, sampler, settings, progress, repair, about)


@dataclass(frozen=True)
class StudyHeader:
    """A search as whoever wants to join it finds it.

    Attributes
    ----------
    start
        The structure that it starts from.
    about
        What :func:`search` was given to tell; None if it was given nothing.
    """

    start: Mapping[str, int]
    about: Mapping[str, Any] | None


def study_header(storage: str | Path, name: str) -> StudyHeader | None:
    """Look for a search; None while there is no such study, or no such file.

    Raises
    ------
    ArgumentError
        If the storage cannot be opened, or the study is none of :func:`search`.
    """
    url = storage_url(storage)
    if is_missing_file(url):
        return None
    opened = open_storage(url)
    try:
        with failures_named(url):
            found = read_study(opened, name)
    finally:
        close_storage(opened)
    return None if found is None else StudyHeader(found[0]["start"], found[1])


def work(
    storage: str | Path,
    name: str,
    fitness: Fitness,
    *,
    sampler: BaseSampler | None = None,
    repair: Repair | None = None,
    progress: OnEvaluation | None = None,
) -> SearchResult:
    """Join a search that :func:`search` has begun, from this process or any machine; return when it is done.

    Parameters
    ----------
    storage, name
        Those of the search.
    fitness, repair
        The same as the search's.
    sampler
        The search's sampler, where it was none of the named ones and no swarm of ours.

    Raises
    ------
    ArgumentError
        If the storage holds no such search.
    """
    return _run(storage_url(storage), name, fitness, sampler, None, progress, repair)


def _run(
    url: str,
    name: str,
    fitness: Fitness,
    sampler: SamplerName | BaseSampler | None,
    settings: dict[str, Any] | None,
    progress: OnEvaluation | None,
    repair: Repair | None,
    about: Mapping[str, Any] | None = None,
) -> SearchResult:
    storage = open_storage(url)
    try:
        with failures_named(url):
            return _search(storage, url, name, fitness, sampler, settings, progress, repair, about)
    finally:
        with contextlib.suppress(SQLAlchemyError):
            close_storage(storage)


def _search(
    storage: BaseStorage,
    url: str,
    name: str,
    fitness: Fitness,
    sampler: SamplerName | BaseSampler | None,
    settings: dict[str, Any] | None,
    progress: OnEvaluation | None,
    repair: Repair | None,
    about: Mapping[str, Any] | None,
) -> SearchResult:
    study, agreed = open_study(storage, name, settings, about)
    worker = Searcher(storage, study, agreed, sampler_of_slot(sampler, agreed), fitness, progress, repair)
    worker.run()
    return worker.result(url)

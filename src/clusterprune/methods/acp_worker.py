"""Taking part in the search of an ACP run, from this process or any machine."""

from collections.abc import Mapping
from typing import Any

from clusterprune.errors import ArgumentError
from clusterprune.graph import trace
from clusterprune.methods.acp import StructureFitness, candidate_training
from clusterprune.methods.pipeline import Report, Task
from clusterprune.methods.settings import read_method
from clusterprune.search import Progress, SearchResult, work
from clusterprune.train import TrainConfig


def join(
    task: Task,
    settings: Mapping[str, Any],
    *,
    training: TrainConfig,
    seed: int = 0,
    start: Mapping[str, int] | None = None,
    report: Report | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Join the search that :func:`clusterprune.methods.pipeline.compress` has begun; return when it is over.

    Parameters
    ----------
    task, settings, training, seed
        As there; `settings` names the storage and the study.
    start
        C' as the search has it (:func:`clusterprune.search.begun`); None looks for it anew.
    report
        Called with (phase, done, total) before the first structure.
    progress
        Called with every structure that this worker has evaluated, as in :func:`clusterprune.search.work`.

    Raises
    ------
    ArgumentError
        If a setting is not accepted, there is no storage among them, or it holds no such search.
    """
    config, more = read_method("acp", settings, seed=seed)
    if more.storage is None:
        raise ArgumentError("storage is missing; name the one that the run keeps its search in")
    if task.validation is None:
        raise ArgumentError("the task has no validation images to compare structures on; hold some out")
    training = TrainConfig(**{**training.model_dump(), "seed": seed})
    fitness = StructureFitness(
        trace(task.model, task.example, approximate=task.approximate),
        task.train,
        task.validation,
        config=config,
        training=candidate_training(training, more.fitness_epochs),
        mean=task.mean,
        std=task.std,
        factory=task.factory,
        start=start,
        progress=report,
    )
    return work(more.storage, more.study, fitness, repair=fitness.repair, progress=progress)

"""What a model is worked on for: the task, found from the data where it is not given."""

from typing import Any

import torch
from torch import nn

from clusterprune.data import Split
from clusterprune.errors import ArgumentError
from clusterprune.graph.throwaway import evaluating
from clusterprune.models.heads import head_of
from clusterprune.models.spec import ModelSpec
from clusterprune.tasks import TASKS, Task


def task_on(
    spec: ModelSpec,
    model: nn.Module,
    classes: int | None,
    train: Split,
    validation: Split | None = None,
    *,
    name: str | None = None,
    whole: Split | None = None,
) -> Task:
    """Return what a model is for, on images.

    Parameters
    ----------
    classes
        That the model was built with.
    name
        Of the task; None says detection of images with boxes, and classification of others.
    train, validation, whole
        As of any :class:`clusterprune.tasks.Task`.

    Raises
    ------
    ArgumentError, ModelError
        There is no such task, or the model or the images are not for it.
    """
    name = name or ("detection" if train.boxes is not None else "classification")
    if name not in TASKS:
        raise ArgumentError(f"task={name!r} is not known; choose from {', '.join(TASKS)}")
    own: dict[str, Any] = {}
    if name == "plain":
        own = {"reference": model}
    elif name == "detection":
        # Of the network as it is built: a compact one may be a graph that does not know its boxes any more.
        own = {"head": (spec.head or head_of)(spec.build(classes, seed=0))}
    task = TASKS[name](train, validation, mean=spec.mean, std=spec.std, whole=whole, **own)
    if name == "detection":  # before any long work; a classification was fitted to the outputs
        example = spec.example().to(next(model.parameters()))
        with evaluating(model), torch.no_grad():
            task.check(model(example), example)
    return task


def classes_of(images: Split) -> int:
    """Return how many classes a network for these images is built with: of a detector, one more for the background."""
    return len(images.classes) + (images.boxes is not None)

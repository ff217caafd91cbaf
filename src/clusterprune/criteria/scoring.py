"""Asking a criterion, and checking what it answers."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from clusterprune.arguments import shown, type_name
from clusterprune.criteria._base import ScoreInputs
from clusterprune.criteria._registry import ScoreFunction, name_of
from clusterprune.errors import ArgumentError


def checked_scores(criterion: ScoreFunction, inputs: ScoreInputs) -> dict[str, Tensor]:
    """Score every channel of the groups: float64 (channels,) on the CPU, by name of group.

    Raises
    ------
    ArgumentError
        What the criterion returns is not a finite score of at least 0 for every channel; the message names the group.
    """
    name = name_of(criterion)
    found = cast("object", criterion(inputs))  # a user's, which may return anything
    if not isinstance(found, Mapping):
        raise ArgumentError(
            f"criterion={name!r} must return a dictionary of scores by name of group, but returned a {type_name(found)}"
        )
    known = cast("Mapping[str, object]", found)
    return {group.name: _checked(name, group.name, group.width, known.get(group.name)) for group in inputs.groups}


def _checked(name: str, group: str, width: int, scores: object) -> Tensor:
    if not isinstance(scores, Tensor) or scores.shape != (width,):
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else shown(scores)
        raise ArgumentError(
            f"criterion={name!r} must return a tensor with one score for each of the {width} channels of {group}, but "
            f"returned {got}"
        )
    scores = scores.detach().cpu().double()
    wrong = ~torch.isfinite(scores) | (scores < 0)
    if wrong.any():
        raise ArgumentError(
            f"criterion={name!r} must return finite scores of at least 0, but for channel {int(wrong.nonzero()[0])} of "
            f"{group} it returned {float(scores[wrong][0]):g}; take magnitudes, or add what makes the lowest 0"
        )
    return scores

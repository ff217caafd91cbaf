"""Asking a similarity, and checking what it answers."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from clusterprune.arguments import shown, type_name
from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.images import Images, Progress
from clusterprune.similarity._base import ChannelPoints, Similarity, check_finite, to_float64


def checked_points(
    similarity: Similarity,
    graph: ChannelGraph,
    groups: Sequence[Group],
    images: Images | None,
    progress: Progress | None = None,
) -> dict[str, ChannelPoints]:
    """Return every group's channels as points, by its name, in float64 and on the CPU.

    Raises
    ------
    ArgumentError
        The similarity does not return a :class:`ChannelPoints` of finite numbers for every group, or its distances are
        none; the message names the group.
    """
    found = cast("object", similarity.points(graph, groups, images, progress))
    if not isinstance(found, Mapping):
        raise ArgumentError(
            f"similarity={shown(similarity)} must return ChannelPoints by name of group, but its method points "
            f"returned a {type_name(found)}"
        )
    known = cast("Mapping[str, object]", found)
    return {group.name: _checked(shown(similarity), group, known.get(group.name)) for group in groups}


def _checked(name: str, group: Group, points: object) -> ChannelPoints:
    if not isinstance(points, ChannelPoints):
        raise ArgumentError(
            f"similarity={name} must return ChannelPoints for every group, but for {group.name} it returned "
            f"{shown(points)}"
        )
    distances = _on_cpu(name, group, "distances", points.distances)
    if distances.shape != (group.width, group.width):
        raise ArgumentError(
            f"similarity={name} must return distances between the {group.width} channels of {group.name}, but returned "
            f"shape {tuple(distances.shape)}"
        )
    if (distances < 0).any() or distances.diagonal().any() or not torch.equal(distances, distances.T):
        raise ArgumentError(
            f"similarity={name} must return distances that are symmetric, at least 0, and 0 from a channel to itself, "
            f"but those of {group.name} are not"
        )
    vectors = None if points.vectors is None else _on_cpu(name, group, "vectors", points.vectors)
    if vectors is not None and (vectors.ndim != 2 or len(vectors) != group.width):
        raise ArgumentError(
            f"similarity={name} must return one vector for each of the {group.width} channels of {group.name}, but "
            f"returned shape {tuple(vectors.shape)}"
        )
    return ChannelPoints(vectors, distances)


def _on_cpu(name: str, group: Group, what: str, values: object) -> Tensor:
    if not isinstance(values, Tensor):
        raise ArgumentError(
            f"similarity={name} must return {what} of {group.name} as a tensor, but returned {shown(values)}"
        )
    check_finite(f"{what} of {group.name}", values)
    return to_float64(values).cpu()

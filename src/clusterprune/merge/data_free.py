"""Working without images: noise that batch norm turns into plausible features.

A trained network's batch norms say what its features look like: channel i has mean β_i and standard
deviation γ_i before the activation. Noise images run through the network with every batch norm
standardising over the batch have exactly those statistics, and their correlations come from the filters.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph
from clusterprune.graph.ops import CallEdit


def noise_images(graph: ChannelGraph, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return standardised noise with the falling spectrum of photographs, in the shape of the example's inputs.

    Raises
    ------
    ArgumentError
        If an input is not floating-point, so that no noise can stand for it.
    """
    inputs: list[Tensor] = []
    for value in graph.example_tensors:
        if not value.is_floating_point():
            raise ArgumentError(f"images=None needs floating-point inputs, but one has {value.dtype}; give images")
        shape = (count, *value.shape[1:])
        noise = torch.randn(shape, generator=generator)
        if value.ndim == 4:
            # Noise of every coarser resolution, equally strong in each octave.
            for shrink in (2, 4, 8, 16, 32):
                if min(shape[2:]) >= shrink:
                    coarse = [max(1, side // shrink) for side in shape[2:]]
                    layer = torch.randn((*shape[:2], *coarse), generator=generator)
                    noise = noise + functional.interpolate(layer, size=shape[2:], mode="bilinear")
        inputs.append((noise / noise.std()).to(value.device, value.dtype))
    return tuple(inputs)


def batch_statistics(graph: ChannelGraph) -> dict[str, Any]:
    """Return the changes to a graph that make its batch norms standardise over the batch."""
    changes: dict[str, Any] = {}
    for norm in graph.batch_norms:
        x, weight, bias, _, _, _, _, eps, cudnn = norm.node.args
        changes[norm.name] = CallEdit(norm.node.target, (x, weight, bias, None, None, True, 0.0, eps, cudnn), {})
    return changes

"""Mean rank of feature maps: a map of low rank says little."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, fx

from clusterprune.criteria._base import ScoreInputs
from clusterprune.graph.images import batch_size_for
from clusterprune.graph.program import Program, named_tensors


@dataclass(frozen=True)
class HRank:
    """Mean rank of a channel's feature map (Lin et al. 2020, arXiv 2002.10179).

    The map is taken as it is before the next layer or branch, activation included.
    """

    name: ClassVar[str] = "hrank"

    def __call__(self, inputs: ScoreInputs) -> dict[str, Tensor]:
        """Return the scores by name of group, (channels,) float64: ranks averaged over the images, batch by batch.

        Raises
        ------
        ArgumentError
            There are no images.
        """
        graph = inputs.graph
        layers = {call.node for call in graph.calls}
        places: dict[str, list[tuple[str, np.ndarray]]] = {group.name: [] for group in inputs.groups}
        wanted: dict[str, int] = {}
        for group in inputs.groups:
            for use in group.producers:
                for call in graph.calls:
                    if call.weight == use.path:
                        place = _activated(graph.nodes[call.node], layers)
                        places[group.name].append((place, use.positions))
                        wanted[place] = call.channel_dim
        program = Program(graph)
        weights = program.weights(named_tensors(graph))
        ranks: dict[str, Tensor] = {}
        with torch.no_grad():
            for batch in inputs.batches(batch_size_for(graph)):
                values: dict[str, Any] = program.bind(batch) | weights
                for name, value in program.visit(values, wanted):
                    ranks[name] = ranks.get(name, 0) + _rank(value.movedim(wanted[name], 1)).sum(0).double()
        found: dict[str, Tensor] = {}
        for group in inputs.groups:
            parts = [ranks[node][torch.as_tensor(at)].sum(1) for node, at in places[group.name]]
            # What only training runs has no maps here.
            scores = torch.stack(parts).sum(0) / inputs.count if parts else torch.zeros(group.width)
            found[group.name] = scores.to(inputs.device)
        return found


def _activated(node: fx.Node, layers: set[str]) -> str:
    """Follow a layer's output through norm and activation, as long as one operation reads it and it keeps its shape."""
    while len(node.users) == 1:
        (user,) = node.users
        value = user.meta.get("val")
        if user.name in layers or not isinstance(value, Tensor) or value.shape != node.meta["val"].shape:
            break
        node = user
    return node.name


def _rank(maps: Tensor) -> Tensor:
    """Return the matrix rank of every map: (images, channels, height, width) to (images, channels)."""
    while maps.ndim < 4:
        maps = maps.unsqueeze(-1)
    # On the CPU: it is quicker at thousands of small decompositions, and a rank is no matter of the device.
    return torch.linalg.matrix_rank(maps.flatten(3).float().cpu())  # pyright: ignore

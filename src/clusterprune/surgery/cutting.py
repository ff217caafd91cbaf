"""What a plan removes from full-size tensors."""

import numpy as np
import torch
from torch import Tensor, nn

from clusterprune.graph import ChannelGraph, ParameterSlice
from clusterprune.plan import Plan
from clusterprune.surgery.bias_homes import bias_home
from clusterprune.surgery.random_tensors import State


class Cutter:
    """Cuts full-size tensors, by the path of each."""

    def __init__(
        self, removed: dict[tuple[str, int], np.ndarray], grouped: dict[str, ParameterSlice], rows: dict[str, str]
    ) -> None:
        self._removed, self._grouped, self._rows = removed, grouped, rows
        self._kept: dict[tuple[str, int, torch.device], Tensor] = {}

    def __call__(self, path: str, tensor: Tensor) -> Tensor:
        """Return a tensor without what the plan removes from it."""
        # Columns of a grouped convolution must be cut while all its rows are there.
        grouped = self._grouped.get(path)
        if grouped is not None:
            tensor = _cut_grouped(tensor, self._removed[path, grouped.dim], grouped.groups)
        for dim in range(tensor.ndim):
            key = (path, dim) if path not in self._rows else (self._rows[path], 0)
            if key in self._removed and not (grouped is not None and dim == grouped.dim):
                tensor = tensor.index_select(dim, self._keep(key, tensor.shape[dim], tensor.device))
        return tensor.contiguous()

    def all(self, state: State) -> dict[str, Tensor]:
        """Return all tensors of a model without what the plan removes from them."""
        return {path: self(path, tensor) for path, tensor in state.items()}

    def _keep(self, key: tuple[str, int], width: int, device: torch.device) -> Tensor:
        place = (*key, device)
        if place not in self._kept:
            stays = np.ones(width, dtype=bool)
            stays[self._removed[key]] = False
            self._kept[place] = torch.from_numpy(np.flatnonzero(stays)).to(device)
        return self._kept[place]


def cutter(graph: ChannelGraph, plan: Plan) -> Cutter:
    """Return what cuts full-size tensors as a plan says."""
    removed: dict[tuple[str, int], list[np.ndarray]] = {}
    grouped: dict[str, ParameterSlice] = {}
    for merge in plan.merges:
        group = graph.by_name[merge.group]
        gone = np.delete(np.arange(group.width), merge.kept)
        for use in group.uses:
            removed.setdefault((use.path, use.dim), []).append(use.positions[gone].ravel())
            if use.groups > 1:
                grouped[use.path] = use
    # A bias that did not exist is cut like the rows of its weight, and so is one that nobody adds (of a layer whose
    # weight alone is borrowed).
    rows = {
        home[1]: call.weight for call in graph.calls if (home := bias_home(graph, call.weight)) and home[0] == "new"
    }
    rows |= _unused_biases(graph)
    return Cutter({key: np.concatenate(parts) for key, parts in removed.items()}, grouped, rows)


def removed_labels(graph: ChannelGraph, plan: Plan) -> np.ndarray:
    """Return the root labels of all channels that a plan removes."""
    parts = [np.delete(graph.by_name[m.group].labels, m.kept) for m in plan.merges]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _unused_biases(graph: ChannelGraph) -> dict[str, str]:
    """Return the biases that neither evaluation nor training adds, each with the weight beside it."""
    layers = dict(graph.model.named_modules())
    found = {}
    for path in graph.unused:
        owner, _, name = path.rpartition(".")
        if name == "bias" and isinstance(layers.get(owner), (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            found[path] = f"{owner}.weight" if owner else "weight"
    return found


def _cut_grouped(tensor: Tensor, gone: np.ndarray, groups: int) -> Tensor:
    size, rows = tensor.shape[1], tensor.shape[0] // groups
    parts = []
    for block in range(groups):
        columns = np.setdiff1d(np.arange(size), gone[gone // size == block] % size)
        parts.append(tensor[block * rows : (block + 1) * rows, torch.from_numpy(columns).to(tensor.device)])
    return torch.cat(parts)

"""What happens to one group: which of its channels stay, and what the others' readers take over."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clusterprune.errors import ArgumentError, PlanError
from clusterprune.files.tensors import is_finite
from clusterprune.graph import ChannelGraph
from clusterprune.tables import name_of, plural


@dataclass(frozen=True, eq=False)
class Merge:
    """What happens to one group.

    At the input of each consumer, the group's features F (channels, …) are replaced by
    `mixing @ F[kept] + offset`. Merges are equal if group, channels and all tensors are; as tensors can be written to,
    there is no hash.

    Attributes
    ----------
    group
        Name of the group in the graph.
    kept
        Indices of the channels that stay, ascending, shape (k,).
    mixing
        Matrix (channels, k) for each consumer, by the path of its weight. A consumer without one drops the
        removed channels.
    offset
        Constant (channels,) for each consumer, by the path of its weight.

    Raises
    ------
    ArgumentError
        If `kept` is no sequence of whole numbers.
    """

    group: str
    kept: np.ndarray
    mixing: Mapping[str, Tensor] = field(default_factory=dict)
    offset: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take any sequence of whole numbers for the kept channels."""
        object.__setattr__(self, "kept", _indices(self.kept, self.group))

    def __eq__(self, other: object) -> bool:
        """Compare group, kept channels, and the tensors with their dtypes."""
        if not isinstance(other, Merge):
            return NotImplemented
        return (
            self.group == other.group
            and np.array_equal(self.kept, other.kept)
            and same_tensors(self.mixing, other.mixing)
            and same_tensors(self.offset, other.offset)
        )

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        """Say how many channels stay, and how many layers take something over."""
        taken = "".join(f", {name} for {plural(len(table), 'layer')}" for name, table in tables_of(self) if table)
        return f"<Merge of {name_of(self.group)}: keeps {plural(len(self.kept), 'channel')}{taken}>"


def tables_of(merge: Merge) -> tuple[tuple[str, Mapping[str, Tensor]], ...]:
    """Return what consumers take over, by the name of each kind."""
    return ("mixing", merge.mixing), ("offset", merge.offset)


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Tell whether two tables hold equal tensors of the same dtypes, on whatever devices."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[path].dtype and torch.equal(tensor.cpu(), other[path].cpu())
        for path, tensor in one.items()
    )


def _indices(kept: Any, group: str) -> np.ndarray:
    """Return channel indices as int64 (k,)."""
    try:
        found = np.asarray(kept.cpu() if isinstance(kept, Tensor) else kept)
    except (TypeError, ValueError):
        found = np.asarray(None)
    if found.ndim == 1 and found.dtype == bool:
        raise ArgumentError(f"kept={kept!r} of {group!r} is a mask; give the indices, numpy.flatnonzero(mask)")
    if found.ndim != 1 or (len(found) and not np.issubdtype(found.dtype, np.integer)):
        raise ArgumentError(
            f"kept={kept!r} of {group!r} must be a sequence of channel indices, which are whole numbers, such as [0, 2]"
        )
    return found.astype(np.int64)


def check_merge(merge: Merge, graph: ChannelGraph) -> None:
    """Check that a merge is possible in a graph.

    Raises
    ------
    PlanError
        If its group does not exist or is frozen, or its channels or tensors do not fit.
    """
    group = graph.by_name.get(merge.group)
    if group is None:
        raise PlanError(f"the plan merges the group {merge.group!r}, which this model does not have")
    kept = merge.kept
    if group.frozen is not None and len(kept) < group.width:
        raise PlanError(f"the group {merge.group!r} must stay whole: {group.frozen}")
    if not len(kept) or len(set(kept.tolist())) != len(kept) or kept.min() < 0 or kept.max() >= group.width:
        raise PlanError(
            f"kept channels of {merge.group!r} must be distinct indices in 0..{group.width - 1}, and at least one"
        )
    if (np.diff(kept) < 0).any():
        raise PlanError(f"kept channels of {merge.group!r} must be in ascending order")
    counts = np.bincount(group.blocks[kept], minlength=group.n_blocks)
    if len(set(counts.tolist())) > 1:
        raise PlanError(
            f"each of the {group.n_blocks} blocks of {merge.group!r} must keep the same number of channels, "
            f"but they keep {counts.tolist()}"
        )
    consumers = {use.path for use in group.consumers}
    selection = torch.zeros(group.width, len(kept))
    selection[torch.from_numpy(kept), torch.arange(len(kept))] = 1
    rigid = {use.path for use in group.consumers if not use.mixable}
    for kind, table, shape in (
        ("mixing", merge.mixing, (group.width, len(kept))),
        ("offset", merge.offset, (group.width,)),
    ):
        for path, tensor in table.items():
            if path not in consumers:
                raise PlanError(f"{kind} of {merge.group!r} names {path!r}, which does not read this group")
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                what = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise PlanError(f"{kind} of {merge.group!r} for {path} must be a floating-point tensor, but is {what}")
            if tuple(tensor.shape) != shape:
                raise PlanError(f"{kind} of {merge.group!r} for {path} has shape {tuple(tensor.shape)}, not {shape}")
            if not is_finite(tensor):
                raise PlanError(f"{kind} of {merge.group!r} for {path} holds NaN or infinity")
            if path in rigid and not (kind == "mixing" and torch.equal(tensor.to(selection), selection)):
                raise PlanError(
                    f"{kind} of {merge.group!r} mixes {path}, from which a kernel is computed: its inputs can be cut, "
                    "but nothing can be handed over to them. Leave it out of the merge."
                )

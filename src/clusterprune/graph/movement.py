# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Data movement: operations that only rearrange elements are *executed on the labels themselves*.

So channel shuffle, concatenation, zero-padded shortcuts and flattening need no rule of their own. What
this module adds is the care that execution needs: padding must carry labels instead of a number, and the
result must be a *grid*.

A tensor of labels is a grid when, whatever set of channels is removed, what remains is again a full
rectangle: the remaining elements are an outer product of index sets. One varying dimension is always a
grid. When two dimensions vary (a channel dimension split into groups × channels per group) the labels are
united along the shorter one, so that every group loses the same positions.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from clusterprune.graph.labels import LabelSpace, collapse, spread, varying_dims
from clusterprune.graph.nest import arguments_by_name, is_sequence, like

aten = torch.ops.aten


def move(
    space: LabelSpace,
    target: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    prefer: Callable[[], Collection[int]] = frozenset,
) -> Any:
    """Execute a movement operator on label tensors and make every result a grid.

    `prefer` is asked, where a view splits channels over several dimensions, which of these they should run along.
    """
    packet = target.overloadpacket  # type: ignore[attr-defined]
    if packet in (aten.cat, aten.concat, aten.concatenate):
        return enforce_grid(space, _cat(args, kwargs))
    a = arguments_by_name(target, args, kwargs)
    by_number = _dims_by_number(packet, a)
    if by_number and not _whole_roll(packet, a):
        varying = set(varying_dims(space.root_tensor(args[0])))
        if by_number & varying and not varying - by_number:
            raise NotImplementedError("it picks channels by their number")
        for dim in by_number & varying:  # a table whose rows are picked and whose columns are channels
            space.unite_along(args[0], dim)
    if packet is aten.index:
        return enforce_grid(space, _index(args[0], a["indices"]))
    if packet is aten.index_select:
        index = [None] * (a["dim"] % args[0].ndim) + [a["index"]]
        return enforce_grid(space, _index(args[0], index))
    if packet in (aten.view, aten._unsafe_view):
        # Labels expanded with stride 0 cannot always be viewed where the activation can.
        result = args[0].reshape(args[1])
    else:
        result = target(*args, **kwargs)
    if packet is aten.native_channel_shuffle and not _harmless(args[0], result):
        raise NotImplementedError("it rearranges channels")
    if packet is aten.pixel_shuffle:
        # The r² maps that make one output map go together: the operator has no other cut.
        space.unite_along(args[0].unflatten(-3, (-1, args[1] ** 2)), -3)
    if packet is aten.channel_shuffle:
        space.unite_along(args[0].unflatten(1, (args[1], -1)), 1)
    if is_sequence(result):
        return like(result, (enforce_grid(space, part) for part in result))
    return enforce_grid(space, result, prefer if packet in _SPLITS else frozenset)


_SPLITS = frozenset({aten.view, aten.reshape, aten._unsafe_view, aten.unflatten, aten.view_as, aten.reshape_as})


def _dims_by_number(packet: Any, a: dict[str, Any]) -> set[int]:
    """Return the dimensions in which a movement's arguments name positions: fine in space, not followed for channels.

    Where channels are cut a position means another channel.
    """
    rank = a["self"].ndim if isinstance(a.get("self"), Tensor) else 0
    if packet in (aten.select, aten.unbind, aten.unfold, aten.index_select):
        dims = [a.get("dim", a.get("dimension"))]
    elif packet is aten.slice:
        dims = [a["dim"]] if a["step"] != 1 else []
    elif packet is aten.diagonal:
        dims = [a["dim1"], a["dim2"]]
    elif packet is aten.roll:
        dims = a["dims"] or range(rank)
    elif packet is aten.index:
        dims = [dim for dim, index in enumerate(a["indices"]) if index is not None]
    elif packet is aten.repeat_interleave and (
        isinstance(a.get("repeats"), Tensor) or a.get("output_size") is not None
    ):
        dims = range(rank) if a.get("dim") is None else [a["dim"]]
    else:
        dims = []
    return {dim % rank for dim in dims} if rank else set()


def _whole_roll(packet: Any, a: dict[str, Any]) -> bool:
    """Tell whether a roll brings every channel back to where it was."""
    if packet is not aten.roll or not a["dims"]:
        return False
    x = a["self"]
    varying = varying_dims(x)
    return all(
        shift % x.shape[dim] == 0 for shift, dim in zip(a["shifts"], a["dims"], strict=True) if dim % x.ndim in varying
    )


def _index(labels: Tensor, indices: list[Tensor | None]) -> Tensor:
    """Pick positions of dimensions along which nothing varies: which of them does not matter."""
    for dim, index in enumerate(indices):
        if index is not None:
            labels = labels.narrow(dim, 0, 1)
    lengths: torch.Size = torch.broadcast_shapes(*(index.shape for index in indices if index is not None))
    nothing = torch.zeros([1] * len(lengths), dtype=torch.int64)
    result = labels[tuple(slice(None) if index is None else nothing for index in indices)]
    picked = [dim for dim, index in enumerate(indices) if index is not None]
    # Indices that stand together put their dimensions there, others in front.
    start = picked[0] if picked == list(range(picked[0], picked[-1] + 1)) else 0
    return result.expand([*result.shape[:start], *lengths, *result.shape[start + len(lengths) :]])


def _harmless(labels: Tensor, result: Any) -> bool:
    """Tell whether a movement left the order of the channels alone."""
    parts = result if is_sequence(result) else [result]
    before = _order(labels)
    return all((after := _order(part)).shape == before.shape and bool((after == before).all()) for part in parts)


def _order(labels: Tensor) -> Tensor:
    """Return the labels along the one dimension where they vary (all of them if there are several)."""
    dims = varying_dims(labels)
    small = collapse(labels)
    for dim in range(small.ndim):
        if dim not in dims:
            small = small.narrow(dim, 0, 1)
    return small.reshape(-1)


def _cat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Concatenate without materialising the dimensions that every part expands."""
    parts: list[Tensor] = [part for part in args[0] if part.numel()]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % parts[0].ndim
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    for other in range(len(shape)):
        if other != dim and all(part.stride(other) == 0 or part.shape[other] == 1 for part in parts):
            parts = [part.narrow(other, 0, 1) for part in parts]
    return torch.cat(parts, dim).expand(shape)


def pad(space: LabelSpace, labels: Tensor, amounts: list[int], *, constant: bool) -> Tensor:
    """Pad labels as `aten.pad` pads an activation (amounts from the last dimension backwards).

    Where labels do not vary along the padded dimension (spatial padding) the border belongs to the
    channel it surrounds. Where they vary and the padding is constant (option-A shortcuts) every padded
    position is a channel of its own, which later operations unite with whatever it meets.
    """
    varying = varying_dims(space.root_tensor(labels))
    for position in range(len(amounts) // 2):
        dim = labels.ndim - 1 - position
        before, after = amounts[2 * position], amounts[2 * position + 1]
        if not before and not after:
            continue
        length = labels.shape[dim]
        if dim in varying and constant:
            shape = list(labels.shape)
            parts: list[Tensor] = []
            for amount, inside in ((before, False), (length, True), (after, False)):
                if inside:
                    start, stop = max(0, -before), length - max(0, -after)
                    parts.append(labels.narrow(dim, start, stop - start))
                elif amount > 0:
                    shape[dim] = amount
                    parts.append(spread(space.new(amount), dim, shape))
            labels = _cat((parts, dim), {})
        else:
            index = torch.arange(-before, length + after).clamp_(0, length - 1)
            if dim not in varying:
                labels = labels.narrow(dim, 0, 1).expand(
                    [len(index) if d == dim else s for d, s in enumerate(labels.shape)]
                )
            else:
                labels = labels.index_select(dim, index)
    return enforce_grid(space, labels)


def enforce_grid(space: LabelSpace, labels: Tensor, prefer: Callable[[], Collection[int]] = frozenset) -> Tensor:
    """Unite labels so that any cut leaves a rectangle; return the labels unchanged in shape.

    `prefer` returns the dimensions of which one should stay free, if any of them is at hand.
    """
    small = collapse(labels)
    if sum(length > 1 for length in small.shape) < 2:
        return labels
    roots = space.root_tensor(small)
    dims = varying_dims(roots)
    if len(dims) < 2:
        return roots.expand(labels.shape)
    # Channels that run into rows and columns of an image (a latent vector viewed as maps) stay channels.
    spatial = {roots.ndim - 2, roots.ndim - 1} if roots.ndim >= 4 else set[int]()
    wanted = [dim for dim in prefer() if dim in dims] or dims
    free = max(wanted, key=lambda dim: (dim not in spatial, roots.shape[dim], dim))
    for dim in dims:
        if dim != free:
            space.unite_along(small, dim)
    return space.root_tensor(labels)

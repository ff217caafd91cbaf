"""Groups: channels that touch the same dimensions of the same parameters, and so can replace one another."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from clusterprune.graph.walk import LayerCall, Slice, TraceState, layer_of
from clusterprune.tables import few, plural


@dataclass(frozen=True, eq=False)
class ParameterSlice:
    """Where a group's channels sit in one dimension of one parameter.

    `positions` has shape (channels, multiplicity): channel i owns these indices of dimension `dim`. The
    multiplicity is above one after a flatten (one channel, many inputs of a linear layer). A consumer that is not
    `mixable` computes its kernel from what is stored: its columns can be kept or cut, but neither mixed nor replaced.
    """

    path: str
    dim: int
    positions: np.ndarray
    role: str
    groups: int = 1
    mixable: bool = True

    def __repr__(self) -> str:
        """Say which parameter and dimension, and of how many channels."""
        channels = plural(len(self.positions), "channel")
        return f"<ParameterSlice of {self.path}: dimension {self.dim} ({self.role}s) of {channels}>"


@dataclass(frozen=True, eq=False)
class Group:
    """Interchangeable channels.

    Attributes
    ----------
    name
        Path of the first layer that makes the channels; unique in a graph.
    labels
        Root label of each channel, shape (channels,).
    producers, carriers, consumers
        Where the channels are made (rows of convolutions and linear layers), carried (norms, depthwise
        filters, scales) and read (columns of convolutions and linear layers).
    blocks
        Block of each channel, shape (channels,). Every block must keep the same number of channels.
    frozen
        Why the group must stay as it is, or None.
    approximate
        Whether a norm takes its statistics over these channels, so that a cut changes more than it leaves out (only
        in a trace with `approximate=True`).
    """

    name: str
    labels: np.ndarray
    producers: tuple[ParameterSlice, ...]
    carriers: tuple[ParameterSlice, ...]
    consumers: tuple[ParameterSlice, ...]
    blocks: np.ndarray
    frozen: str | None = None
    approximate: bool = False

    @property
    def width(self) -> int:
        """Number of units that stay or go: channels, or sets of channels that are tied to one another."""
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Number of channels of the first layer that makes them."""
        return self.producers[0].positions.size

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that make the channels."""
        return tuple(dict.fromkeys(layer_of(use.path) for use in self.producers))

    @property
    def n_blocks(self) -> int:
        """Number of blocks, each of which keeps the same number of channels."""
        return int(self.blocks.max()) + 1

    @property
    def uses(self) -> tuple[ParameterSlice, ...]:
        """Every place that is cut with the group."""
        return self.producers + self.carriers + self.consumers

    def __repr__(self) -> str:
        """Say how many channels, who makes and who reads them, and whether they may be cut."""
        frozen = f"; frozen: {self.frozen}" if self.frozen is not None else ""
        made = few(self.layers, limit=1)
        read = few(_readers(self), limit=1) or "no layer"
        return f"<Group {self.name}: {size_of(self)}, made by {made}, read by {read}{frozen}>"


def size_of(group: Group, digits: int = 0) -> str:
    """Say how many channels a group has, in so many places at least, and how they must be cut."""
    each = group.channels // group.width
    ties = f" in {group.width} sets of {each}" if each > 1 else ""
    blocks = f" in {group.n_blocks} equal blocks" if group.n_blocks > 1 else ""
    return f"{group.channels:>{digits}} channels{ties}{blocks}"


def made_and_read(group: Group) -> tuple[str, str]:
    """Return the layers that make a group, those included that carry it on, and those that read it."""
    made = few([layer_of(use.path) for use in group.producers])
    carried = list(dict.fromkeys(use.path.rpartition(".")[0] or use.path for use in group.carriers))
    through = f" through {few(carried)}" if carried else ""
    return made + through, few(_readers(group))


def _readers(group: Group) -> list[str]:
    return list(dict.fromkeys(layer_of(use.path) for use in group.consumers))


def find_groups(walk: TraceState, calls: list[LayerCall], training_calls: Sequence[LayerCall] = ()) -> list[Group]:
    """Sort the labels of a finished walk into groups, in the order in which their channels are made.

    `calls` are those of evaluation. Layers that only `training_calls` apply are made smaller with the groups that
    they read, but have none of their own that could be cut: nothing is gained in evaluation.
    """
    evaluated = {call.weight for call in calls}
    every = [*calls, *(call for call in training_calls if call.weight not in evaluated)]
    layer_weights = {call.weight for call in every if not call.depthwise}
    blocks, conflicts = _blocks(walk)
    order = {call.weight: index for index, call in enumerate(every)}

    def first_made(sketch: _Sketch) -> tuple[int, int]:
        made = [
            (order[path], int(positions[0, 0]))
            for (path, dim), positions in sketch.positions.items()
            if path in layer_weights and walk.slices[path, dim].role == "row"
        ]
        return min(made, default=(len(order), 0))

    crossed = {int(label) for labels in walk.approximate_labels for label in np.unique(walk.space.roots(labels))}
    groups: list[Group] = []
    names: dict[str, int] = {}
    sketches = sorted(_sketches(walk), key=first_made)
    for sketch in (part for whole in sketches for part in _balanced(walk, whole, blocks, conflicts)):
        labels = sketch.labels
        uses: dict[str, list[ParameterSlice]] = {"producer": [], "carrier": [], "column": []}
        for (path, dim), positions in sketch.positions.items():
            known: Slice = walk.slices[path, dim]
            kind = "column" if known.role == "column" else "producer" if path in layer_weights else "carrier"
            uses[kind].append(ParameterSlice(path, dim, positions, known.role, known.groups, known.mixable))
        for places in uses.values():
            places.sort(key=lambda use: order.get(use.path, len(order)))
        if not uses["producer"]:
            continue
        why = sketch.why_frozen
        if why is None and not uses["column"]:
            why = "no layer reads these channels"
        if why is None and not any(use.path in evaluated for use in uses["producer"]):
            why = "only training makes these channels"
        if why is None and not any(use.path in evaluated for use in uses["column"]):
            why = "only training reads these channels"
        block = _codes(_even_keys(walk, [blocks.get(label, {}) for label in labels]))
        if why is None and len(labels) == len(set(block.tolist())):
            why = "a single channel that nothing else can replace"
        name = layer_of(uses["producer"][0].path)
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:
            name = f"{name}#{names[name]}"
        producers, carriers, columns = (tuple(uses[kind]) for kind in ("producer", "carrier", "column"))
        approximate = why is None and not crossed.isdisjoint(labels)
        groups.append(Group(name, np.array(labels), producers, carriers, columns, block, why, approximate))
    return _check_partitions(walk, groups)


@dataclass(frozen=True, eq=False)
class _Sketch:
    """Labels that are used alike, and where: `positions` of shape (labels, multiplicity) by parameter and dimension."""

    labels: list[int]
    positions: dict[tuple[str, int], np.ndarray]
    why_frozen: str | None


BlockKey = tuple[tuple[int, int], ...]
"""In which block of each partition a label stands."""

_UNEQUAL = "its channels are spread unequally over the groups of a grouped convolution"


def _balanced(
    walk: TraceState, sketch: _Sketch, blocks: dict[int, dict[int, int]], conflicts: dict[int, str]
) -> list[_Sketch]:
    """Set aside the channels that no equal cut of grouped convolutions can take, so that the others may be cut.

    Every group of every grouped convolution that makes or reads these channels has to lose the same number. Where
    they are spread unequally over the groups, as after a concatenated shortcut, as many stay for good as it takes.
    """
    if sketch.why_frozen is not None:
        return [sketch]
    keys = _even_keys(walk, [blocks.get(label, {}) for label in sketch.labels])
    reasons: list[str | None] = [conflicts.get(label) for label in sketch.labels]
    counts = Counter(key for key, reason in zip(keys, reasons, strict=True) if reason is None)
    if len(set(counts.values())) > 1:
        chosen = _transversal(walk, counts)
        room = dict.fromkeys(chosen, min((counts[key] for key in chosen), default=0))
        for index, key in enumerate(keys):
            if reasons[index] is None:
                if room.get(key, 0) > 0:
                    room[key] -= 1
                else:
                    reasons[index] = _UNEQUAL
    parts: dict[str | None, list[int]] = {}
    for index, reason in enumerate(reasons):
        parts.setdefault(reason, []).append(index)
    found = [
        _Sketch([sketch.labels[i] for i in part], {k: p[part] for k, p in sketch.positions.items()}, reason)
        for reason, part in parts.items()
    ]
    return sorted(found, key=lambda part: part.why_frozen is not None)


def _transversal(walk: TraceState, counts: Mapping[BlockKey, int]) -> list[BlockKey]:
    """Choose blocks that together meet every group of every grouped convolution once; the smallest as large as can be.

    Returns nothing where there are no such blocks.
    """
    partitions = sorted({number for key in counts for number, _ in key})
    sizes = {walk.partitions[number].blocks for number in partitions}
    if len(sizes) != 1 or any(len(key) != len(partitions) for key in counts):
        return []
    size = sizes.pop()

    def extend(chosen: list[BlockKey], candidates: list[BlockKey]) -> list[BlockKey]:
        if len(chosen) == size:
            return chosen
        for key in candidates:
            if key[0][1] == len(chosen):
                apart = [k for k in candidates if all(a != b for a, b in zip(k, key, strict=True))]
                if found := extend([*chosen, key], apart):
                    return found
        return []

    for least in sorted(set(counts.values()), reverse=True):
        if found := extend([], [key for key in counts if counts[key] >= least]):
            return found
    return []


def _sketches(walk: TraceState) -> list[_Sketch]:
    """Put together the labels that own equally many indices of the same parameters, in the same arrangement.

    A label may tie several channels together (those of a normalisation group), which then appear in a
    certain arrangement at each of its uses. Another label stands for a replacement only if its channels are arranged
    the same way everywhere.
    """
    keys = sorted(walk.slices)
    if not keys:
        return []
    slices = [walk.slices[key].labels for key in keys]
    root, same = (np.concatenate([find(labels) for labels in slices]) for find in (walk.space.roots, walk.space.same))
    key = np.repeat(np.arange(len(keys)), [len(labels) for labels in slices])
    place = np.concatenate([np.arange(len(labels)) for labels in slices])
    sorting = np.lexsort((place, key, root))
    sorting = sorting[~np.isin(root[sorting], walk.space.opaque_labels)]
    root, same, key, place = (values[sorting] for values in (root, same, key, place))
    if not len(root):
        return []
    labels, starts = np.unique(root, return_index=True)
    # A channel is known by where its label's uses show it first.
    _, first, inverse = np.unique(same, return_index=True, return_inverse=True)
    shown = first[inverse] - np.repeat(starts, np.diff([*starts, len(root)]))
    alike: dict[tuple[bytes, bytes, str | None], list[int]] = {}
    bounds = [*zip(starts.tolist(), [*starts[1:].tolist(), len(root)], strict=True)]
    for index, (start, stop) in enumerate(bounds):
        why = walk.space.why_frozen(int(labels[index]))
        alike.setdefault((key[start:stop].tobytes(), shown[start:stop].tobytes(), why), []).append(index)
    sketches: list[_Sketch] = []
    for (_, _, why), members in alike.items():
        start, stop = bounds[members[0]]
        used, columns = np.unique(key[start:stop], return_index=True)
        places = np.stack([place[slice(*bounds[index])] for index in members])
        parts = np.split(places, columns[1:], axis=1)
        positions = {keys[int(number)]: part for number, part in zip(used, parts, strict=True)}
        sketches.append(_Sketch(labels[members].tolist(), positions, why))
    return sketches


def _blocks(walk: TraceState) -> tuple[dict[int, dict[int, int]], dict[int, str]]:
    """Return each label's block in every partition, and the labels that sit in several blocks unevenly."""
    blocks: dict[int, dict[int, int]] = {}
    conflicts: dict[int, str] = {}
    for number, partition in enumerate(walk.partitions):
        roots = walk.space.roots(partition.labels).reshape(partition.blocks, -1)
        inside: dict[int, np.ndarray] = {}
        for block, row in enumerate(roots):
            for label, count in zip(*np.unique(row, return_counts=True), strict=True):
                inside.setdefault(int(label), np.zeros(partition.blocks, dtype=int))[block] += count
        for label, counts in inside.items():
            if (counts == counts[0]).all():
                continue
            if (counts > 0).sum() > 1:
                if partition.hard:
                    conflicts[label] = partition.reason
                continue
            blocks.setdefault(label, {})[number] = int(counts.argmax())
    return blocks, conflicts


def _even_keys(walk: TraceState, keys: list[dict[int, int]]) -> list[BlockKey]:
    """Drop the soft partitions (chunks) that a group does not fill evenly: those are rewired instead."""
    dropped: set[int] = set()
    for number in {number for key in keys for number in key}:
        partition = walk.partitions[number]
        counts = np.bincount([key.get(number, partition.blocks) for key in keys], minlength=partition.blocks + 1)
        if not partition.hard and (counts[-1] or len(set(counts[:-1].tolist())) > 1):
            dropped.add(number)
    return [tuple(sorted((n, b) for n, b in key.items() if n not in dropped)) for key in keys]


def _codes(keys: list[BlockKey]) -> np.ndarray:
    """Number the distinct block keys in order of first appearance."""
    seen: dict[BlockKey, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in keys])


def _check_partitions(walk: TraceState, groups: list[Group]) -> list[Group]:
    """Freeze the groups that meet a grouped convolution unevenly: no equal cut of them exists."""
    owner = {int(label): index for index, group in enumerate(groups) for label in group.labels}
    frozen: dict[int, str] = {}
    for partition in walk.partitions:
        if not partition.hard:
            continue
        roots = walk.space.roots(partition.labels).reshape(partition.blocks, -1)
        counts = [
            np.bincount([owner.get(int(label), len(groups)) for label in row], minlength=len(groups) + 1)
            for row in roots
        ]
        uneven = np.flatnonzero((np.stack(counts) != counts[0]).any(axis=0))
        for index in uneven[uneven < len(groups)]:
            frozen[int(index)] = f"{partition.reason}, which its other channels cannot match"
    return [replace(group, frozen=group.frozen or frozen.get(index)) for index, group in enumerate(groups)]


def find_links(walk: TraceState, groups: Sequence[Group]) -> tuple[frozenset[str], ...]:
    """Return the groups that should keep equally many channels, because a model's code cuts them into equal parts.

    The halves of one `chunk` are often different groups (one runs through further layers, the other does not). Cut to
    different widths they are still a valid network, but not one that the model's own `chunk` describes.
    """
    owner = {int(label): index for index, group in enumerate(groups) for label in group.labels}
    links: list[set[int]] = []
    for partition in walk.partitions:
        if partition.hard:
            continue
        parts = walk.space.roots(partition.labels).reshape(partition.blocks, -1)
        owners = [{owner.get(int(label), -1) for label in part} for part in parts]
        whole = all(len(part) == len(set(part.tolist())) for part in parts)
        if not whole or any(len(found) != 1 or -1 in found for found in owners):
            continue  # a part of several groups has no width of its own
        found = {index for part in owners for index in part}
        same = {len(groups[index].labels) for index in found} == {parts.shape[1]}
        if len(found) > 1 and same and all(groups[index].frozen is None for index in found):
            joined = [link for link in links if link & found]
            links = [link for link in links if not link & found] + [found.union(*joined)]
    return tuple(frozenset(groups[index].name for index in link) for link in links)

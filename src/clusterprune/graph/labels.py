# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Channel labels: integers that say which channel every element of an activation belongs to.

A label is born where a layer makes a channel, travels with the data, and is *united* with another label
where two channels can only be cut together (the two sides of an addition, the input and output of a
depthwise convolution). Uniting is a union-find; a channel of the network is one class of it.

Labels can be united for two reasons: they are the *same* channel (the two sides of an addition), or different
ones that are only *tied* (the channels of one normalisation group). A second union-find knows the first kind alone.

Labels live in integer tensors of the same shape as the activation they describe. Along dimensions where
the label does not change (batch, height, width) such a tensor is expanded with stride 0 and costs nothing.
"""

from collections.abc import Iterable

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor


def collapse(labels: Tensor) -> Tensor:
    """Narrow to length one every dimension that is expanded with stride 0."""
    return collapse_together(labels)[0]


def collapse_together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Narrow to length one every dimension that all the given same-shaped tensors expand with stride 0."""
    for dim in range(tensors[0].ndim):
        if tensors[0].shape[dim] > 1 and all(t.stride(dim) == 0 for t in tensors):
            tensors = tuple(t.narrow(dim, 0, 1) for t in tensors)
    return tensors


def varying_dims(labels: Tensor) -> list[int]:
    """Return the dimensions along which labels differ from the first entry."""
    small = collapse(labels)
    return [dim for dim in range(small.ndim) if small.shape[dim] > 1 and bool((small != small.narrow(dim, 0, 1)).any())]


def spread(vector: Tensor, dim: int, shape: Iterable[int]) -> Tensor:
    """Expand a vector of labels, which run along `dim`, to a whole activation of `shape` (no copy)."""
    shape = list(shape)
    view = [1] * len(shape)
    view[dim] = -1
    return vector.view(view).expand(shape)


class Forest:
    """Union-find over the integers from 0: every class is represented by its smallest member."""

    def __init__(self) -> None:
        """Start empty."""
        self._parent = np.empty(1024, dtype=np.int64)
        self.size = 0

    def grow(self, count: int) -> None:
        """Add `count` members, each a class of its own."""
        while self.size + count > len(self._parent):
            self._parent = np.concatenate([self._parent, np.empty_like(self._parent)])
        self._parent[self.size : self.size + count] = np.arange(self.size, self.size + count)
        self.size += count

    def roots(self, members: np.ndarray) -> np.ndarray:
        """Return the representative of every member's class, in the same shape."""
        while True:
            parents = self._parent[members]
            if (parents == members).all():
                return parents
            members = parents

    def find(self, member: int) -> int:
        """Return the representative of one member's class."""
        while self._parent[member] != member:
            self._parent[member] = self._parent[self._parent[member]]
            member = int(self._parent[member])
        return member

    def join(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Make one class of every pair of classes, given their representatives; return those that are none any more."""
        low, high = np.minimum(left, right), np.maximum(left, right)
        if self._apart(low, high):
            self._parent[high] = low
            return high
        members, index = np.unique(np.concatenate([low, high]), return_inverse=True)
        pairs = coo_array((np.ones(len(low), dtype=np.int8), index.reshape(2, -1)), shape=(len(members),) * 2)
        _, component = connected_components(pairs, directed=False)
        # Members ascend, so the first of a component is its smallest.
        smallest = members[np.unique(component, return_index=True)[1]][component]
        self._parent[members] = smallest
        return members[smallest != members]

    def _apart(self, low: np.ndarray, high: np.ndarray) -> bool:
        """Tell whether no class is in two pairs, but as the one that stays."""
        if len(high) < self.size // 64:
            return len(np.unique(high)) == len(high) and not bool(np.isin(low, high).any())
        # Flags are faster than sorting where there are many pairs: all elements of a weight, say.
        gone = np.zeros(self.size, dtype=bool)
        gone[high] = True
        return int(gone.sum()) == len(high) and not bool(gone[low].any())


class LabelSpace:
    """Two union-finds over labels, with the reasons why some of them must stay.

    A label is *opaque* when it stands for data that cannot be cut at all and has no channels of its own
    (the network's input, the result of an operation without a rule). Uniting with an opaque label freezes.
    """

    def __init__(self) -> None:
        """Start with no labels."""
        self._together = Forest()
        self._same = Forest()
        self._frozen: dict[int, str] = {}
        self._opaque: dict[int, str] = {}

    def __len__(self) -> int:
        """Return how many labels were ever made."""
        return self._together.size

    def new(self, count: int) -> Tensor:
        """Make `count` fresh labels, as an int64 vector."""
        start = len(self)
        self._together.grow(count)
        self._same.grow(count)
        return torch.arange(start, start + count)

    def opaque(self, shape: Iterable[int], reason: str) -> Tensor:
        """Make one opaque label, expanded to `shape`."""
        label = self.new(1)
        self._opaque[int(label)] = reason
        return label.expand(tuple(shape)) if tuple(shape) else label.squeeze(0)

    def roots(self, labels: Tensor | np.ndarray) -> np.ndarray:
        """Return the representative of every label's class, in the shape of `labels`."""
        return self._together.roots(_array(labels))

    def same(self, labels: Tensor | np.ndarray) -> np.ndarray:
        """Return a representative that only labels of the same channel share, not those that are tied to it."""
        return self._same.roots(_array(labels))

    def root_tensor(self, labels: Tensor) -> Tensor:
        """Return :meth:`roots` as a tensor that keeps stride-0 dimensions expanded."""
        small = collapse(labels)
        return torch.from_numpy(np.asarray(self.roots(small))).expand(labels.shape)

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Say element by element that the labels of two equally shaped tensors are the same channel."""
        left, right = self._differing(self._same, first, second)
        # What meets uncuttable data is not the same channel as whatever else meets it.
        own = ~(self._opaque_among(left) | self._opaque_among(right))
        self._same.join(left[own], right[own])
        self._tie(first, second)

    @staticmethod
    def _differing(forest: Forest, first: Tensor, second: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of classes that two tensors of labels put side by side, as two vectors."""
        a, b = collapse_together(first, second)
        left, right = forest.roots(_array(a)).ravel(), forest.roots(_array(b)).ravel()
        differ = left != right
        return left[differ], right[differ]

    def _opaque_among(self, labels: np.ndarray) -> np.ndarray:
        """Return for each of many labels whether it is opaque."""
        return np.isin(self._together.roots(labels), self.opaque_labels)

    def _tie(self, first: Tensor, second: Tensor) -> None:
        left, right = self._differing(self._together, first, second)
        a, b = self._opaque_among(left), self._opaque_among(right)
        met = a != b
        opaque, other = np.where(a, left, right)[met], np.where(a, right, left)[met]
        for label, one in zip(*np.unique(other, return_index=True), strict=True):
            self._frozen.setdefault(int(label), self._opaque[int(opaque[one])])
        both = ~(a | b)
        gone = self._together.join(left[both], right[both])
        for label in sorted(self._frozen.keys() & set(gone.tolist())):
            self._frozen.setdefault(self._together.find(label), self._frozen.pop(label))

    def unite_along(self, labels: Tensor, dim: int) -> Tensor:
        """Tie all labels along `dim` together; return the labels with that dimension narrowed to length one."""
        first = labels.narrow(dim, 0, 1)
        if labels.shape[dim] > 1 and labels.stride(dim) != 0:
            self._tie(first.expand_as(labels), labels)
        return first

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Mark every label as one that must stay, and say why. The first reason given wins."""
        small = collapse(labels)
        for label in np.unique(self.roots(small)):
            if int(label) not in self._opaque:
                self._frozen.setdefault(int(label), reason)

    def is_opaque(self, label: int) -> bool:
        """Tell whether a label stands for data without channels of its own."""
        return self._together.find(label) in self._opaque

    @property
    def opaque_labels(self) -> np.ndarray:
        """All opaque labels, shape (labels,)."""
        return np.fromiter(self._opaque, dtype=np.int64, count=len(self._opaque))

    def all_opaque(self, labels: Tensor) -> bool:
        """Tell whether a tensor carries nothing but opaque labels."""
        small = collapse(labels)
        return all(int(label) in self._opaque for label in np.unique(self.roots(small)))

    def why_frozen(self, label: int) -> str | None:
        """Return why a label must stay, or None if it may be cut."""
        root = self._together.find(label)
        return self._opaque.get(root) or self._frozen.get(root)


def _array(labels: Tensor | np.ndarray) -> np.ndarray:
    return labels.numpy() if isinstance(labels, Tensor) else labels

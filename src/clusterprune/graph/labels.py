"""Channel labels: integers that say which channel every element of an activation belongs to.

A label is born where a layer makes a channel, travels with the data, and is *united* with another label
where two channels can only be cut together (the two sides of an addition, the input and output of a
depthwise convolution). Uniting is a union-find; a channel of the network is one class of it.

Labels live in integer tensors of the same shape as the activation they describe. Along dimensions where
the label does not change (batch, height, width) such a tensor is expanded with stride 0 and costs nothing.
"""

from collections.abc import Iterable

import numpy as np
import torch
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


class LabelSpace:
    """Union-find over labels, with the reasons why some of them must stay.

    A label is *opaque* when it stands for data that cannot be cut at all and has no channels of its own
    (the network's input, the result of an operation without a rule). Uniting with an opaque label freezes.
    """

    def __init__(self) -> None:
        """Start with no labels."""
        self._parent = np.empty(1024, dtype=np.int64)
        self._size = 0
        self._frozen: dict[int, str] = {}
        self._opaque: dict[int, str] = {}

    def __len__(self) -> int:
        """Return how many labels were ever made."""
        return self._size

    def new(self, count: int) -> Tensor:
        """Make `count` fresh labels, as an int64 vector."""
        while self._size + count > len(self._parent):
            self._parent = np.concatenate([self._parent, np.empty_like(self._parent)])
        start = self._size
        self._parent[start : start + count] = np.arange(start, start + count)
        self._size += count
        return torch.arange(start, start + count)

    def opaque(self, shape: Iterable[int], reason: str) -> Tensor:
        """Make one opaque label, expanded to `shape`."""
        label = self.new(1)
        self._opaque[int(label)] = reason
        return label.expand(tuple(shape)) if tuple(shape) else label.squeeze(0)

    def roots(self, labels: Tensor | np.ndarray) -> np.ndarray:
        """Return the representative of every label's class, in the shape of `labels`."""
        current = labels.numpy() if isinstance(labels, Tensor) else labels
        while True:
            parents = self._parent[current]
            if (parents == current).all():
                return parents
            current = parents

    def root_tensor(self, labels: Tensor) -> Tensor:
        """Return :meth:`roots` as a tensor that keeps stride-0 dimensions expanded."""
        small = collapse(labels)
        return torch.from_numpy(np.asarray(self.roots(small))).expand(labels.shape)

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Unite two equally shaped label tensors element by element."""
        a, b = collapse_together(first, second)
        pairs = np.stack([self.roots(a).ravel(), self.roots(b).ravel()])
        pairs = pairs[:, pairs[0] != pairs[1]]
        if not pairs.size:
            return
        code = np.unique(pairs[0] * self._size + pairs[1])
        for left, right in zip(code // self._size, code % self._size, strict=True):
            self._unite_one(int(left), int(right))

    def _unite_one(self, left: int, right: int) -> None:
        left, right = self._find(left), self._find(right)
        if left == right:
            return
        if left in self._opaque or right in self._opaque:
            opaque, other = (left, right) if left in self._opaque else (right, left)
            if other not in self._opaque:
                self._frozen.setdefault(other, self._opaque[opaque])
            return
        low, high = min(left, right), max(left, right)
        self._parent[high] = low
        if high in self._frozen:
            reason = self._frozen.pop(high)
            self._frozen.setdefault(low, reason)

    def _find(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = int(self._parent[label])
        return label

    def unite_along(self, labels: Tensor, dim: int) -> Tensor:
        """Unite all labels along `dim`; return the labels with that dimension narrowed to length one."""
        first = labels.narrow(dim, 0, 1)
        if labels.shape[dim] > 1 and labels.stride(dim) != 0:
            self.unite(first.expand_as(labels), labels)
        return first

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Mark every label as one that must stay, and say why. The first reason given wins."""
        small = collapse(labels)
        for label in np.unique(self.roots(small)):
            if int(label) not in self._opaque:
                self._frozen.setdefault(int(label), reason)

    def is_opaque(self, label: int) -> bool:
        """Tell whether a label stands for data without channels of its own."""
        return self._find(label) in self._opaque

    def all_opaque(self, labels: Tensor) -> bool:
        """Tell whether a tensor carries nothing but opaque labels."""
        small = collapse(labels)
        return all(int(label) in self._opaque for label in np.unique(self.roots(small)))

    def why_frozen(self, label: int) -> str | None:
        """Return why a label must stay, or None if it may be cut."""
        root = self._find(label)
        return self._opaque.get(root) or self._frozen.get(root)

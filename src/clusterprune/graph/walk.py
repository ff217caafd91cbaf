"""What a trace collects while it walks through the exported graph, and what the rules may say to it."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx

from clusterprune.graph.labels import LabelSpace, collapse

Kind = Literal["conv", "conv_transpose", "conv_deformable", "linear", "matmul"]


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer as it stands in the graph: its path in the module, and its shape."""

    path: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LayerCall:
    """One application of a convolution or linear layer.

    `weight` and `bias` are paths in the module. `depthwise` layers have one input channel per group: they
    carry channels on and neither read nor make any.
    """

    node: str
    kind: Kind
    weight: str
    bias: str | None
    groups: int
    input: str
    depthwise: bool = False

    @property
    def layer(self) -> str:
        """Path of the module (or the bare parameter) that the call applies."""
        return self.weight.removesuffix(".weight")


@dataclass
class Slice:
    """The labels along one dimension of a parameter.

    `role` says what cutting this dimension means: "row" where the parameter makes or carries a channel,
    "column" where a layer reads it. A column slice of a grouped convolution runs over all input channels,
    of which every one of the `groups` row blocks stores only its own.
    """

    path: str
    dim: int
    labels: Tensor
    role: Literal["row", "column"]
    groups: int = 1


@dataclass
class Partition:
    """Labels in equal blocks, each of which must lose the same number (grouped convolutions, chunks)."""

    labels: Tensor
    blocks: int
    reason: str
    hard: bool


@dataclass
class Walk:
    """The state of a trace: labels, slices of parameters, layer calls, partitions, and what was not understood.

    `approximate` says by node which operations a cut changes beyond leaving channels out (allowed if
    `allow_approximate`). `unlabelled` holds the layers whose outputs cannot be channels of a group: by name, how
    many they make and why none may go.
    """

    space: LabelSpace = field(default_factory=LabelSpace)
    slices: dict[tuple[str, int], Slice] = field(default_factory=dict)
    elements: dict[str, Tensor] = field(default_factory=dict)
    calls: list[LayerCall] = field(default_factory=list)
    partitions: list[Partition] = field(default_factory=list)
    unknown: dict[str, list[str]] = field(default_factory=dict)
    norm_groups: dict[str, int] = field(default_factory=dict)
    user_inputs: set[str] = field(default_factory=set)
    allow_approximate: bool = False
    approximate: dict[str, str] = field(default_factory=dict)
    approximate_labels: list[Tensor] = field(default_factory=list)
    unlabelled: dict[str, tuple[int, str]] = field(default_factory=dict)

    def bind(
        self,
        parameter: Parameter | None,
        dim: int,
        labels: Tensor,
        role: Literal["row", "column"] = "row",
        groups: int = 1,
    ) -> Tensor:
        """Say that dimension `dim` of a parameter belongs to `labels`, a vector.

        A parameter met for the second time (a layer applied twice) unites the labels of both calls.
        """
        if parameter is None:
            return labels
        key = (parameter.path, dim)
        known = self.slices.get(key)
        if known is None:
            self.slices[key] = Slice(parameter.path, dim, labels, role, groups)
            return labels
        if known.labels.shape != labels.shape or known.role != role:
            reason = f"{parameter.path} is used in two different ways"
            self.space.freeze(known.labels, reason)
            self.space.freeze(labels, reason)
            return labels
        self.space.unite(known.labels, labels)
        self._settle_opaque(known, labels)
        return labels

    def _settle_opaque(self, known: Slice, labels: Tensor) -> None:
        """Where one of two uses meets uncuttable data, keep the labels of that use: they say 'never cut'."""
        opaque = [self.space.is_opaque(int(label)) for label in labels]
        known.labels = torch.where(torch.tensor(opaque), labels, known.labels)

    def vector(self, labels: Tensor, dim: int) -> Tensor:
        """Return one label per index of `dim`, uniting whatever else shares the index."""
        dim %= labels.ndim
        length = labels.shape[dim]
        small = collapse(labels)
        for other in range(small.ndim):
            if other != dim:
                small = self.space.unite_along(small, other)
        return small.reshape(-1).expand(length) if small.numel() == 1 else small.reshape(length)

    def parameter_elements(self, parameter: Parameter) -> Tensor | None:
        """Give every element of a parameter used as plain data a label of its own (None for scalars)."""
        count = int(torch.tensor(parameter.shape).prod()) if parameter.shape else 1
        if count == 1:
            return None
        if parameter.path not in self.elements:
            self.elements[parameter.path] = self.space.new(count).view(parameter.shape)
        return self.elements[parameter.path]

    def as_data(self, nest: Any) -> Any:
        """Put the labels of their elements in place of parameters."""
        if isinstance(nest, Parameter):
            return self.parameter_elements(nest)
        if isinstance(nest, (tuple, list)):
            return type(nest)(self.as_data(part) for part in nest)
        if isinstance(nest, dict):
            return {key: self.as_data(part) for key, part in nest.items()}
        return nest

    def note_approximate(self, node: fx.Node, labels: Tensor, reason: str) -> None:
        """Say that an operation reads all of these channels, and yet they may be cut."""
        self.approximate[node.name] = reason
        self.approximate_labels.append(collapse(labels))

    def without_labels(self, node: fx.Node, channels: int, reason: str) -> str:
        """Enter a layer whose outputs can be no channels of a group; return why, with the node's name."""
        stack = node.meta.get("nn_module_stack")
        path = list(stack.values())[-1][0] if stack else ""
        self.unlabelled[path or node.name] = (channels, reason)
        return f"{node.name}: {reason}"

    def opaque(self, node: fx.Node, inputs: list[Tensor], reason: str) -> Any:
        """Freeze everything an operation reads and return opaque labels for what it makes."""
        for labels in inputs:
            self.space.freeze(labels, reason)
        return self.opaque_like(node.meta.get("val"), reason)

    def opaque_like(self, value: Any, reason: str) -> Any:
        """Return opaque labels for a tensor, or for each tensor of a nested sequence."""
        if isinstance(value, Tensor):
            return self.space.opaque([int(s) for s in value.shape], reason)
        if isinstance(value, (tuple, list)):
            return type(value)(self.opaque_like(part, reason) for part in value)
        return value

"""What a trace collects while it walks through the exported graph, and what the rules may say to it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx

from clusterprune.graph.labels import LabelSpace, collapse, spread
from clusterprune.graph.nest import map_leaves
from clusterprune.graph.stored import Stored

Kind = Literal["conv", "conv_transpose", "conv_deformable", "linear", "matmul"]


@dataclass(frozen=True)
class Layout:
    """Where the channels of a kind of layer lie.

    Attributes
    ----------
    row_dim
        Dimension of the weight along the channels that the layer makes.
    channel_dim
        Dimension of input and output along the channels.
    slides
        Whether it multiplies patches of its input, one for each place of its output.
    overlaps
        Whether it writes its kernels to places of its output that may overlap.
    """

    row_dim: int
    channel_dim: int
    slides: bool = False
    overlaps: bool = False


LAYOUTS: dict[Kind, Layout] = {
    "conv": Layout(0, 1, slides=True),
    "conv_transpose": Layout(1, 1, overlaps=True),
    "conv_deformable": Layout(0, 1),
    "linear": Layout(0, -1),
    "matmul": Layout(1, -1),
}


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer as it stands in the graph: its path in the module, and its shape."""

    path: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LayerCall:
    """One application of a convolution or linear layer.

    `weight` and `bias` are paths in the module. `depthwise` layers have one input channel per group: they
    carry channels on and neither read nor make any. The kernel of a `computed` layer is not stored, but computed from
    parameters (standardised, masked, normalised): `stored` has all their paths, `weight` the most important one. Such
    a kernel cannot be replaced or mixed, only cut.
    """

    node: str
    kind: Kind
    weight: str
    bias: str | None
    groups: int
    input: str
    depthwise: bool = False
    computed: bool = False
    stored: tuple[str, ...] = ()

    @property
    def layer(self) -> str:
        """Path of the module (or the bare parameter) that the call applies."""
        return layer_of(self.weight)

    @property
    def row_dim(self) -> int:
        """Dimension of the weight that runs along the channels which the layer makes."""
        return LAYOUTS[self.kind].row_dim

    @property
    def channel_dim(self) -> int:
        """Dimension of what the layer reads and makes along which its channels run: 1, or -1 for the last."""
        return LAYOUTS[self.kind].channel_dim

    @property
    def by_row(self) -> bool:
        """Whether the layer multiplies every row of its input by one matrix, and so knows no space."""
        return self.channel_dim == -1

    @property
    def slides(self) -> bool:
        """Whether the layer multiplies patches of its input, one for each place of its output."""
        return LAYOUTS[self.kind].slides

    @property
    def overlaps(self) -> bool:
        """Whether the layer writes its kernels to places of its output that may overlap."""
        return LAYOUTS[self.kind].overlaps

    def places(self, shape: Sequence[int]) -> int:
        """Return at how many places the layer makes its channels in one image, by the shape of what it makes."""
        return math.prod(shape[1:-1] if self.by_row else shape[2:])


def layer_of(path: str) -> str:
    """Return the path of the layer that a kernel belongs to, also where a parametrization computes it."""
    owner, parametrized, _ = f".{path}".rpartition(".parametrizations.weight.")
    return owner.removeprefix(".") if parametrized else path.removesuffix(".weight")


@dataclass
class Slice:
    """The labels along one dimension of a parameter.

    `role` says what cutting this dimension means: "row" where the parameter makes or carries a channel,
    "column" where a layer reads it. A column slice of a grouped convolution runs over all input channels,
    of which every one of the `groups` row blocks stores only its own. Columns that are not `mixable` can only be cut.
    """

    path: str
    dim: int
    labels: Tensor
    role: Literal["row", "column"]
    groups: int = 1
    mixable: bool = True


@dataclass
class EqualBlocks:
    """Labels in equal blocks, each of which must lose the same number (grouped convolutions, chunks)."""

    labels: Tensor
    blocks: int
    reason: str
    hard: bool


@dataclass
class TraceState:
    """The state of a trace: labels, slices of parameters, layer calls, partitions, and what was not understood.

    `approximate` says by node which operations a cut changes beyond leaving channels out (allowed if
    `allow_approximate`). `unlabelled` holds the layers whose outputs cannot be channels of a group: by name, how
    many they make and why none may go.
    """

    space: LabelSpace = field(default_factory=LabelSpace)
    slices: dict[tuple[str, int], Slice] = field(default_factory=dict[tuple[str, int], Slice])
    pinned: dict[tuple[str, int], str] = field(default_factory=dict[tuple[str, int], str])
    gains: dict[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])
    calls: list[LayerCall] = field(default_factory=list[LayerCall])
    partitions: list[EqualBlocks] = field(default_factory=list[EqualBlocks])
    unknown: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    norm_groups: dict[str, int] = field(default_factory=dict[str, int])
    user_inputs: set[str] = field(default_factory=set[str])
    allow_approximate: bool = False
    approximate: dict[str, str] = field(default_factory=dict[str, str])
    approximate_labels: list[Tensor] = field(default_factory=list[Tensor])
    unlabelled: dict[str, tuple[int, str]] = field(default_factory=dict[str, tuple[int, str]])

    def bind(
        self,
        parameter: "Parameter | Stored | None",
        dim: int,
        labels: Tensor,
        role: Literal["row", "column"] = "row",
        groups: int = 1,
    ) -> Tensor:
        """Say that dimension `dim` of a parameter belongs to `labels`, a vector.

        A parameter met for the second time (a layer applied twice) unites the labels of both calls. Of a value that is
        computed from parameters every one is bound that runs along the dimension; where that is not all there is to
        it, the labels freeze.
        """
        if parameter is None:
            return labels
        if isinstance(parameter, Parameter):
            return self._bind(parameter.path, dim, labels, role, groups, mixable=True)
        names = ", ".join(parameter.paths) or "constants"
        self.pin(parameter.mixed, f"{names}: a kernel or scale is computed from all of it")
        places = parameter.rows(dim) if role == "row" else parameter.columns(dim)
        # The columns of a grouped kernel are cut block by block of its rows: all that is cut must have both.
        lacking = {path for path, place in places if place != dim or (path, 0) not in parameter.rows(0)}
        if not places or (groups > 1 and lacking):
            what = "filters" if role == "row" else "inputs"
            self.space.freeze(labels, f"a kernel is computed from {names} over its {what}")
            self.pin(parameter.places, f"{names}: a kernel or scale is computed from all of it")
            return labels
        for path, place in sorted(places):
            labels = self._bind(path, place, labels, role, groups, mixable=False)
        return labels

    def pin(self, places: Iterable[tuple[str, int]], reason: str) -> None:
        """Say that dimensions of parameters must stay whole, whatever else is found out about them."""
        for place in places:
            self.pinned.setdefault(place, reason)

    def settle(self) -> None:
        """Freeze what was pinned, once everything is bound."""
        for place, reason in self.pinned.items():
            if place in self.slices:
                self.space.freeze(self.slices[place].labels, reason)

    def _bind(
        self, path: str, dim: int, labels: Tensor, role: Literal["row", "column"], groups: int, *, mixable: bool
    ) -> Tensor:
        key = (path, dim)
        known = self.slices.get(key)
        if known is None:
            self.slices[key] = Slice(path, dim, labels, role, groups, mixable)
            return labels
        known.mixable = known.mixable and mixable
        if known.labels.shape != labels.shape or known.role != role:
            reason = f"{path} is used in two different ways"
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

    def known(self, value: "Parameter | Stored", dim: int) -> Tensor | None:
        """Return the labels that a dimension of a stored value has already."""
        places = {(value.path, dim)} if isinstance(value, Parameter) else value.rows(dim)
        return next((self.slices[place].labels for place in sorted(places) if place in self.slices), None)

    def labels_of(self, value: "Parameter | Stored", dims: Iterable[int], where: str) -> Tensor | None:
        """Return labels for a stored value that meets activations whose channels run along `dims` (None for a number).

        One of these dimensions may be one of parameters; it gets their labels. Everything else must stay.
        """
        value = value if isinstance(value, Stored) else Stored.of(value.path, value.shape)
        shape = value.shape
        changing = [d for d in dims if any(not axis.flat for axis in value.dimensions[d])]
        names = ", ".join(value.paths) or "constants"
        reason = f"{where}: {names} meets channels in a way that needs all of it"
        if len(changing) == 1 and (places := value.rows(changing[0])):
            (dim,) = changing
            labels = self.known(value, dim)
            labels = self.space.new(shape[dim]) if labels is None or len(labels) != shape[dim] else labels
            for path, place in sorted(places):
                labels = self._bind(path, place, labels, "row", 1, mixable=False)
            self.pin(value.places - places, reason)
            return spread(labels, dim, shape)
        self.pin(value.places, reason)
        return None if all(length == 1 for length in shape) else self.space.opaque(shape, reason)

    def as_data(self, nest: Any) -> Any:
        """Put labels in place of parameters that meet nothing whose channels theirs could be: they must stay."""

        def labelled(leaf: Any) -> Any:
            return self.labels_of(leaf, (), "an operation") if isinstance(leaf, (Parameter, Stored)) else leaf

        return map_leaves(labelled, nest)

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

        def opaque(leaf: Any) -> Any:
            return self.space.opaque([int(s) for s in leaf.shape], reason) if isinstance(leaf, Tensor) else leaf

        return map_leaves(opaque, value)

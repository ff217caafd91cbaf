"""Rebuild a model from its graph, for models whose own code does not fit the cut any more."""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from clusterprune.errors import ModelError, PlanError, TraceError
from clusterprune.graph import ChannelGraph
from clusterprune.graph.batch import call_with_batch, follow_batch
from clusterprune.graph.export import canonical_paths
from clusterprune.graph.ops import CallEdit, op_of
from clusterprune.graph.ops.shape import DROPOUT
from clusterprune.graph.program import Ref
from clusterprune.graph.sizes import follow_sizes
from clusterprune.surgery.equivalence import Equivalence, Way
from clusterprune.surgery.history import set_stages, stages
from clusterprune.surgery.resize import owner_of

_LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
    nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.PReLU,
)  # fmt: skip
_FORWARDS = frozenset(
    layer.forward for layer in (*_LAYERS, nn.BatchNorm2d, nn.InstanceNorm2d) if layer.forward is not nn.Module.forward
)
CONSTANT = "_constant_"
"""How the buffers are called that hold the constants of a graph: no state of the model, and not saved."""
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class RebuiltModule(fx.GraphModule):
    """A rebuilt model, which PyTorch's own files hold without this package.

    A graph module is pickled as code, and what the code calls is imported where it is read. Pickled, the model refuses
    other sizes by PyTorch's assertion in place of :func:`require_length`, so as an `AssertionError`.
    """

    def __reduce__(self) -> Any:
        """Pickle a graph module whose graph calls nothing of this package."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.graph, {}))
        for node in graph.nodes:
            if node.target is require_length:
                tensor, dim, length, what = node.args
                with graph.inserting_before(node):
                    size = graph.call_method("size", (tensor, dim))
                    node.args = (graph.call_function(operator.eq, (size, length)), _refusal(what, dim, length))
                    node.target = torch._assert
        plain = fx.GraphModule(self, graph, class_name=type(self).__name__)
        return set_stages(plain, stages(self)).__reduce__()


class EvaluationModule(RebuiltModule):
    """A rebuilt model that knows evaluation mode alone, and refuses training mode by saying why.

    Its graph is that of an evaluation: what the original does in training mode beyond its layers' own (a dropout
    called as a function, an auxiliary head, a branch on `self.training`) is not in it.
    """

    def train(self, mode: bool = True) -> "EvaluationModule":
        """Put the module into evaluation mode.

        Raises
        ------
        ModelError
            If training mode is asked for.
        """
        if mode:
            raise ModelError(
                f"{type(self).__name__} was rebuilt from what the original does in evaluation, and the original does "
                "something else in training; train the original before the cut, or leave the groups alone that its "
                "code has sizes for (ignore=), so that the model keeps its class"
            )
        return super().train(mode=False)


def rebuild(
    module: nn.Module, graph: ChannelGraph, changes: Mapping[str, CallEdit], equivalence: Equivalence
) -> tuple[fx.GraphModule, str | None]:
    """Return a graph module over the resized layers of `module`, and why it cannot be trained (None if it can).

    It does what the original does, at other image sizes, at other batch sizes and in training mode; where it could
    not, it refuses.

    Raises
    ------
    PlanError
        If not even the traced size comes out right.
    """
    best: tuple[fx.GraphModule, list[Way]] | None = None
    for build in (graph_module, _at_any_size):
        built = build(module, graph, changes)
        if built is None or _wrong(built, equivalence, ("traced",)):
            continue
        wrong = _wrong(built, equivalence, ("batch", "size"))
        if best is None or len(wrong) < len(best[1]):
            best = built, wrong
        if not wrong:
            break
    if best is None:
        raise PlanError(
            f"{type(graph.model).__name__} cannot be rebuilt after this cut; leave groups alone with ignore= until "
            "it can"
        )
    built, wrong = best
    refused = {way for way in ("batch", "size") if way in wrong or not equivalence.takes(way)}
    _refuse(built, graph, refused)
    training: Way = "training as traced" if "batch" in refused else "training in batches" if refused else "training"
    if not _wrong(built, equivalence, (training,)):
        return built, None
    frozen = EvaluationModule(built, built.graph, class_name=type(graph.model).__name__)
    frozen.eval()
    return frozen, "the model had to be rebuilt from its evaluation graph, and in training mode it does something else"


def _wrong(built: fx.GraphModule, equivalence: Equivalence, ways: Sequence[Way]) -> list[Way]:
    """Return the ways in which a rebuilt model differs from the original in every precision.

    A graph holds constants and types as they were traced (the least float32 as a mask, an `arange` in float32), for
    which the original's code takes others when it runs in float64: that is no difference if there is none in the
    model's own types.
    """
    wrong = equivalence.differs(built, ways)
    return equivalence.in_own_types.differs(built, wrong) if wrong else []


def graph_module(module: nn.Module, graph: ChannelGraph, changes: Mapping[str, CallEdit]) -> fx.GraphModule:
    """Return a `GraphModule` over the (already resized) layers of `module`.

    Layers are called as modules, so batch norm and dropout train as they did, and parameters keep their
    names. Views are tied to the traced image size, and to the batch size only where the
    graph could not be followed to another one (see :mod:`clusterprune.graph.batch`).
    """
    follow = graph.batch_size.arguments

    def arguments(build: "_Builder", node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
        args = follow_batch(args, follow.get(node.name))
        return call_with_batch(build.rebuilt, next(n for n in build.rebuilt.nodes if n.op == "placeholder"), args)

    return _Builder(module, graph, changes, arguments).build()


def _at_any_size(module: nn.Module, graph: ChannelGraph, changes: Mapping[str, CallEdit]) -> fx.GraphModule | None:
    """Return a `GraphModule` whose views follow the sizes of its inputs, where the export can follow them."""
    try:
        sizes = follow_sizes(graph)
    except TraceError:
        return None

    def arguments(build: "_Builder", node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return sizes.into(build.rebuilt, build.values, node, args)

    return _Builder(module, graph, changes, arguments).build()


class _Builder:
    """Writes an exported graph anew, with layers called as modules and numbers that follow the inputs."""

    def __init__(
        self,
        module: nn.Module,
        graph: ChannelGraph,
        changes: Mapping[str, CallEdit],
        arguments: Callable[["_Builder", fx.Node, tuple[Any, ...]], tuple[Any, ...]],
    ) -> None:
        self.module, self.graph, self.changes, self._arguments = module, graph, changes, arguments
        self.rebuilt = fx.Graph()
        self.values: dict[str, Any] = {}
        self._constants: dict[str, str] = {}

    def build(self) -> fx.GraphModule:
        for node in self.graph.fx.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "output":
                flat = [self.values[n.name] if isinstance(n, fx.Node) else n for n in node.args[0]]  # type: ignore[union-attr]
                self.rebuilt.output(pytree.tree_unflatten(flat, self.graph.out_spec))
            else:
                self.values[node.name] = self._call(node)
        root = RebuiltModule(self.module, self.rebuilt, class_name=type(self.graph.model).__name__)
        root.train(self.module.training)
        return root

    def _placeholder(self, node: fx.Node) -> None:
        if node.name in self.graph.inputs:
            return  # fetched where it is used, and not at all where a module uses it
        if node.name in self.graph.constants:
            free = next(n for i in count() if not hasattr(self.module, n := f"{CONSTANT}{i}"))
            self._constants[node.name] = free
            self.module.register_buffer(free, self.graph.constants[node.name], persistent=False)
            return
        self.values[node.name] = self.rebuilt.placeholder(node.name)

    def _fetch(self, source: fx.Node) -> Any:
        if source.name in self.values:
            return self.values[source.name]
        if source.name in self.graph.inputs:
            return self.rebuilt.get_attr(self.graph.inputs[source.name])
        return self.rebuilt.get_attr(self._constants[source.name])

    def _call(self, node: fx.Node) -> fx.Node:
        if (path := _layer_of(self.module, self.graph, node) or self._dropout_of(node)) is not None:
            return self.rebuilt.call_module(path, (self.values[node.args[0].name],))  # type: ignore[union-attr]
        target: Any = node.target
        if node.name in self.changes:
            change = self.changes[node.name]
            target, args, kwargs = change.target, change.args, change.kwargs
        else:
            args, kwargs = tuple(node.args), dict(node.kwargs)
        if target is torch.ops.aten.view.default:
            target = torch.ops.aten.reshape.default  # what one image has in order, several may not have
        args = self._arguments(self, node, args)
        args, kwargs = fx.map_arg((args, kwargs), lambda n: n if n.graph is self.rebuilt else self._fetch(n))
        args = tuple(self.rebuilt.get_attr(a.name) if isinstance(a, Ref) else a for a in args)
        return self.rebuilt.call_function(target, args, kwargs)

    def _dropout_of(self, node: fx.Node) -> str | None:
        path = owner_of(node) if op_of(node) is DROPOUT else None
        owner = None if path is None else self.module.get_submodule(path)
        return _first_path(self.module, owner) if isinstance(owner, _DROPOUTS) else None


def require_length(tensor: Tensor, dim: int, length: int, what: str) -> None:
    """Check one dimension of an input of a rebuilt model.

    Raises
    ------
    ModelError
        If it has not the traced length.
    """
    if tensor.shape[dim] != length:
        raise ModelError(f"{_refusal(what, dim, length)} The input has the shape {tuple(tensor.shape)}.")


def _refusal(what: str, dim: int, length: int) -> str:
    """Say why an input of another size is refused, and what to do."""
    return (
        f"{what} was rebuilt after a cut, and cannot follow its input to another size: dimension {dim} must be "
        f"{length}, as it was traced. Trace the original with an example of the size and batch that you use, and cut "
        "it anew."
    )


def _refuse(built: fx.GraphModule, graph: ChannelGraph, ways: set[str]) -> None:
    """Make a graph module check the size, or the batch, of its inputs before anything else."""
    if not ways:
        return
    inputs = [node for node in built.graph.nodes if node.op == "placeholder"]
    shapes = [tuple(t.shape) for t in pytree.tree_leaves((graph.args, graph.kwargs)) if isinstance(t, Tensor)]
    name = type(graph.model).__name__
    after = inputs[-1]
    for node, dim, length in _checked(inputs, shapes, ways):
        with built.graph.inserting_after(after):
            after = built.graph.call_function(require_length, (node, dim, length, name))
    built.recompile()


def _checked(
    inputs: list[fx.Node], shapes: list[tuple[int, ...]], ways: set[str]
) -> Iterator[tuple[fx.Node, int, int]]:
    for node, shape in zip(inputs, shapes, strict=False):
        for dim, length in enumerate(shape):
            if ("batch" if dim == 0 else "size" if dim > 1 else "") in ways:
                yield node, dim, length


def _layer_of(module: nn.Module, graph: ChannelGraph, node: fx.Node) -> str | None:
    """Return the path of the layer whose forward is this node: its own parameters, in one operation."""
    path = owner_of(node)
    if path is None or not isinstance(owner := module.get_submodule(path), _LAYERS):
        return None
    # A subclass may do more than its base (a norm that permutes first), and so may a padding mode.
    if type(owner).forward not in _FORWARDS or getattr(owner, "padding_mode", "zeros") != "zeros":
        return None
    canonical = canonical_paths(module)
    prefix = f"{path}." if path else ""
    own = {canonical[prefix + name] for name, _ in [*owner.named_parameters(), *owner.named_buffers()]}
    stored = {graph.inputs[n.name] for n in node.all_input_nodes if n.name in graph.inputs}
    return _first_path(module, owner) if stored and stored <= own else None


def _first_path(module: nn.Module, part: nn.Module) -> str:
    """Return the path of a submodule under which its parameters are listed, wherever else it is used."""
    return next(path for path, other in module.named_modules() if other is part)

"""Run an exported graph with any weights, any batch size, and from any point to any other.

The graph that `torch.export` returns holds the example's batch size in the arguments of its views.
:mod:`clusterprune.graph.batch` finds it, so that one trace serves every batch.
"""

from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from clusterprune.errors import ModelError
from clusterprune.graph.batch import Batch, follow_batch
from clusterprune.graph.channels import ChannelGraph
from clusterprune.graph.nest import leaves, map_leaves
from clusterprune.graph.ops import named_arguments, op_of
from clusterprune.graph.put_back import seeded

aten = torch.ops.aten


@dataclass(frozen=True)
class Ref:
    """Stands for the value of another node in a step's arguments."""

    name: str


@dataclass(frozen=True)
class Step:
    """One operation: what to call, on what, and which values nobody needs afterwards."""

    name: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    last_use_of: tuple[str, ...]


def named_tensors(graph: ChannelGraph) -> dict[str, Tensor]:
    """Return every parameter and buffer of the traced model by path (each tensor under its first path)."""
    return {**dict(graph.model.named_parameters()), **dict(graph.model.named_buffers())}


def moved(graph: ChannelGraph) -> tuple[torch.device, torch.device] | None:
    """Return where a graph's model was when it was traced and where it is now, if that is somewhere else."""
    named = named_tensors(graph)
    for node in graph.fx.nodes:
        tensor = named.get(graph.inputs.get(node.name, ""))
        if node.op == "placeholder" and tensor is not None and tensor.device != node.meta["val"].device:
            return node.meta["val"].device, tensor.device
    return None


class Program:
    """A traced model as a list of steps.

    Parameters
    ----------
    graph
        The traced model.
    changes
        New calls for nodes by name, as :func:`clusterprune.graph.rewrite.rewrite` gives them.
    any_batch
        Whether to run with other batch sizes than the traced one, which costs a second export of the model.
    order
        Names of all nodes in the order in which they run, if not as traced; see :mod:`clusterprune.graph.schedule`.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        changes: Mapping[str, Any] | None = None,
        *,
        any_batch: bool = True,
        order: Sequence[str] | None = None,
    ) -> None:
        """Compile the graph; `changes` come from cutting channels.

        Raises
        ------
        ModelError
            If the model has moved to another device since it was traced.
        """
        if (places := moved(graph)) is not None:
            raise ModelError(
                f"the model was traced on {places[0]} and is on {places[1]} now; trace it again where it is"
            )
        self.graph = graph
        self.any_batch = any_batch
        changes = changes or {}
        nodes = [*graph.fx.nodes] if order is None else [graph.nodes[name] for name in order]
        last: dict[str, str] = {}
        for node in nodes:
            for argument in node.all_input_nodes:
                last[argument.name] = node.name
        changed = {node.name for node in nodes if node.op == "call_function" and is_private(node)}
        # What the graph writes into belongs to the user (a buffer, the images): every run has its own.
        self.steps = [Step(name, aten.clone.default, (Ref(name),), {}, ()) for name in written_placeholders(graph.fx)]
        self.user_inputs = list(graph.user_inputs)
        self._places = {n.name: n.meta["val"].device for n in graph.fx.nodes if n.name in self.user_inputs}
        self.output: Any = None
        for node in nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                self.output = _refs(node.args[0])
            else:
                target: Any = node.target
                if node.name in changes:
                    change = changes[node.name]
                    target, args, kwargs = change.target, change.args, change.kwargs
                else:
                    args, kwargs = tuple(node.args), dict(node.kwargs)
                if any_batch:
                    args = follow_batch(args, graph.batch_size.arguments.get(node.name))
                if node.name in changed:
                    target = _functional_twin(target)
                if target is aten.view.default:
                    target = aten.reshape.default  # images may come in channels-last format, which has fewer views
                if is_random(node):
                    target = _Seeded(target, len(self.steps))
                frees = tuple(name for name, user in last.items() if user == node.name)
                self.steps.append(Step(node.name, target, _refs(args), _refs(kwargs), frees))
        self.index = {step.name: position for position, step in enumerate(self.steps)}
        # The first input says how many images there are.
        self.differentiable = differentiable(graph.fx)
        outputs = {leaf.name for leaf in leaves(self.output) if isinstance(leaf, Ref)}
        self.kept = {*outputs, *self.user_inputs[:1], *self.differentiable}

    def start(
        self, state: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the values that exist before the first step: weights, constants and inputs."""
        given = [*args, *(kwargs or {}).values()]
        return {**self.bind([value for value in given if isinstance(value, Tensor)]), **self.weights(state)}

    def bind(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        """Return the inputs by node name, each on the device where the traced example had it.

        Images may therefore stay on the CPU: a batch moves when it is its turn.

        Raises
        ------
        ModelError
            If the number of inputs differs from the traced one, or the batch size of a graph that has but one.
        """
        if len(inputs) != len(self.user_inputs):
            raise ModelError(f"the model was traced with {len(self.user_inputs)} tensor inputs, but got {len(inputs)}")
        batch = self.graph.batch_size if self.any_batch else None
        if batch is not None and batch.fixed is not None and batch.traced and len(inputs[0]) != batch.traced:
            raise ModelError(
                f"{type(self.graph.model).__name__} runs with a batch of {batch.traced} only, as it was traced, but "
                f"got {len(inputs[0])}: {batch.fixed}. Trace it with an example of the batch size that you use."
            )
        places = self._places
        return {name: value.to(places[name]) for name, value in zip(self.user_inputs, inputs, strict=True)}

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return weights and constants by node name."""
        named = {name: state[path] for name, path in self.graph.inputs.items() if path in state}
        # Biases that surgery gives to layers without one are no inputs of the traced graph.
        known = set(self.graph.inputs.values())
        added = {path: tensor for path, tensor in state.items() if path not in known}
        return {**self.graph.constants, **named, **added}

    def advance(self, values: MutableMapping[str, Any], start: int, stop: int, skip: Collection[str] = ()) -> None:
        """Run steps `start` to `stop` - 1, but those in `skip`, on `values`, dropping what nobody needs any more."""
        for step in self.steps[start:stop]:
            if step.name not in skip:
                args, kwargs = _resolve((step.args, step.kwargs), values)
                values[step.name] = step.target(*args, **kwargs)
            for name in step.last_use_of:
                if name not in self.kept and name not in self.graph.inputs and name not in self.graph.constants:
                    values.pop(name, None)

    def visit(self, values: MutableMapping[str, Any], names: Collection[str]) -> Iterator[tuple[str, Any]]:
        """Run every step on `values`; yield the values of the named nodes, each as soon as it is there."""
        position = 0
        for stop in sorted(self.index[name] + 1 for name in names):
            self.advance(values, position, stop)
            position = stop
            name = self.steps[stop - 1].name
            yield name, values[name]
        self.advance(values, position, len(self.steps))

    def run(self, state: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run the whole graph with the given weights; return what the model returns, flattened to a tuple."""
        values = self.start(state, args, kwargs)
        self.advance(values, 0, len(self.steps))
        return self.collect(values)

    def collect(self, values: Mapping[str, Any]) -> Any:
        """Return the outputs once every step has run."""
        return _resolve(self.output, values)


def differentiable(graph: fx.Graph) -> tuple[str, ...]:
    """Return the floating-point outputs of a graph; if it has none, what its outputs (classes, masks) are read off."""
    outputs = [n for node in graph.nodes if node.op == "output" for n in node.all_input_nodes]
    floating = tuple(node.name for node in outputs if _is_floating(node))
    if floating:
        return floating
    found: dict[str, None] = {}
    waiting, seen = outputs, set(outputs)
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source.op == "call_function" and _is_floating(source):
                found[source.name] = None
            elif source not in seen:
                seen.add(source)
                waiting.append(source)
    return tuple(found)


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def computed_kernels(graph: ChannelGraph, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the kernels that are not stored but computed from parameters, by the node names of the calls."""
    wanted = {call.node for call in graph.calls if call.computed}
    if not wanted:
        return {}
    kernels = {node.name: node.args[1] for node in graph.fx.nodes if node.name in wanted}
    waiting = [kernel for kernel in kernels.values() if isinstance(kernel, fx.Node)]
    needed: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node.name not in needed:
            needed.add(node.name)
            waiting += node.all_input_nodes
    program = Program(graph, any_batch=False)
    values: dict[str, Any] = program.weights(state)
    with torch.no_grad():
        for step in program.steps:
            if step.name in needed and step.name not in values:
                args, kwargs = _resolve((step.args, step.kwargs), values)
                values[step.name] = step.target(*args, **kwargs)
    return {name: values[kernel.name] for name, kernel in kernels.items() if isinstance(kernel, fx.Node)}


def is_random(node: fx.Node) -> bool:
    """Tell whether a node throws dice; a dropout outside training does not."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    op = op_of(node)
    return op is None or not op.passes or bool(named_arguments(node).get("train"))


@dataclass(frozen=True)
class _Seeded:
    """A random operation that gives the same numbers in every run, and leaves the user's dice alone."""

    target: Any
    seed: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        devices = {leaf.device for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        devices |= {kwargs["device"]} if isinstance(kwargs.get("device"), torch.device) else set()
        numbers = {device.index or 0 for device in devices if device.type == "cuda"}
        with seeded(self.seed, numbers):
            return self.target(*args, **kwargs)


def written_placeholders(graph: fx.Graph) -> list[str]:
    """Return the placeholders (weights, buffers, constants, inputs) that operations of a graph write into."""
    # What a value may be a view of: more than it is does no harm.
    behind: dict[fx.Node, set[fx.Node]] = {}
    written: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            behind[node] = {node}
            continue
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None:
            behind[node] = set[fx.Node]().union(*(behind.get(source, set()) for source in node.all_input_nodes))
            continue
        op, given = op_of(node), named_arguments(node)
        targets = [given[a.name] for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        if given.get("training") or given.get("use_input_stats"):
            targets += [given.get("running_mean"), given.get("running_var")]  # which the schema does not tell
        for source in pytree.tree_leaves(targets):
            written |= behind.get(source, set())
        aliases = (op is not None and op.keeps_elements) or any(r.alias_info is not None for r in schema.returns)
        sources = node.all_input_nodes if aliases else list[fx.Node]()
        behind[node] = set[fx.Node]().union(*(behind.get(source, set()) for source in sources))
    return [node.name for node in graph.nodes if node in written]


def _functional_twin(target: Any) -> Any:
    """Return the operator that does the same without writing into its argument (or the operator itself)."""
    twin = getattr(aten, target.overloadpacket.__name__.removesuffix("_"), None)
    return getattr(twin, target._overloadname, target)


def is_private(node: fx.Node) -> bool:
    """Tell whether a node writes into a value that only it reads, so that it may as well make a new one."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet is None or not packet.__name__.endswith("_") or not node.all_input_nodes:
        return False
    source = node.args[0]
    if not isinstance(source, fx.Node) or len(source.users) != 1 or source.op != "call_function":
        return False
    made_by = getattr(source.target, "overloadpacket", None)
    if made_by is not None and made_by.__name__.endswith("_"):
        return is_private(source)  # what a write in place returns is what it wrote into
    op = op_of(source)
    return made_by is not None and not (op is not None and op.keeps_elements)


def _refs(nest: Any) -> Any:
    return map_leaves(lambda leaf: Ref(leaf.name) if isinstance(leaf, fx.Node) else leaf, nest)


def _resolve(nest: Any, values: Mapping[str, Any]) -> Any:
    def value_of(leaf: Any) -> Any:
        if isinstance(leaf, Ref):
            return values[leaf.name]
        return leaf.resolve(len(values[leaf.source])) if isinstance(leaf, Batch) else leaf

    return map_leaves(value_of, nest)

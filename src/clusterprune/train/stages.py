"""The feature maps that a network under guidance is compared by: which, and how to read them.

A stage is the output of a module, named by its path. A network's own code calls that module, and a
forward hook reads it. A network that :func:`clusterprune.apply` had to rebuild as a graph
(`torch.fx.GraphModule`) calls its convolutions and norms as modules but nothing larger, and no
activations: there a stage is found by following the graph from the layer that ends it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from clusterprune.errors import ArgumentError, ModelError
from clusterprune.graph.throwaway import evaluating

Reader = Callable[[nn.Module, Tensor], tuple[Any, list[Tensor]]]
"""Runs a network on images; returns its outputs and the maps of its stages. It keeps no network alive."""


@dataclass(frozen=True)
class Call:
    """A module that has returned a tensor, and the tensor's shape."""

    name: str
    shape: torch.Size


def calls_of(model: nn.Module, images: Tensor) -> list[Call]:
    """Return the calls of a network's modules, itself left out, in the order in which they end."""
    calls: list[Call] = []

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                calls.append(Call(name, output.shape))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        with _quiet(model, images):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def find_stages(teacher: nn.Module, student: nn.Module, calls: Sequence[Call]) -> tuple[str, ...]:
    """Return the stages of a network: those of the papers, or its last map at each resolution.

    Raises
    ------
    ModelError
        No map larger than one pixel is made by a module that both networks have.
    """
    if (published := _published(teacher)) is not None:
        return published
    # A rebuilt network calls fewer modules, but its graph holds what they computed.
    rebuilt = isinstance(student, fx.GraphModule)
    shared = {name for name, _ in (teacher if rebuilt else student).named_modules()}
    sizes: dict[str, set[torch.Size]] = {}
    for call in calls:
        sizes.setdefault(call.name, set()).add(call.shape[2:])
    # A module that is called at several resolutions would be read at the last of them alone.
    fit = [call for call in calls if len(call.shape) == 4 and call.name in shared and len(sizes[call.name]) == 1]
    last = {call.shape[2:]: call.name for call in fit}
    stages = tuple(name for size, name in last.items() if size.numel() > 1)
    if not stages:
        raise ModelError(
            "the teacher and the model share no module that returns feature maps (n, c, h, w) larger than one pixel; "
            "name stages that both have, or pass beta=0"
        )
    return stages


def check_stages(stages: Sequence[str], calls: Sequence[Call]) -> None:
    """Find a stage that is no feature map of the teacher.

    Raises
    ------
    ArgumentError
        It names the stage, and modules that could be meant.
    """
    shapes = {call.name: call.shape for call in calls}
    maps = [name for name, shape in shapes.items() if len(shape) == 4]
    for name in stages:
        if name not in maps:
            found = f"returns {tuple(shapes[name])}" if name in shapes else "is not called as a module"
            raise ArgumentError(
                f"stages has {name!r}, which {found} in the teacher; stages are modules that return maps (n, c, h, w), "
                f"such as {', '.join(maps[-5:])}"
            )


def _published(teacher: nn.Module) -> tuple[str, ...] | None:
    """Return the stages that ICP's authors compare: a network of ours says which; of an ImageNet ResNet, three."""
    if (own := getattr(teacher, "compared_stages", None)) is not None:
        return own
    from torchvision.models import ResNet  # whose import takes seconds

    return ("layer1", "layer2", "layer3") if isinstance(teacher, ResNet) else None


def reader(model: nn.Module, stages: Sequence[str], calls: Sequence[Call], images: Tensor) -> Reader:
    """Return a function that runs `model` and returns its outputs and the maps of `stages`.

    Parameters
    ----------
    calls
        Of the teacher: what each stage follows, and its resolution.
    images
        A batch to try a rebuilt network on.

    Raises
    ------
    ModelError
        `model` has no such stage.
    """
    if isinstance(model, fx.GraphModule):
        return _graph_reader(model, stages, calls, images)
    modules = dict(model.named_modules())
    missing = [name for name in stages if name not in modules]
    if missing:
        raise ModelError(f"the model has no module {missing[0]!r} as the teacher has; name stages that both have")
    return lambda model, images: _run_with_hooks(model, stages, images)


def _run_with_hooks(model: nn.Module, stages: Sequence[str], images: Tensor) -> tuple[Any, list[Tensor]]:
    maps: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            maps[name] = output

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in stages]
    try:
        outputs = model(images)
    finally:
        for handle in handles:
            handle.remove()
    unread = [name for name in stages if name not in maps]
    if unread:
        raise ModelError(f"the model never calls its module {unread[0]!r}; name stages that it calls")
    return outputs, [maps[name] for name in stages]


def _graph_reader(model: fx.GraphModule, stages: Sequence[str], calls: Sequence[Call], images: Tensor) -> Reader:
    """Return a reader over a second graph that shares the layers of `model` and also returns the stages."""
    shapes = _Shapes(model)
    with _quiet(model, images):
        shapes.run(images)
    nodes = [_node_of(model, stage, calls, shapes.found) for stage in stages]
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    outputs = graph.graph_copy(model.graph, copies)
    graph.output((outputs, [copies[node] for node in nodes]))
    tapped = fx.GraphModule(model, graph)
    return lambda _model, images: tapped(images)


def _node_of(model: fx.GraphModule, stage: str, calls: Sequence[Call], shapes: dict[fx.Node, torch.Size]) -> fx.Node:
    """Return the node that computes a stage.

    It is the call of the stage itself, if the graph calls it. Otherwise the graph still calls the
    last layer within the stage (or, for an activation, before it), and what follows that layer one by
    one, up to a value that another layer or several operations read, ends the stage: an addition, an
    activation, a concatenation. Of these the last at the teacher's resolution counts.
    """
    called = {str(node.target): node for node in model.graph.nodes if node.op == "call_module"}
    if stage in called:
        return called[stage]
    end = max(index for index, call in enumerate(calls) if call.name == stage)
    layers = [call.name for call in calls[: end + 1] if call.name in called]
    size, found = calls[end].shape[2:], None
    node = called[layers[-1]] if layers else None
    while node is not None:
        if shapes.get(node, torch.Size())[2:] == size:
            found = node
        elif found is not None:
            break
        following = list(node.users)
        node = following[0] if len(following) == 1 and following[0].op == "call_function" else None
    if found is None:
        raise ModelError(f"stage {stage!r} cannot be found in the rebuilt model; name stages among its layers")
    return found


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of every tensor in it."""

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.found: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node."""
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.found[n] = value.shape
        return value


@contextmanager
def _quiet(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Let a model run without a trace: no gradients, no new statistics, no weights that autocast remembers."""
    with evaluating(model), torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        yield

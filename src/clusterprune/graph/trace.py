# pyright: reportUnnecessaryIsInstance=false
"""From a model to the groups of channels that can be cut together."""

import copyreg
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from clusterprune.errors import ArgumentError, ModelError, TraceError
from clusterprune.graph.channels import ChannelGraph
from clusterprune.graph.export import Exported, export
from clusterprune.graph.groups import find_groups
from clusterprune.graph.propagate import propagate
from clusterprune.graph.soundness import check_traceable, check_weights
from clusterprune.graph.walk import LayerCall, TraceState

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


def trace(model: nn.Module, example: Example, *, ignore: Iterable[str] = (), approximate: bool = False) -> ChannelGraph:
    """Find which channels of a model belong together.

    The model is exported in evaluation mode with `torch.export` and walked once; every activation carries
    the labels of the channels that its elements belong to.

    Parameters
    ----------
    model
        Any module that `torch.export` can export. It is not changed.
    example
        One input: a tensor, a tuple of positional inputs, or a mapping of keyword inputs. Batch 1 is
        fastest. Only shapes and dtypes matter: its tensors are taken to the model's device, if it has but one.
    ignore
        Globs of group or layer names that must stay as they are, such as `"layer1.*"`.
    approximate
        Whether channels may be cut that a norm takes its statistics over (layer norm over the channels, group norm with
        one group, L2 norm). The cut network's norm is then the norm over the kept channels, which is not what the
        original computed even where nothing reads the removed ones. Groups of which that is true say so:
        `group.approximate`.

    Raises
    ------
    TraceError
        If the model does not run on the example, or cannot be exported.
    ModelError
        If a weight holds NaN or infinity, has no numbers yet, or is set by a hook; if a module is TorchScript.

    Examples
    --------
    >>> import torch, clusterprune as cp
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    >>> graph = cp.trace(net, torch.zeros(1, 3, 8, 8))
    >>> [(group.name, group.width, group.frozen is None) for group in graph.groups]
    [('0', 8, True), ('2', 4, False)]
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"model must be a torch.nn.Module, but got {type(model).__name__}; build it first")
    args, kwargs = _with_model(model, *_inputs(example))
    check_traceable(model)
    check_weights(model)
    exported = export(model, args, kwargs)
    walk = TraceState(allow_approximate=approximate)
    values = propagate(walk, exported)
    names = [name for name, _ in model.named_parameters()]
    untouched = _untouched(names, exported)
    training, why_not = None, None
    if untouched:
        training, why_not = _export_training(model, args, kwargs, untouched)
    training_calls: list[LayerCall] = []
    if training is not None:
        untouched = _untouched(untouched, training)
        # The same labels and slices: a weight of both modes unites what it meets in either.
        second = replace(walk, calls=training_calls, unknown={}, norm_groups={}, approximate={})
        propagate(second, training)
        for name, nodes in second.unknown.items():
            walk.unknown.setdefault(name, [f"{node} (in training)" for node in nodes])
    walk.settle()
    graph = ChannelGraph(
        model,
        args,
        kwargs,
        exported.graph,
        exported.inputs,
        exported.constants,
        tuple(find_groups(walk, walk.calls, training_calls)),
        tuple(walk.calls),
        walk,
        values,
        walk.unknown,
        tuple(untouched),
        exported.out_spec,
        None if training is None else training.graph,
        why_not,
    )
    return graph.freeze(ignore)


def _untouched(names: list[str], exported: Exported) -> list[str]:
    """Return the parameters that no operation reads."""
    used = {exported.inputs.get(node.name) for node in exported.graph.nodes if node.users}
    return [name for name in names if name not in used]


def _export_training(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], untouched: list[str]
) -> tuple[Exported | None, str | None]:
    """Export the training mode too, if it touches what evaluation does not; otherwise say what stands in the way."""
    try:
        # Two images, because a batch norm cannot train on a single number per channel.
        training = export(model, *_two_images(args, kwargs), training=True)
    except TraceError as error:
        few = ", ".join(untouched[:3]) + (", …" if len(untouched) > 3 else "")
        return None, f"evaluation never touches {few}, and its forward in training mode cannot be exported: {error}"
    return (training, None) if len(_untouched(untouched, training)) < len(untouched) else (None, None)


def _two_images(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Double every input of one image."""
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim]
    if not leaves or len(leaves[0]) != 1:
        return args, kwargs
    return pytree.tree_map_only(
        Tensor, lambda leaf: torch.cat([leaf, leaf]) if leaf.ndim and len(leaf) == 1 else leaf, (args, kwargs)
    )


def _inputs(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    raise ArgumentError(
        f"example={type(example).__name__} is not an input; give a tensor, a tuple of inputs, or a mapping of keywords"
    )


def _with_model(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Take the example's tensors to the device that all of a model's tensors are on."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(devices) != 1 or "meta" in {device.type for device in devices}:
        return args, kwargs
    (device,) = devices
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), (args, kwargs))


def _reduced(graph: ChannelGraph) -> tuple[Any, ...]:
    """Pickle the model and its example, from which the graph is traced again: operators cannot be pickled."""
    groups = tuple((group.name, group.width, group.frozen) for group in graph.groups)
    return _trace_again, (graph.model, graph.args, graph.kwargs, graph.walk.allow_approximate, groups, graph.bound)


def _trace_again(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    approximate: bool,
    groups: tuple[tuple[str, int, str | None], ...],
    bound: tuple[tuple[str, str], ...] = (),
) -> ChannelGraph:
    """Return the graph that was pickled, with the groups frozen that were."""
    graph = trace(model, kwargs or args, approximate=approximate)
    if [(group.name, group.width) for group in graph.groups] != [(name, width) for name, width, _ in groups]:
        raise TraceError(
            f"the pickled graph of {type(model).__name__} has other groups than a new trace of it; trace the model "
            "where the graph is needed, and pickle the plan instead (Plan.save)"
        )
    frozen = zip(graph.groups, groups, strict=True)
    as_they_were = tuple(replace(group, frozen=reason) for group, (_, _, reason) in frozen)
    return replace(graph, groups=as_they_were, bound=bound)


copyreg.pickle(ChannelGraph, _reduced)

"""A model as one flat graph of ATen operations."""

import io
import logging
import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.fx import config
from torch.utils import _pytree as pytree

from clusterprune.errors import TraceError
from clusterprune.graph.dead import drop_dead_code
from clusterprune.graph.nest import is_mapping, is_sequence
from clusterprune.graph.regions import flatten_regions
from clusterprune.graph.throwaway import throwaway


@dataclass(frozen=True, eq=False)
class Exported:
    """A model's operations in one mode.

    Attributes
    ----------
    graph
        ATen operations, one node each.
    inputs
        Path of the parameter or buffer by the name of the placeholder that stands for it. A tensor that the model
        has under several paths goes by the first.
    constants
        Tensors (and other values) that are no parameters or buffers, by the name of their placeholder: copies of
        what the model held before anything ran.
    out_spec
        How the outputs are nested.
    """

    graph: fx.Graph
    inputs: dict[str, str]
    constants: dict[str, Any]
    out_spec: Any


def export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    training: bool = False,
    sizes: tuple[Any, ...] | None = None,
) -> Exported:
    """Export a model in evaluation mode, or in training mode. Nothing of the model changes.

    Parameters
    ----------
    sizes
        Which dimensions of each input are left open, as `torch.export` takes them; None fixes all.

    Raises
    ------
    TraceError
        If the model does not run on the inputs, or cannot be exported.
    """
    with throwaway(model) as copy, torch.no_grad(), silence():
        copy.module.train(training)
        try:
            program = torch.export.export(copy.module, args, kwargs, dynamic_shapes=sizes, strict=False)
        except Exception as error:  # whatever a user's forward or the exporter may raise
            failure = error
        else:
            return _read(program, model, copy.original)
    _run(model, args, kwargs, training=training)
    depends = "DataDependent" in type(failure).__name__ or "data-dependent" in str(failure).lower()
    remedy = (
        "Its control flow depends on the numbers in a tensor; move it out of forward, or trace the convolutional part "
        "alone."
        if depends
        else "Trace the part that holds the convolutions alone."
    )
    raise TraceError(
        f"torch.export cannot export {type(model).__name__} on an example of shape {_shapes(args, kwargs)}: "
        f"{first_line(failure)}. {remedy}"
    ) from failure


_NO_STACKS = "do_not_emit_stack_traces"
"""A setting of torch.fx that not every supported version has."""


@contextmanager
def silence() -> Generator[None, None, None]:
    """Keep the exporter's warnings, log and prints to itself: what a user needs to know is in our errors."""
    loggers = [logging.getLogger("torch")]
    # Most have no level of their own and take that; to set each of torch's hundreds took a quarter of a trace.
    loggers += [
        logger
        for name, logger in logging.Logger.manager.loggerDict.items()
        if name.startswith("torch.") and isinstance(logger, logging.Logger) and logger.level != logging.NOTSET
    ]
    levels = [logger.level for logger in loggers]
    emits = getattr(config, _NO_STACKS, None)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        # Nobody reads which line of Python made which node, and to find out takes a quarter of the time.
        if emits is not None:
            setattr(config, _NO_STACKS, True)
        # Some of what the exporter has to say goes past its log.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        if emits is not None:
            setattr(config, _NO_STACKS, emits)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _read(program: torch.export.ExportedProgram, model: nn.Module, original: Any) -> Exported:
    inputs: dict[str, str] = {}
    constants: dict[str, Any] = {}
    paths = canonical_paths(model)
    for spec in program.graph_signature.input_specs:
        target = spec.target
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and target in paths:
            inputs[spec.arg.name] = paths[target]
        elif target is not None:
            value = program.constants.get(target, program.state_dict.get(target))
            constants[spec.arg.name] = original(value).detach().clone() if isinstance(value, Tensor) else value
    graph = flatten_regions(program.graph_module)
    drop_dead_code(graph)
    return Exported(graph, inputs, constants, program.call_spec.out_spec)


def canonical_paths(model: nn.Module) -> dict[str, str]:
    """Map every path of every parameter and buffer to the first path of the same tensor."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    first: dict[int, str] = {}
    return {path: first.setdefault(id(tensor), path) for path, tensor in named}


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool) -> None:
    """Say so if a model that could not be exported does not even run."""
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs))
    with throwaway(model) as copy, torch.no_grad():
        copy.module.train(training)
        try:
            copy.module(*args, **kwargs)
        except Exception as error:
            raise TraceError(
                f"the model does not run on an example of shape {_shapes(args, kwargs)}: {first_line(error)}. "
                "Give an example of the shape that the model expects."
            ) from error


def _shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    given = [*args, *(f"{name}={_shape(value)}" for name, value in kwargs.items())]
    return ", ".join(part if isinstance(part, str) else _shape(part) for part in given)


def _shape(value: Any) -> str:
    """Describe an input without the numbers in it."""
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    if is_sequence(value):
        return f"[{', '.join(map(_shape, value))}]"
    if is_mapping(value):
        return "{" + ", ".join(f"{key}: {_shape(part)}" for key, part in value.items()) + "}"
    text = repr(value)
    return text if len(text) <= _LONG else type(value).__name__


_LONG = 200
"""Letters of somebody else's message that are worth repeating."""


def first_line(error: Exception) -> str:
    """Return what an error says first, shortened, without what its tensors hold."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # What a tensor holds says nothing, and may be long.
    line = re.sub(r"tensor\(.*", "tensor(…)", lines[0]).rstrip(".") if lines else type(error).__name__
    return line if len(line) <= _LONG else line[:_LONG].rstrip() + "…"

"""A model as one flat graph of ATen operations, and the arguments of an operation by name."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from clusterprune.errors import TraceError


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model into evaluation mode; afterwards every module has the mode it had before.

    Module by module, because models are used with parts (often batch norm) frozen in evaluation
    mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


def export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.export.ExportedProgram:
    """Export a model in evaluation mode."""
    with evaluating(model), torch.no_grad():
        try:
            return torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:  # whatever a user's forward or the exporter may raise
            failure = error
        shapes = ", ".join(str(tuple(a.shape)) if isinstance(a, Tensor) else repr(a) for a in (*args, *kwargs.values()))
        try:
            model(*args, **kwargs)
        except Exception as error:
            raise TraceError(
                f"the model does not run on an example of shape {shapes}: {_first_line(error)}. "
                "Give an example of the shape that the model expects."
            ) from error
        raise TraceError(
            f"torch.export cannot export {type(model).__name__} on an example of shape {shapes}: "
            f"{_first_line(failure)}. Data-dependent control flow is the usual cause; move it out of forward, or trace "
            "the convolutional part alone."
        ) from failure


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def named_arguments(
    node: fx.Node, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return a node's arguments, or others in their place, by the names in its operator's schema; defaults included."""
    args = node.args if args is None else args
    kwargs = node.kwargs if kwargs is None else kwargs
    schema: Any = node.target._schema.arguments  # type: ignore[union-attr]
    named = {argument.name: argument.default_value for argument in schema}
    named.update({argument.name: value for argument, value in zip(schema, args, strict=False)})
    named.update(kwargs)
    return named

"""A freshly built model brought to its recorded widths: by its layers' attributes, or by tracing and cutting again."""

from typing import Any

import numpy as np
from torch import Tensor, nn

from clusterprune.errors import ClusterpruneError, WeightsError
from clusterprune.graph import trace
from clusterprune.plan import Merge, Plan, rebuild_example
from clusterprune.surgery.apply import apply
from clusterprune.surgery.history import Stage
from clusterprune.surgery.resize import fitting_shapes, set_attributes

_WIDTHS = frozenset(
    "in_channels out_channels groups in_features out_features num_features num_channels num_groups "
    "normalized_shape num_parameters before after".split()
)
"""The only attributes that a file may set."""
_MAY_BE_ZERO = ("before", "after")
_DIVISIBLE = (("in_channels", "groups"), ("out_channels", "groups"), ("num_channels", "num_groups"))
_SENSELESS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a cut that does not fit the model can end in."""


def fit(model: nn.Module, history: tuple[Stage, ...], tensors: dict[str, Tensor]) -> None:
    """Give a freshly built model the recorded widths, without tracing it."""
    for stage in history:
        _fold(model, stage)
        _set_widths(model, stage.attributes)
    added = {path for stage in history for path in stage.added}
    if lost := sorted(added - tensors.keys()):
        raise WeightsError(f"the file lists the added parameter {lost[0]} but does not hold it; save the model again")
    named = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    made: dict[int, nn.Parameter] = {}
    for path, value in tensors.items():
        owner, _, name = path.rpartition(".")
        if path in named and named[path].shape != value.shape and history:
            module = model.get_submodule(owner)
            old = named[path]
            if isinstance(old, nn.Parameter):
                # Tensors that the factory's model shares stay shared.
                new = made.setdefault(id(old), nn.Parameter(value.to(old), requires_grad=old.requires_grad))
                module.register_parameter(name, new)
            else:
                module.register_buffer(name, value.to(old), persistent=name not in module._non_persistent_buffers_set)
        elif path in added and path not in named:
            try:
                layer = model.get_submodule(owner)
                layer.register_parameter(name, nn.Parameter(value.clone().to(layer.get_parameter("weight").device)))
            except (AttributeError, KeyError, RuntimeError) as error:
                raise WeightsError(f"the factory's model has no place for {path}; it builds another model") from error
    if history:
        _check_widths(model)


def _fold(model: nn.Module, stage: Stage) -> None:
    """Take out the batch norms that are gone."""
    for path in stage.folded:
        try:
            norm = model.get_submodule(path)
        except AttributeError as error:
            raise WeightsError(
                f"the factory's model lacks a batch norm that was folded ({error}); it builds another model"
            ) from error
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            raise WeightsError(
                f"the file says that the batch norm {path} was folded, but it is a {type(norm).__name__}; the file was "
                "altered, or the factory builds another model"
            )
        model.set_submodule(path, nn.Identity())


def _set_widths(model: nn.Module, attributes: dict[str, dict[str, Any]]) -> None:
    for path, values in attributes.items():
        try:
            layer = model.get_submodule(path)
        except AttributeError as error:
            raise WeightsError(
                f"the factory's model lacks a recorded layer ({error}); it builds another model"
            ) from error
        for name, value in values.items():
            if name not in _WIDTHS or not _is_width(getattr(layer, name, None)):
                raise WeightsError(
                    f"the recorded layer {path} has no width called {name!r}; the file was altered, or the factory "
                    "builds another model"
                )
            if isinstance(value, list) != (name == "normalized_shape") or (not value and name not in _MAY_BE_ZERO):
                raise WeightsError(f"the recorded layer {path} cannot have {name}={value!r}; the file was altered")
    set_attributes(model, attributes)


def _is_width(value: object) -> bool:
    numbers = value if isinstance(value, tuple) else (value,)
    return all(type(number) is int for number in numbers)


def _check_widths(model: nn.Module) -> None:
    """Check that every layer's tensors have the shapes that its attributes announce."""
    for path, layer in model.named_modules():
        for whole, part in _DIVISIBLE:
            length, parts = getattr(layer, whole, None), getattr(layer, part, None)
            if type(length) is int and type(parts) is int and (parts < 1 or length % parts):
                raise WeightsError(f"{path}.{whole}={length} is no multiple of {part}={parts}; the file was altered")
        for name, shape in fitting_shapes(layer).items():
            tensor = getattr(layer, name, None)
            if isinstance(tensor, Tensor) and tuple(tensor.shape) != shape:
                raise WeightsError(
                    f"{path}.{name} has shape {tuple(tensor.shape)}, but its layer needs {shape}; the file is damaged, "
                    "or the factory builds another model than the original"
                )


def replay(model: nn.Module, history: tuple[Stage, ...]) -> nn.Module:
    """Trace and cut again, stage by stage, with the recorded channels."""
    try:
        for stage in history:
            model = _replay_stage(model, stage)
    except WeightsError:
        raise
    except (ClusterpruneError, *_SENSELESS) as error:
        raise WeightsError(
            f"the factory's model cannot be cut as recorded ({error}); it builds another model, or the file was altered"
        ) from error
    return model


def _replay_stage(model: nn.Module, stage: Stage) -> nn.Module:
    if stage.folded:
        _fold(model, stage)
        for path in stage.added:
            layer = model.get_submodule(path.rpartition(".")[0])
            weight = layer.get_parameter("weight")
            layer.register_parameter("bias", nn.Parameter(weight.detach().new_zeros(weight.shape[0])))
        return model
    graph = trace(model.eval(), rebuild_example(tuple(stage.example)), approximate=stage.approximate)
    merges = tuple(Merge(name, np.array(kept, dtype=np.int64)) for name, kept in stage.kept.items())
    weights = dict(model.named_parameters())
    replaced = {
        path: weights[path.removesuffix("bias") + "weight"].detach().new_zeros(_rows(graph, merges, path))
        for path in stage.added
    }
    return apply(model, Plan(merges, replaced), graph=graph)


def _rows(graph: Any, merges: tuple[Merge, ...], bias: str) -> int:
    """Return how many outputs the layer of an added bias has after the cut."""
    weight = bias.removesuffix("bias") + "weight"
    rows = int(dict(graph.model.named_parameters())[weight].shape[0])
    for merge in merges:
        group = graph.by_name[merge.group]
        for use in group.producers:
            if use.path == weight and use.dim == 0:
                rows -= (group.width - len(merge.kept)) * use.positions.shape[1]
    return rows

"""Compact models on disk: `structure.json` says how to cut the original, `model.safetensors` holds the weights.

Loading builds the original from its factory, cuts it as recorded, and fills in the weights. Nothing is
unpickled, and no code travels with the file.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clusterprune.errors import ModelError, PlanError, TraceError, WeightsError
from clusterprune.files import atomic_folder
from clusterprune.graph import trace
from clusterprune.plans import Merge, Plan, rebuild_example
from clusterprune.record import Stage, set_stages, stages
from clusterprune.resize import fitting_shapes, set_attributes
from clusterprune.surgery import apply

_STRUCTURE = "structure.json"
_WEIGHTS = "model.safetensors"
_WIDTHS = frozenset(
    "in_channels out_channels groups in_features out_features num_features num_channels num_groups "
    "normalized_shape num_parameters before after".split()
)
"""The only attributes that a file may set."""


class _StageDocument(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rewired: bool
    attributes: dict[str, dict[str, int | list[int]]]
    kept: dict[str, list[int]]
    example: list[dict[str, Any]]
    added: list[str]
    folded: list[str] = []


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")
    format: Literal["clusterprune-model"]
    version: Literal[1]
    model: str
    stages: list[_StageDocument]
    shared: dict[str, str]


def save(model: nn.Module, folder: str | Path) -> None:
    """Write a model, compact or not, into a new folder.

    Raises
    ------
    OutputError
        If the folder exists and is not empty, or cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[int, str] = {}
    for path, tensor in model.state_dict(keep_vars=True).items():
        source = first.setdefault(id(tensor), path)
        if source == path:
            # A clone, because views into one storage cannot be written side by side.
            tensors[path] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        else:
            shared[path] = source
    history = [
        {
            "rewired": stage.rewired,
            "attributes": stage.attributes,
            "kept": stage.kept,
            "example": stage.example,
            "added": stage.added,
            "folded": stage.folded,
        }
        for stage in stages(model)
    ]
    document = {
        "format": "clusterprune-model",
        "version": 1,
        "model": type(model).__name__,
        "stages": history,
        "shared": shared,
    }
    with atomic_folder(folder) as temporary:
        save_file(tensors, temporary / _WEIGHTS)
        (temporary / _STRUCTURE).write_text(json.dumps(document, indent=1) + "\n")


def load(folder: str | Path, factory: Callable[[], nn.Module]) -> nn.Module:
    """Read a model that :func:`save` wrote.

    Parameters
    ----------
    folder
        Where it is.
    factory
        Builds the *original* model; its weights do not matter.

    Returns
    -------
    nn.Module
        In evaluation mode, equal to what was saved.

    Raises
    ------
    WeightsError
        If a file is missing, damaged, a pickle, or does not fit the factory's model.
    """
    folder = Path(folder)
    document = _read_structure(folder / _STRUCTURE)
    tensors = _read_weights(folder / _WEIGHTS)
    if both := sorted(document.shared.keys() & tensors.keys()):
        raise WeightsError(f"{folder} stores {both[0]} and also calls it shared; save the model again")
    tensors |= {path: tensors[source] for path, source in document.shared.items() if source in tensors}
    model = factory()
    if not isinstance(model, nn.Module):
        raise ModelError(f"factory returned {type(model).__name__}, not a torch.nn.Module; it must build the original")
    history = tuple(Stage(**stage.model_dump()) for stage in document.stages)
    if any(stage.rewired for stage in history):
        model = _replay(model, history)
    else:
        _fit(model, history, tensors)
    _fill(model, tensors, folder)
    return set_stages(model, history).eval()


def _read_structure(path: Path) -> _Document:
    try:
        return _Document.model_validate_json(path.read_text())
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist; give the folder that clusterprune.save wrote") from error
    except (ValidationError, ValueError, OSError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise WeightsError(f"{path} is not a valid model description ({reason}); save the model again") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        # A mapped file's tensors lie at odd addresses, where convolutions round differently; copies lie as new ones.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(
            f"{path} cannot be read as safetensors ({error}); it is missing, truncated or another format"
        ) from error


def _fit(model: nn.Module, history: tuple[Stage, ...], tensors: dict[str, Tensor]) -> None:
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
                model.get_submodule(owner).register_parameter(name, nn.Parameter(value.clone()))
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
        unknown = [name for name in values if name not in _WIDTHS or not hasattr(layer, name)]
        if unknown:
            raise WeightsError(
                f"the recorded layer {path} has no width called {unknown[0]!r}; the file was altered, or the factory "
                "builds another model"
            )
    set_attributes(model, attributes)


def _check_widths(model: nn.Module) -> None:
    """Check that every layer's tensors have the shapes that its attributes announce."""
    for path, layer in model.named_modules():
        for name, shape in fitting_shapes(layer).items():
            tensor = getattr(layer, name, None)
            if isinstance(tensor, Tensor) and tuple(tensor.shape) != shape:
                raise WeightsError(
                    f"{path}.{name} has shape {tuple(tensor.shape)}, but its layer needs {shape}; the file is damaged, "
                    "or the factory builds another model than the original"
                )


def _replay(model: nn.Module, history: tuple[Stage, ...]) -> nn.Module:
    """Trace and cut again, stage by stage, with the recorded channels."""
    for stage in history:
        if stage.folded:
            _fold(model, stage)
            for path in stage.added:
                layer = model.get_submodule(path.rpartition(".")[0])
                layer.register_parameter("bias", nn.Parameter(torch.zeros(layer.get_parameter("weight").shape[0])))
            continue
        try:
            graph = trace(model.eval(), rebuild_example(tuple(stage.example)))
            merges = tuple(Merge(name, np.array(kept, dtype=np.int64)) for name, kept in stage.kept.items())
            replaced = {path: torch.zeros(_rows(graph, merges, path)) for path in stage.added}
            model = apply(model, Plan(merges, replaced), graph=graph)
        except (PlanError, TraceError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise WeightsError(
                f"the factory's model cannot be cut as recorded ({error}); it builds another model, or the file was "
                "altered"
            ) from error
    return model


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


def _fill(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    expected = model.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - expected.keys())
    shapes = [p for p in expected.keys() & tensors.keys() if expected[p].shape != tensors[p].shape]
    if missing or unexpected or shapes:
        parts = [
            f"{len(names)} {what} ({', '.join(sorted(names)[:5])})"
            for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if names
        ]
        raise WeightsError(
            f"{folder} does not fit the factory's model: {'; '.join(parts)}. The factory must build the original model."
        )
    # load_state_dict may look at the version notes of the model's own dictionary.
    expected.update(tensors)
    model.load_state_dict(expected)

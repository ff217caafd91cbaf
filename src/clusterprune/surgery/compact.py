"""Compact models on disk: `structure.json` says how to cut the original, `model.safetensors` holds the weights.

Loading builds the original from its factory, cuts it as recorded, and fills in the weights. Nothing is
unpickled, and no code travels with the file. Both files carry their digests, since version 2.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from clusterprune.errors import ArgumentError, ClusterpruneError, ModelError, WeightsError
from clusterprune.files.documents import (
    Channels,
    ExampleDocument,
    Hexadecimal,
    check_plain,
    check_seal,
    check_version,
    unique,
)
from clusterprune.files.reading import ReadError, explain, read_json, seal
from clusterprune.files.tensors import fit_types, is_finite, listing, read_tensors, tensors_of, write_tensors
from clusterprune.files.writing import atomic_folder
from clusterprune.graph import trace
from clusterprune.plan import Merge, Plan, rebuild_example
from clusterprune.surgery.apply import apply
from clusterprune.surgery.history import Stage, set_stages, stages
from clusterprune.surgery.rebuild import CONSTANT
from clusterprune.surgery.resize import fitting_shapes, set_attributes

VERSION = 2

_STRUCTURE = "structure.json"
_WEIGHTS = "model.safetensors"
_WIDTHS = frozenset(
    "in_channels out_channels groups in_features out_features num_features num_channels num_groups "
    "normalized_shape num_parameters before after".split()
)
"""The only attributes that a file may set."""
_MAY_BE_ZERO = ("before", "after")
_DIVISIBLE = (("in_channels", "groups"), ("out_channels", "groups"), ("num_channels", "num_groups"))


Width = Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]
Names = Annotated[list[str], AfterValidator(unique)]


class _StageDocument(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    rewired: bool
    attributes: dict[str, dict[str, Width | list[Width]]]
    kept: dict[str, Channels]
    example: list[ExampleDocument]
    added: Names
    folded: Names = []
    approximate: bool = False
    buffers: Names = []
    untrainable: str | None = None

    def stage(self) -> Stage:
        """Return the record of the stage."""
        fields = self.model_dump(exclude={"example"})
        return Stage(**fields, example=[entry.plain() for entry in self.example])


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    format: Literal["clusterprune-model"]
    version: Annotated[int, Field(ge=1, le=VERSION)]
    model: str
    stages: list[_StageDocument]
    shared: dict[str, str]
    tensors_sha256: Hexadecimal | None = None
    sha256: Hexadecimal | None = None


def save(model: nn.Module, folder: str | Path) -> None:
    """Write a model, compact or not, into a new folder.

    Raises
    ------
    OutputError
        If the folder exists and is not empty, or cannot be written.
    ModelError
        If a parameter holds NaN or infinity, or has no values.
    ArgumentError
        If `model` is no module, or `folder` no path.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"model must be a torch.nn.Module, but got model={type(model).__name__}; save(model, folder)"
        )
    _check_folder(folder)
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[int, str] = {}
    for path, tensor in {**_without_constants(tensors_of(model)), **_unlisted(model, stages(model))}.items():
        source = first.setdefault(id(tensor), path)
        if source != path:
            shared[path] = source
            continue
        if isinstance(tensor, nn.Parameter) and not is_finite(tensor):
            raise ModelError(
                f"the weight {path!r} holds NaN or infinity, so that nothing could be computed from what is saved; "
                "take the model of an earlier epoch"
            )
        tensors[path] = tensor
    history = [asdict(stage) for stage in stages(model)]
    document = {
        "format": "clusterprune-model",
        "version": VERSION,
        "model": type(model).__name__,
        "stages": history,
        "shared": shared,
    }
    check_plain(document, "the example inputs that the model was traced with")
    with atomic_folder(folder) as temporary:
        document["tensors_sha256"] = write_tensors(temporary / _WEIGHTS, tensors)
        (temporary / _STRUCTURE).write_text(json.dumps(seal(document), indent=1) + "\n")


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
        In evaluation mode, equal to what was saved, on the device where the factory builds.

    Raises
    ------
    WeightsError
        If a file is missing, damaged, altered, a pickle, or does not fit the factory's model; if a weight is NaN or
        infinite, or of another kind of number than the model's.
    ModelError
        If the factory builds no model, or one without values.
    ArgumentError
        If `folder` is no path, or `factory` cannot be called.
    """
    _check_folder(folder)
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ArgumentError(
            f"factory must be a function that builds the original model, but got factory={type(factory).__name__}; "
            "give the class of the model, or a lambda that returns a new one"
        )
    folder = Path(folder)
    document = _read_structure(folder / _STRUCTURE)
    tensors = _read_weights(folder, document)
    if both := sorted(document.shared.keys() & tensors.keys()):
        raise WeightsError(f"{folder} stores {both[0]} and also calls it shared; save the model again")
    if lacking := sorted(source for source in document.shared.values() if source not in tensors):
        raise WeightsError(f"{folder} shares {lacking[0]}, which it does not hold; save the model again")
    try:
        model = factory()
    except Exception as error:  # whatever the user's own code raises
        raise ModelError(
            f"factory raised {type(error).__name__} ({error}); it is called without arguments, and must build a model"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"factory returned {type(model).__name__}, not a torch.nn.Module; it must build the original")
    tensors |= {path: tensors[source] for path, source in document.shared.items()}
    history = tuple(stage.stage() for stage in document.stages)
    tensors = _cast(tensors, model, history, folder)
    if any(stage.rewired for stage in history):
        model = _replay(model, history)
    else:
        _fit(model, history, tensors)
    _fill(model, history, tensors, folder)
    return set_stages(model, history).eval()


def _check_folder(folder: object) -> None:
    if not isinstance(folder, str | Path):
        raise ArgumentError(
            f"folder must be a path, but got folder={type(folder).__name__}; the order is save(model, folder) and "
            "load(folder, factory)"
        )


def _read_structure(path: Path) -> _Document:
    try:
        content = check_version(read_json(path), VERSION)
        document = _Document.model_validate(content)
        check_seal(content)
    except ReadError as error:
        if error.missing:
            raise WeightsError(f"{path} does not exist; give the folder that clusterprune.save wrote") from error
        raise WeightsError(f"{path} is not a valid model description: it {error}; save the model again") from error
    except ValidationError as error:
        raise WeightsError(
            f"{path} is not a valid model description ({explain(error)}); save the model again"
        ) from error
    return document


def _read_weights(folder: Path, document: _Document) -> dict[str, Tensor]:
    if document.version > 1 and document.tensors_sha256 is None:
        raise WeightsError(f"{folder / _STRUCTURE} lacks the digest of the weights; save the model again")
    try:
        return read_tensors(folder / _WEIGHTS, document.tensors_sha256)[0]
    except ReadError as error:
        raise WeightsError(f"{folder / _WEIGHTS} {error}; save the model again") from error


def _cast(tensors: dict[str, Tensor], model: nn.Module, history: tuple[Stage, ...], folder: Path) -> dict[str, Tensor]:
    """Bring the file's tensors to the types of the factory's model, and check that they hold numbers.

    What a stage added has the type of the weight beside it. Names that nobody knows are left for later.
    """
    # Buffers that the state dictionary leaves out may be in the file, if they were cut.
    target = dict(model.named_buffers()) | tensors_of(model)
    added = {path for stage in history for path in stage.added} & tensors.keys()
    for path in sorted(added - target.keys()):
        beside = target.get(f"{path.rpartition('.')[0]}.weight".removeprefix("."))
        if beside is not None:
            target[path] = nn.Parameter(torch.empty(0, dtype=beside.dtype), requires_grad=False)
    fitted = fit_types(tensors, target)
    if fitted.unfit:
        raise WeightsError(
            f"{folder / _WEIGHTS} has types that the factory's model cannot take: {listing(fitted.unfit)}; the factory "
            "must build the original model"
        )
    if fitted.infinite:
        raise WeightsError(
            f"{folder / _WEIGHTS} has values that are NaN or infinite in the model's type: {listing(fitted.infinite)}; "
            "the file is damaged, or the model's type is too narrow"
        )
    return tensors | fitted.values


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


_SENSELESS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a cut that does not fit the model can end in."""


def _replay(model: nn.Module, history: tuple[Stage, ...]) -> nn.Module:
    """Trace and cut again, stage by stage, with the recorded channels."""
    try:
        for stage in history:
            model = _replay_stage(model, stage)
    except WeightsError:
        raise
    except (
        ClusterpruneError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
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


def _without_constants(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what a rebuilt model's graph holds: it is traced anew, and may be another graph's by then."""
    return {path: tensor for path, tensor in tensors.items() if not path.startswith(CONSTANT)}


def _unlisted(model: nn.Module, history: tuple[Stage, ...]) -> dict[str, Tensor]:
    """Return the cut buffers that a model's state dictionary leaves out, by path.

    A factory makes them at full size, and nothing else says which of their channels stayed.
    """
    listed = model.state_dict().keys()
    named = dict(model.named_buffers())
    cut = {path for stage in history for path in stage.buffers}
    return {path: named[path] for path in sorted(cut - listed) if path in named}


def _fill(model: nn.Module, history: tuple[Stage, ...], tensors: dict[str, Tensor], folder: Path) -> None:
    unlisted = _unlisted(model, history)
    expected = {**_without_constants(model.state_dict()), **unlisted}
    tensors = _without_constants(tensors)
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
    for path, buffer in unlisted.items():
        buffer.copy_(tensors[path])
    # load_state_dict may look at the version notes of the model's own dictionary.
    listed = model.state_dict()
    listed.update({path: tensor for path, tensor in tensors.items() if path in listed})
    model.load_state_dict(listed)

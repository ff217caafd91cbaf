"""Compact models on disk: `structure.json` says how to cut the original, `model.safetensors` holds the weights.

Loading builds the original from its factory, cuts it as recorded, and fills in the weights. Nothing is
unpickled, and no code travels with the file. Both files carry their digests, since version 2.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from clusterprune.errors import ArgumentError, ModelError, WeightsError
from clusterprune.files.documents import check_plain
from clusterprune.files.reading import ReadError, seal
from clusterprune.files.tensors import fit_types, is_finite, listing, read_tensors, tensors_of, write_tensors
from clusterprune.files.writing import atomic_folder
from clusterprune.surgery.history import Stage, set_stages, stages
from clusterprune.surgery.rebuild import CONSTANT
from clusterprune.surgery.replay import fit, replay
from clusterprune.surgery.structure import VERSION, StructureDocument, read_structure

_STRUCTURE = "structure.json"
_WEIGHTS = "model.safetensors"


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
    document = read_structure(folder / _STRUCTURE)
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
        model = replay(model, history)
    else:
        fit(model, history, tensors)
    _fill(model, history, tensors, folder)
    return set_stages(model, history).eval()


def _check_folder(folder: object) -> None:
    if not isinstance(folder, str | Path):
        raise ArgumentError(
            f"folder must be a path, but got folder={type(folder).__name__}; the order is save(model, folder) and "
            "load(folder, factory)"
        )


def _read_weights(folder: Path, document: StructureDocument) -> dict[str, Tensor]:
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

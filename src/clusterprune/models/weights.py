"""Read weights files, check them against a model, then fill it: all or nothing."""

import math
import re
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from clusterprune.errors import ArgumentError, WeightsError
from clusterprune.files.reading import ReadError, exists, is_folder, open_regular
from clusterprune.files.tensors import fit_types, listing, read_tensors, read_torch, tensors_of
from clusterprune.models.spec import ModelSpec

TORCH_SUFFIXES = (".pt", ".pth", ".th", ".tar", ".bin", ".ckpt")
# Where training scripts put the state dict inside a checkpoint, in the order tried.
NESTED_UNDER = ("state_dict", "model_state_dict", "model", "net", "weights")
# How deep; a Lightning checkpoint inside another one has two levels.
MAX_NESTING = 8
# What DataParallel, torch.compile, Lightning and home-made wrappers put before every name.
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
# What a TensorPart puts before the names of its detector, whose weights were published without.
PART_PREFIX = "detector."
# Heads that torchvision's GoogLeNet (aux1, aux2) and Inception v3 (AuxLogits) only train with.
AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")

_SAVE_AGAIN = (
    "if you trust the file, load it with the program that wrote it and save model.state_dict() "
    "alone, best with safetensors.torch.save_file"
)

_Shape = tuple[int, ...]


def load_weights(model: nn.Module, path: str | PathLike[str]) -> None:
    """Fill ``model`` with the parameters and buffers of a file, in place; all or nothing.

    A ``.safetensors`` file holds the tensors by their name in the model. A ``.pt``, ``.pth``,
    ``.th``, ``.tar``, ``.bin`` or ``.ckpt`` file is read by ``torch.load(weights_only=True)``,
    which runs no code; its state dict may lie under ``state_dict``, ``model_state_dict``,
    ``model``, ``net`` or ``weights``. A prefix that a wrapper put before every name (``module.``,
    ``_orig_mod.``, ``model.``, ``net.``) is removed. Floating-point values are cast to the model's
    type. The file may lack batch counters (``num_batches_tracked``) and further names of a shared
    parameter, and may hold the auxiliary heads of torchvision's GoogLeNet and Inception v3.

    Raises
    ------
    WeightsError
        The file is missing, unsafe, damaged, holds NaN or infinity, or does not fit the model.
    ModelError
        The model has parameters without values (meta device, lazy modules).
    ArgumentError
        ``model`` is not an ``nn.Module``.
    """
    if not isinstance(model, nn.Module):
        msg = f"model must be a torch.nn.Module, but got {type(model).__name__}."
        raise ArgumentError(msg)
    target = tensors_of(model)
    file = Path(path).expanduser()
    _check_file(file)
    found = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    found = _strip_wrappers(found, target)
    _check_names_and_shapes(found, target, file)
    values = _cast(found, target, file)
    _fill(model, target, values, file)


def classes_in(spec: ModelSpec, path: str | PathLike[str]) -> int | None:
    """Return the outputs of the network whose weights a file holds, compact ones too; None where that cannot be told.

    The rows are counted of those parameters whose shape follows the number of classes.

    Parameters
    ----------
    spec
        The network.
    path
        A file for :func:`load_weights`, or the ``model.safetensors`` of a compact model.

    Raises
    ------
    WeightsError
        The file is missing, unsafe or damaged.
    ModelError
        The network cannot be built.
    """
    file = Path(path).expanduser()
    _check_file(file)
    found = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    if not spec.takes_num_classes:
        return None
    usual = spec.num_classes or 10
    plain, other = (spec.build(count, seed=0).state_dict() for count in (usual, usual + 1))
    found = _strip_wrappers(found, plain)
    rows = {
        found[name].shape[0] * usual / tensor.shape[0]
        for name, tensor in plain.items()
        if name in found and name in other and tensor.ndim and found[name].ndim == tensor.ndim
        # Heads of detectors have several rows a class.
        if tensor.shape[0] < other[name].shape[0] and tensor.shape[0] * (usual + 1) == other[name].shape[0] * usual
    }
    count = rows.pop() if len(rows) == 1 else math.nan
    return int(count) if count.is_integer() else None


def _check_file(file: Path) -> None:
    """Refuse what cannot be a weights file of the kind that its suffix promises."""
    suffixes = (".safetensors", *TORCH_SUFFIXES)
    if is_folder(file):
        inside = sorted(entry.name for entry in file.iterdir() if entry.suffix in suffixes)
        holds = f"It holds {listing(inside)}." if inside else "It holds no weights file."
        msg = f"weights={str(file)!r} is a folder: name the file itself. {holds}"
        raise WeightsError(msg)
    if not exists(file):
        msg = f"weights={str(file)!r} does not exist (looked in {Path.cwd()}): check the path."
        raise WeightsError(msg)
    if file.suffix not in suffixes:
        msg = f"weights={str(file)!r} has the suffix {file.suffix!r}, but it must be one of {', '.join(suffixes)}."
        raise WeightsError(msg)
    try:
        with open_regular(file) as stream:
            start = stream.read(9)
    except (ReadError, OSError) as error:
        msg = f"weights={str(file)!r} {error}: check the path."
        raise WeightsError(msg) from error
    if not start:
        msg = f"weights={str(file)!r} is empty: copy or download it again."
        raise WeightsError(msg)
    # A safetensors file starts with the length of its header in 8 bytes, then the header's brace;
    # what torch.save writes starts like a zip archive or a pickle and has no brace there.
    is_safetensors = start[8:] == b"{"
    is_pickle = not is_safetensors and start.startswith((b"PK\x03\x04", b"\x80"))
    if file.suffix == ".safetensors" and is_pickle:
        msg = (
            f"weights={str(file)!r} is named .safetensors but holds a pickle, as torch.save writes "
            "it. Rename it to .pt to have its tensors read without running its code, or save the "
            "state dict again with safetensors.torch.save_file."
        )
        raise WeightsError(msg)
    if file.suffix != ".safetensors" and not is_pickle:
        remedy = (
            f"holds safetensors: rename it to {file.stem}.safetensors"
            if is_safetensors
            else "is no file that torch.save wrote: copy or download it again"
        )
        msg = f"weights={str(file)!r} {remedy}."
        raise WeightsError(msg)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        found, _ = read_tensors(file)
    except ReadError as error:
        msg = f"weights={str(file)!r} {error}: it was cut short or changed. Copy or download it again."
        raise WeightsError(msg) from error
    if not found:
        msg = f"weights={str(file)!r} holds no tensors: save model.state_dict() again."
        raise WeightsError(msg)
    return found


def _read_torch(file: Path) -> dict[str, Tensor]:
    try:
        content = read_torch(file)
    except ReadError as error:
        msg = f"weights={str(file)!r} {error}: it was cut short or changed. Copy or download it again."
        raise WeightsError(msg) from error
    # A damaged pickle can end in nearly any exception (KeyError and struct.error among them).
    except Exception as error:
        raise WeightsError(_why_refused(file, error)) from error
    return _state_dict(content, file)


def _why_refused(file: Path, error: Exception) -> str:
    """Say what is wrong, without torch's own advice to switch the protection off."""
    text = str(error)
    if "TorchScript" in text:
        return f"weights={str(file)!r} is a TorchScript program, not a state dict. The remedy: {_SAVE_AGAIN}."
    unsafe = re.search(r"GLOBAL ([\w.]+)", text)
    if unsafe or "Weights only load failed" in text:
        what = f"the Python object {unsafe[1]}" if unsafe else "something"
        return (
            f"weights={str(file)!r} holds {what} besides tensors, and unpickling that could run "
            f"any code, so it was not loaded. The remedy: {_SAVE_AGAIN}."
        )
    reason = f"{type(error).__name__}: {text.partition('. ')[0][:300]}"
    return (
        f"weights={str(file)!r} cannot be read by torch.load ({reason}): it was cut short or "
        "changed. Copy or download it again."
    )


def _state_dict(content: object, file: Path) -> dict[str, Tensor]:
    """Find the state dict in what a checkpoint holds."""
    for _ in range(MAX_NESTING):  # a mapping may lie inside itself
        if not isinstance(content, Mapping) or _has_tensors(content):
            break
        inner = [content[key] for key in NESTED_UNDER if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping) or not _has_tensors(content):
        holds = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            holds += f" with the keys {listing(map(_name, content))}" if content else " without keys"
        msg = (
            f"weights={str(file)!r} holds no state dict but {holds}: save model.state_dict(), by "
            f"itself or under one of {', '.join(NESTED_UNDER)}."
        )
        raise WeightsError(msg)
    strange = [_name(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strange:
        msg = (
            f"weights={str(file)!r} has entries that are not named tensors: {listing(strange)}. "
            "Save model.state_dict() alone."
        )
        raise WeightsError(msg)
    return {name: value.detach() for name, value in content.items()}


def _name(key: object) -> str:
    # Anything else could take for ever to print, if it holds one thing many times over.
    return str(key) if isinstance(key, str | int) else f"a {type(key).__name__}"


def _has_tensors(content: Mapping[object, object]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


def _strip_wrappers(found: dict[str, Tensor], target: Iterable[str]) -> dict[str, Tensor]:
    """Remove the prefixes that every name of the file has and no name of the model has; add the tensor part's."""
    names = list(target)
    foreign = [p for p in WRAPPER_PREFIXES if not any(name.startswith(p) for name in names)]
    for _ in foreign:  # wrappers nest in any order
        for prefix in foreign:
            if all(name.startswith(prefix) for name in found):
                found = {name.removeprefix(prefix): value for name, value in found.items()}
    if all(name.startswith(PART_PREFIX) for name in names) and not any(name.startswith(PART_PREFIX) for name in found):
        found = {f"{PART_PREFIX}{name}": value for name, value in found.items()}
    return found


def _check_names_and_shapes(found: dict[str, Tensor], target: dict[str, Tensor], file: Path) -> None:
    # Shared parameters are one object under several names; one of them in the file is enough.
    supplied = {id(tensor) for name, tensor in target.items() if name in found}
    missing = [
        name
        for name, tensor in target.items()
        if id(tensor) not in supplied and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in found if name not in target and not name.startswith(AUXILIARY_HEADS)]
    shapes = {
        name: (tuple(found[name].shape), tuple(tensor.shape))
        for name, tensor in target.items()
        if name in found and found[name].shape != tensor.shape
    }
    parts = []
    if missing:
        parts.append(f"Missing from the file ({len(missing)}): {listing(missing)}.")
    if unexpected:
        parts.append(f"Unknown to the model ({len(unexpected)}): {listing(unexpected)}.")
    if shapes:
        lines = [f"{name} {theirs} (model {ours})" for name, (theirs, ours) in shapes.items()]
        parts.append(f"Of another shape ({len(shapes)}): {listing(lines)}.")
    if parts:
        remedy = _remedy({} if missing or unexpected else shapes)
        msg = f"weights={str(file)!r} does not fit the model. {' '.join(parts)} {remedy}"
        raise WeightsError(msg)


def _remedy(shapes: dict[str, tuple[_Shape, _Shape]]) -> str:
    """Say what to do about a file whose names or (file, model) shapes differ from the model's."""
    layers = {name.rpartition(".")[0] for name in shapes}
    outputs = {(theirs[:1], ours[:1]) for theirs, ours in shapes.values()}
    same_inputs = all(theirs[1:] == ours[1:] for theirs, ours in shapes.values())
    if len(layers) == 1 and len(outputs) == 1 and same_inputs:
        ((theirs, ours),) = outputs
        if theirs and ours:
            return (
                f"The file was trained for {theirs[0]} classes and the model has {ours[0]}: build "
                f"the model with num_classes={theirs[0]}."
            )
    if shapes and all(_within(theirs, ours) for theirs, ours in shapes.values()):
        return (
            "The file's layers are narrower than the model's: a compressed network is opened from "
            "its own folder, by clusterprune.load."
        )
    return "Name the model that these weights were trained for."


def _within(inner: _Shape, outer: _Shape) -> bool:
    return len(inner) == len(outer) and all(a <= b for a, b in zip(inner, outer, strict=True))


def _cast(found: dict[str, Tensor], target: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Cast the file's tensors to the model's types; refuse what would lose its meaning."""
    fitted = fit_types(found, target)
    unfit, infinite = fitted.unfit, fitted.infinite
    if unfit:
        msg = (
            f"weights={str(file)!r} has types that the model cannot take: {listing(unfit)}. Save "
            "the floating-point weights, dense and not quantized."
        )
        raise WeightsError(msg)
    if infinite:
        msg = (
            f"weights={str(file)!r} has values that are NaN or infinite in the model's type: "
            f"{listing(infinite)}. Training diverged, the file is damaged, or the model's type is "
            "too narrow: take an earlier checkpoint or a float32 model."
        )
        raise WeightsError(msg)
    return fitted.values


def _fill(model: nn.Module, target: dict[str, Tensor], values: dict[str, Tensor], file: Path) -> None:
    """Copy the checked values into the model; put the old ones back if its own code objects."""
    before = {name: tensor.detach().clone() for name, tensor in target.items()}
    by_tensor = {id(target[name]): value for name, value in values.items()}
    complete = {name: by_tensor.get(id(tensor), before[name]) for name, tensor in target.items()}
    try:
        model.load_state_dict(complete, strict=False)
    except Exception as error:
        with torch.no_grad():
            for name, tensor in target.items():
                tensor.copy_(before[name])
        msg = (
            f"weights={str(file)!r} was refused by the model's own loading code "
            f"({type(error).__name__}: {error}). Correct that code; the model keeps its old "
            "weights."
        )
        raise WeightsError(msg) from error

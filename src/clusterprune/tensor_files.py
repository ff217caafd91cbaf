"""Tensors on disk: one way to write them, one way to read them, one way to bring them to a model's types."""

import hashlib
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from clusterprune.errors import ModelError
from clusterprune.reading import ReadError, open_regular, sha256_of

MAX_HEADER_BYTES = 1 << 25
"""Largest header of a safetensors file. A model of a hundred thousand tensors has one of ten million bytes."""

MAX_INFLATION = 4
"""How many times its size a compressed archive of weights may unfold to, beyond :data:`SMALL_ARCHIVE`.

Weights hardly compress, and `torch.save` does not try."""

SMALL_ARCHIVE = 1 << 26
"""What any archive may unfold to, in bytes."""

MAX_PICKLE_BYTES = 1 << 26
"""Largest description of the tensors in an archive that `torch.save` wrote, the tensors themselves not counted."""


_LISTED = 10
_LONGEST = 200


def stored(tensor: Tensor) -> Tensor:
    """Return a tensor as files hold it: detached, on the CPU, contiguous, in memory of its own."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the safetensors file of tensors of any device, layout or sharing."""
    return save({name: stored(tensor) for name, tensor in tensors.items()})


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors of any device, layout or sharing to a safetensors file; return its SHA-256.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    # By way of memory: the library's own writer has errors of its own, and files that nobody else may read.
    content = tensor_bytes(tensors)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read_tensors(path: str | Path, sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Parameters
    ----------
    sha256
        Digest that the file must have.

    Raises
    ------
    ReadError
        If it is missing, no regular file, damaged, or has another digest.
    """
    path = Path(path)
    _check_header(path)
    if sha256 is not None and sha256_of(path) != sha256:
        raise ReadError("was truncated or altered since it was written")
    try:
        with safe_open(path, framework="pt") as file:
            # A mapped file's tensors lie at odd addresses, where convolutions round differently; copies lie as new
            # ones, and stay as they are when somebody writes to the file.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # a damaged header makes the library raise nearly anything
        raise ReadError(f"is not a whole safetensors file ({error})") from error


def _check_header(path: Path) -> None:
    with open_regular(path) as file:
        start = file.read(8)
        size = path.stat().st_size
    if len(start) < 8:
        raise ReadError(f"is not a whole safetensors file (it has {size} bytes)")
    (header,) = struct.unpack("<Q", start)
    if header > size - 8:
        raise ReadError(f"is not a whole safetensors file (a header of {header:,} bytes in a file of {size:,})")
    if header > MAX_HEADER_BYTES:
        raise ReadError(f"has a header of {header:,} bytes, more than the {MAX_HEADER_BYTES:,} that are read")


def read_torch(path: str | Path) -> object:
    """Return what a file of `torch.save` holds, read by `torch.load(weights_only=True)`, which runs no code.

    Raises
    ------
    ReadError
        If it is missing, no regular file, or unfolds to more than a file of its size can hold.
    Exception
        Nearly any, from PyTorch, if it is damaged or holds more than tensors.
    """
    path = Path(path)
    with open_regular(path) as file:
        start = file.read(4)
    if start == b"PK\x03\x04":
        _check_archive(path)
    with warnings.catch_warnings():
        # The warning about TorchScript archives; they are refused anyway.
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise ReadError(f"is not a whole archive ({error})") from error
    size, total = path.stat().st_size, sum(entry.file_size for entry in entries)
    if total > MAX_INFLATION * size + SMALL_ARCHIVE:
        raise ReadError(f"unfolds to {total:,} bytes, but has only {size:,}; weights do not compress like that")
    large = max((entry.file_size for entry in entries if entry.filename.endswith(".pkl")), default=0)
    if large > MAX_PICKLE_BYTES:
        raise ReadError(f"describes its tensors in {large:,} bytes, more than the {MAX_PICKLE_BYTES:,} that are read")


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and buffers by name, as the live objects.

    Raises
    ------
    ModelError
        If some have no values: on the meta device, or in a lazy module that never ran.
    """
    state = model.state_dict(keep_vars=True)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    hollow = [name for name, value in tensors.items() if is_lazy(value) or value.is_meta]
    if hollow:
        raise ModelError(
            f"model has tensors without values: {listing(hollow)}. Build it on a real device, and run lazy modules "
            "once, before loading weights."
        )
    return tensors


@dataclass(frozen=True)
class Fitted:
    """Tensors of a file, brought to the types of a model's.

    Attributes
    ----------
    values
        Those that could be, by name.
    unfit
        The others, each with the reason.
    infinite
        Names of values that are NaN or infinite where the model's are not.
    """

    values: dict[str, Tensor]
    unfit: list[str]
    infinite: list[str]


def fit_types(found: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Fitted:
    """Cast the tensors of a file to the types of a model's tensors of the same names, whatever their shapes.

    Whole numbers are not taken for floating-point ones, nor the other way round. Values must be finite, except in
    buffers that hold infinity in the model too, such as an attention mask.
    """
    fitted = Fitted({}, [], [])
    for name, tensor in target.items():
        if name not in found:
            continue
        value = found[name]
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            fitted.unfit.append(f"{name} (sparse, quantized or without values)")
            continue
        if _kind(value) != _kind(tensor):
            fitted.unfit.append(f"{name} ({value.dtype}, model {tensor.dtype})")
            continue
        try:
            cast = value.to(tensor.dtype)
            sound = torch.isfinite(cast)
            if not isinstance(tensor, nn.Parameter) and not is_finite(tensor):
                excused = torch.isinf(tensor).to(sound.device)
                # A buffer with channels has another shape after a cut.
                sound |= excused if excused.shape == sound.shape else torch.isinf(cast) & excused.any()
        except RuntimeError as error:  # types that PyTorch can hold but not compute with
            fitted.unfit.append(f"{name} ({value.dtype}: {error})")
            continue
        fitted.values[name] = cast
        if not sound.all():
            fitted.infinite.append(name)
    return fitted


def is_finite(tensor: Tensor) -> bool:
    """Tell whether a tensor holds neither NaN nor infinity."""
    return bool(torch.isfinite(tensor).all())


def listing(names: Iterable[str]) -> str:
    """Join the first ten names, which may come from a file and have any length, and count the others."""
    names = list(names)
    rest = len(names) - _LISTED
    shown = [name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…" for name in names[:_LISTED]]
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    return "float" if tensor.is_floating_point() else "integer"

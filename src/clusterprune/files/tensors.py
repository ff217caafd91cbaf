"""Tensors on disk: one way to write them, one way to read them, one way to bring them to a model's types."""

import hashlib
import io
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from clusterprune.errors import ModelError
from clusterprune.files.reading import ReadError, open_regular, sha256_of

MAX_HEADER_BYTES = 1 << 25
"""Largest header of a safetensors file. A model of a hundred thousand tensors has one of ten million bytes."""

MAX_INFLATION = 4
"""How many times its size a compressed archive of weights may unfold to, beyond :data:`SMALL_ARCHIVE`.

Weights hardly compress, and `torch.save` does not try."""

SMALL_ARCHIVE = 1 << 26
"""What any archive may unfold to, in bytes."""

MAX_PICKLE_BYTES = 1 << 26
"""Largest description of the tensors in an archive that `torch.save` wrote, the tensors themselves not counted."""


_OLD_PICKLES = 5
"""Magic number, version, machine, what was saved, and the names of the numbers that follow."""
_MAX_TUPLE = 10_000
"""Most values that a tuple may stand for, those inside its tuples counted each time. Ours stand for twenty."""

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
    else:
        _check_old_file(path)
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
    described = [entry for entry in entries if entry.filename.endswith(".pkl")]
    large = max((entry.file_size for entry in described), default=0)
    if large > MAX_PICKLE_BYTES:
        raise ReadError(f"describes its tensors in {large:,} bytes, more than the {MAX_PICKLE_BYTES:,} that are read")
    for entry in described:
        try:
            with zipfile.ZipFile(path) as archive:
                check_pickle(io.BytesIO(archive.read(entry)))
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            OSError,
            RuntimeError,
            ValueError,
            EOFError,
            zlib.error,
        ) as error:
            raise ReadError(f"is not a whole archive ({error})") from error


def _check_old_file(path: Path) -> None:
    """Check the pickles at the beginning of a file of PyTorch before 1.6; the numbers follow them."""
    with open_regular(path) as file:
        for _ in range(_OLD_PICKLES):
            if not check_pickle(file):
                return


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


def check_pickle(file: IO[bytes]) -> bool:
    """Read through the instructions of one pickle, none of which is carried out, and weigh the tuples that they make.

    A tuple that holds the same tuple twice, and so on forty times over, takes a few hundred bytes; as the key of a
    mapping it takes years, because its hash visits every one of its 2 to the 40 values.

    Returns
    -------
    bool
        Whether the pickle is whole; if not, whoever loads it will say so.

    Raises
    ------
    ReadError
        If a tuple stands for too many values.
    """
    stack: list[int | None] = []  # how many values each entry stands for; None marks where a sequence begins
    memo: dict[int, int] = {}
    try:
        for instruction, argument, _ in pickletools.genops(file):
            name, weight = instruction.name, 1
            if name in ("GET", "BINGET", "LONG_BINGET"):
                weight = memo.get(int(argument), 1)  # type: ignore[arg-type]
            elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if argument is None else int(argument)] = stack[-1] or 1  # type: ignore[arg-type]
                continue
            elif name == "DUP":
                weight = stack[-1] or 1
                stack.append(weight)
                continue
            taken = _take(stack, instruction)
            if name.startswith("TUPLE"):
                weight = 1 + sum(taken)
            if weight > _MAX_TUPLE:
                raise ReadError("holds a tuple that stands for more values than a computer can visit")
            stack += [None if after is pickletools.markobject else weight for after in instruction.stack_after]
    except (ValueError, IndexError, EOFError, UnicodeError, OverflowError, MemoryError, TypeError):
        return False
    return True


def _take(stack: list[int | None], instruction: pickletools.OpcodeInfo) -> list[int]:
    """Take what an instruction uses from the stack, and return the weights."""
    taken = []
    if pickletools.markobject in instruction.stack_before or (instruction.name == "POP" and stack[-1] is None):
        while (weight := stack.pop()) is not None:
            taken.append(weight)
        before = instruction.stack_before.index(pickletools.markobject) if len(instruction.stack_before) > 1 else 0
    else:
        before = len(instruction.stack_before)
    return taken + [stack.pop() or 1 for _ in range(before)]


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

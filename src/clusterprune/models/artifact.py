"""Compact models that say themselves what they are of: what `cp.save` writes, and `cp.load` needs no more than.

Beside the two files of :mod:`clusterprune.surgery.compact` stands ``origin.json``: which network was cut, by the name
that ``--model`` takes, the digest of a user's own file, and what the network reads and says. It is data; a user's file
is run only by the caller's leave.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from clusterprune.errors import ArgumentError, ModelError
from clusterprune.files.reading import seal
from clusterprune.files.writing import atomic_folder, write_json
from clusterprune.models.code import allow, check_unchanged, file_of
from clusterprune.models.origin import NAME, VERSION, Origin, read_origin
from clusterprune.models.registry import resolve
from clusterprune.surgery import compact


def save(model: nn.Module, folder: str | Path, origin: Origin | None = None) -> None:
    """Write a model, compact or not, into a new folder.

    Parameters
    ----------
    origin
        What it was cut from, so that :func:`load` needs no factory; None leaves that to the caller of :func:`load`.

    Raises
    ------
    OutputError
        If the folder exists and is not empty, or cannot be written.
    ModelError
        If a parameter holds NaN or infinity, or has no values.
    ArgumentError
        If `model` is no module, or `folder` no path.
    """
    if origin is None:
        compact.save(model, folder)
        return
    if not isinstance(origin, Origin):
        raise ArgumentError(f"origin must be an Origin, but got origin={type(origin).__name__}; write Origin.of(spec)")
    with atomic_folder(folder) as temporary:
        compact.save(model, temporary)
        document = {"format": "clusterprune-origin", "version": VERSION, "origin": origin.model_dump(mode="json")}
        write_json(temporary / NAME, seal(document))


def load(
    folder: str | Path, factory: Callable[[], nn.Module] | None = None, *, trust: str | Path | None = None
) -> nn.Module:
    """Read a model that :func:`save` wrote.

    Parameters
    ----------
    factory
        Builds the *original* model; its weights do not matter. None takes what ``origin.json`` names: a built-in
        network, one of torchvision or timm, or a user's own file that `trust` allows.
    trust
        The user's own file that may be run: a path, or ``PATH@SHA256``. Where the folder came from another machine, the
        file may lie elsewhere, as long as it is the same.

    Returns
    -------
    nn.Module
        In evaluation mode, on the CPU.

    Raises
    ------
    UntrustedCodeError
        If a file would be run that `trust` does not name.
    WeightsError
        If a file is damaged, or does not fit the original.
    ModelError
        If the original cannot be built.
    ArgumentError
        If there is neither a factory nor an ``origin.json``.
    """
    if factory is not None:
        return compact.load(folder, factory)
    origin = read_origin(folder)
    if origin is None:
        raise ArgumentError(
            f"{folder} does not say what network it was cut from, and factory=None; give a function that builds the "
            "original, such as the class of the model"
        )
    original = _build(origin, Path(folder) / NAME, trust)
    return compact.load(folder, lambda: original)


def _build(origin: Origin, path: Path, trust: str | Path | None) -> nn.Module:
    name = origin.model
    file = file_of(name)
    if file is not None:
        name = _found_again(name, file, origin, trust)
        allow(name, named_by=str(path), trust=None if trust is None else str(trust))
        if origin.code is not None:
            check_unchanged(
                name, origin.code, named_by=str(path), remedy="Put back the file as it was, or give a factory"
            )
    try:
        return replace(resolve(name), input_shape=origin.input_shape).build(origin.num_classes)
    except ModelError as error:
        raise ModelError(f"{path} names model={name!r}, which cannot be built here: {error}") from error


def _found_again(name: str, file: Path, origin: Origin, trust: str | Path | None) -> str:
    """Return the name of the same file where the caller says that it lies now."""
    if file.exists() or trust is None or origin.code is None:
        return name
    elsewhere = Path(str(trust).partition("@")[0]).expanduser().resolve()
    return f"{elsewhere}:{name.rpartition(':')[2]}" if elsewhere.is_file() else name

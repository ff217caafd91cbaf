"""Python files that define networks: running one, who may have it run, and whether it is still the same.

A name such as ``path/to/net.py:build`` runs that file. Where the name comes from the user's own command, that is
what the user asked for; where it was read from a file or a database, whoever wrote it would run code here. Such a
file is run only if the command names it too, and only if it is, byte for byte, the file that the run began with.
"""

import hashlib
import importlib.util
import os
import re
import shlex
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clusterprune.errors import DataError, ModelError, UntrustedCodeError
from clusterprune.models.spec import describe

_SHA256 = r"^[0-9a-f]{64}$"
_PINNED = re.compile(r"(?P<file>.+\.py)@(?:sha256:)?(?P<digest>[0-9a-fA-F]{12,64})")

_ran: dict[Path, str] = {}
"""SHA-256 of the files that this process has run, as they were then."""


class CodeDigest(BaseModel):
    """What a network's Python file was when a run began.

    Attributes
    ----------
    sha256
        Of the file itself.
    beside
        Of the files in its folder, and in folders below, that it had imported by then, by their path from there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str = Field(pattern=_SHA256)
    beside: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def read(cls, value: Any, where: str) -> Self:
        """Read what :meth:`to_dict` returned and a file has kept.

        Raises
        ------
        DataError
            If it is something else.
        """
        try:
            return cls.model_validate(value)
        except ValidationError:
            raise DataError(
                f"{where} says code={value!r}, which is no digest of a model's file; remove that entry, and name the "
                "model as --model"
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as YAML and JSON have them."""
        return self.model_dump(exclude_defaults=True)


def file_of(model: object) -> Path | None:
    """Return the Python file that resolving a model's name would run; None where it runs none."""
    if not isinstance(model, str) or model.startswith(("torchvision:", "timm:")):
        return None
    path, _, _ = (model, "", "") if model.endswith(".py") else model.rpartition(":")
    return Path(path).expanduser().resolve() if path.endswith(".py") else None


def digest_of_code(model: str) -> CodeDigest | None:
    """Return what a network's file is; None for a network that is no user's own.

    Call it when the network was built: what the file imports is known only then.
    """
    file = file_of(model)
    if file is None:
        return None
    beside = {str(path.relative_to(file.parent)): _sha256(path) for path in _imported_beside(file)}
    digest = _ran.get(file) or _sha256(file)
    known = {name: found for name, found in sorted(beside.items()) if found is not None}
    return None if digest is None else CodeDigest(sha256=digest, beside=known)


def allow(model: str, *, named_by: str, trust: str | None, what: str = "model") -> None:
    """Refuse to run a file that the user's command does not name.

    Parameters
    ----------
    model
        A model's name that was read from somewhere.
    named_by
        From where, for the message.
    what
        The option that names it.
    trust
        The file that the command names: a path, or ``PATH@SHA256`` with at least twelve digits of the digest.

    Raises
    ------
    UntrustedCodeError
        If it names none, another, or the file is not of the digest.
    ModelError
        If there is no such file.
    """
    file = file_of(model)
    if file is None:
        return
    digest = _sha256(file)
    if digest is None:
        raise ModelError(
            f"{what}={model!r}, which {named_by} names: there is no file {str(file)!r}. Put it back, or check the path."
        )
    option = f"--trust {shlex.quote(str(file))}"
    if trust is None:
        raise UntrustedCodeError(
            f"{named_by} names {what}={model!r}, and going on would run the code in {file} (sha256 {digest}), which "
            f"this command does not name. If you know that file and trust it, add {option}"
        )
    pinned = _PINNED.fullmatch(trust)
    given = Path(pinned["file"] if pinned else trust).expanduser().resolve()
    if given != file:
        raise UntrustedCodeError(
            f"trust={trust!r} is {given}, but {named_by} names {what}={model!r}, which would run the code in {file} "
            f"(sha256 {digest}). If you know that file and trust it, give {option} instead"
        )
    if pinned and not digest.startswith(pinned["digest"].lower()):
        raise UntrustedCodeError(
            f"trust={trust!r}, but the sha256 of {file} is {digest}: it is not the file that you mean. Look at what "
            f"was changed, and give {option}@{digest} if you trust it"
        )


def check_unchanged(model: str, recorded: CodeDigest, *, named_by: str, remedy: str) -> None:
    """Refuse a model's file that is not the one that a run began with.

    Parameters
    ----------
    recorded
        What :func:`digest_of_code` returned then.
    named_by
        Where that was read, for the message.
    remedy
        What to do about a changed file.

    Raises
    ------
    UntrustedCodeError
        If the file, or one that it imported, was changed or is gone.
    """
    file = file_of(model)
    if file is None:
        return
    for name, was in {file.name: recorded.sha256, **recorded.beside}.items():
        part = Path(name)
        path = file.parent / part
        inside = not part.is_absolute() and ".." not in part.parts
        now = _sha256(path) if inside else None
        if now != was:
            found = "is gone" if now is None else f"has the sha256 {now}"
            raise UntrustedCodeError(
                f"{path} was changed since {named_by} was written: it {found}, and had {was}. Nothing of it was run. "
                f"{remedy}"
            )


def run_file(file: Path, spec: str, *, what: str = "model") -> ModuleType:
    """Run a Python file as a module whose name is its own, whatever other files are called.

    The bytes that are run are those whose digest :func:`digest_of_code` returns: no compiled file beside it is used.

    Raises
    ------
    ModelError
        If it cannot be read, or raises anything.
    """
    place = hashlib.sha256(str(file).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    found = importlib.util.spec_from_file_location(f"{file.stem}_{place}", file)
    if found is None:
        msg = f"{what}={spec!r}: {str(file)!r} is not a Python file: its name must end in .py."
        raise ModelError(msg)
    try:
        source = file.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{what}={spec!r}: {str(file)!r} cannot be read ({error.strerror}). Check the path."
        ) from error
    module = importlib.util.module_from_spec(found)
    # Dataclasses and torch.export look a class's module up by name.
    sys.modules[module.__name__] = module
    try:
        with importable(file.parent):
            code = compile(source, str(file), "exec", dont_inherit=True)
            exec(code, module.__dict__)  # noqa: S102 (the user's own file, named by the user)
    # Whatever a user's own file raises becomes an error that names it.
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        msg = f"{what}={spec!r}: running {file.name} raised {describe(error)}. Correct the file."
        raise ModelError(msg) from error
    _ran[file] = hashlib.sha256(source).hexdigest()
    return module


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let imports find the files of a folder, as they would if a script there were run."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _imported_beside(file: Path) -> list[Path]:
    """Return the modules of this process that lie in a file's folder or below, installed packages left out."""
    installed = [Path(place).resolve() for name, place in sysconfig.get_paths().items() if "lib" in name]
    installed += [Path(__file__).resolve().parents[1], file]
    found: set[Path] = set()
    # There are thousands of modules in hundreds of folders: as path objects they would take a second.
    below = f"{str(file.parent).rstrip(os.sep)}{os.sep}"
    for module in list(sys.modules.values()):
        source = getattr(module, "__file__", None)
        if not isinstance(source, str) or not source.endswith(".py"):
            continue
        folder, name = os.path.split(source)
        place = f"{_resolved(folder)}{os.sep}{name}"
        place = os.path.realpath(place) if os.path.islink(place) else place  # noqa: PTH114
        if place.startswith(below) and not any(Path(place).is_relative_to(library) for library in installed):
            found.add(Path(place))
    return sorted(found)


@cache
def _resolved(folder: str) -> str:
    """Return where a folder of imported modules really is, which does not change while they are in use."""
    return os.path.realpath(folder)


def _sha256(file: Path) -> str | None:
    """Return the SHA-256 of a regular file; None where there is none that can be read."""
    try:
        if not file.is_file():
            return None
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None

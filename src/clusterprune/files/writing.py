"""Writing files and folders so that they are whole or not there at all."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from clusterprune.errors import OutputError
from clusterprune.files.credentials import hidden
from clusterprune.files.reading import ReadError, explain, read_json

Record = TypeVar("Record")

_LONGEST = 100
"""Bytes of a name that the names of files beside it repeat; most systems allow 255 in all."""
_SHOWN = 300


PARTIAL = ".partial"
"""How the names of files and folders end that are not in their place yet."""


@contextmanager
def output_errors(place: str | Path, remedy: str = "free some space there, or choose another place") -> Iterator[None]:
    """Make one error of ours of all that a system answers when something cannot be written.

    Parameters
    ----------
    place
        What is written, for the message.
    remedy
        What to do about it.

    Raises
    ------
    OutputError
        In the place of an error of the system, or of the library that writes tensors.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{shown(place)} cannot be written ({reason_of(error)}); {remedy}") from error


def reason_of(error: Exception) -> str:
    """Return what a system's error says, without its number and file."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside the target and rename it into place when the block ends well.

    Raises
    ------
    OutputError
        If the target exists and is not empty, or the disk refuses.
    """
    target = Path(folder)
    try:
        taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {shown(target)}: {reason_of(error)}; choose another folder") from error
    if taken:
        raise OutputError(
            f"the output folder {shown(target)} exists and is not empty; choose another or remove it first"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _make_beside(target)
    except OSError as error:
        raise OutputError(f"cannot write beside {shown(target)}: {reason_of(error)}; choose another folder") from error
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {shown(target)}: {reason_of(error)}; nothing was left behind") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_beside(target: Path) -> Path:
    """Make a folder whose name nothing else has, open to whoever the user lets read new files."""
    while True:
        made = target.parent / f".{short_name(target.name)}.{secrets.token_hex(4)}{PARTIAL}"
        try:
            made.mkdir()
        except FileExistsError:
            continue
        return made


def short_name(name: str) -> str:
    """Return a file's name, or where it is too long to be repeated in another, its beginning and a digest."""
    raw = os.fsencode(name)
    if len(raw) <= _LONGEST:
        return name
    return f"{raw[:40].decode('ascii', 'ignore')}-{hashlib.sha256(raw).hexdigest()[:16]}"


def sweep(folder: Path) -> None:
    """Remove what killed processes have left half-written in a run's folder; nobody else may be writing there."""
    for parent, names, files in os.walk(folder):
        for name in [name for name in names if name.endswith(PARTIAL) and name.startswith(".")]:
            names.remove(name)
            shutil.rmtree(Path(parent, name), ignore_errors=True)
        for name in files:
            if name.endswith(PARTIAL):
                with contextlib.suppress(OSError):
                    Path(parent, name).unlink()


def sweep_beside(folder: Path) -> None:
    """Remove what killed processes have left beside a folder that they were about to put in its place."""
    begins = f".{short_name(folder.name)}."
    with contextlib.suppress(OSError):
        for path in folder.absolute().parent.iterdir():
            if path.name.startswith(begins) and path.name.endswith(PARTIAL):
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def run_folder(folder: str | Path | None) -> Iterator[Path]:
    """Yield a folder, made where it is missing; for None a temporary one that goes when the block ends.

    Raises
    ------
    OutputError
        If it cannot be made.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder out={str(folder)!r}: {reason_of(error)}; choose another") from error
    yield path


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to a new file beside `path`, then put it in the place of `path` in one step.

    Raises
    ------
    OSError
        The file cannot be written. What was at `path` is untouched.
    """
    temporary = path.with_name(path.name + PARTIAL)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 (the documented atomic call)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can do it.

    Without it the previous file may come back, which is whole too: no reason to fail.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_file(path: Path, content: bytes) -> None:
    """Write a file in the place of what was there, in one step; its folder is made where it is missing.

    Raises
    ------
    OutputError
        The file cannot be written. What was there is untouched.
    """
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, as :func:`write_file` does; the passwords of addresses in it are hidden."""
    write_file(path, (json.dumps(hidden(content), indent=1, ensure_ascii=False) + "\n").encode())


def shown(place: str | Path) -> str:
    """Return a path as messages have it, shortened where it is longer than anyone would read."""
    text = str(place)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def read_record(path: Path, kind: type[Record]) -> Record:
    """Read what a run has measured, which :func:`write_json` wrote.

    Parameters
    ----------
    kind
        What the file holds: a dataclass, or a dictionary.

    Raises
    ------
    OutputError
        If the file is damaged.
    """
    try:
        return TypeAdapter(kind).validate_python(read_json(path))
    except ReadError as error:
        reason = str(error)
    except ValidationError as error:
        reason = explain(error)
    raise OutputError(f"{path} is damaged ({reason}); remove it to have it measured again")


def begun_with(path: Path, asked: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return what a run was begun with and what is asked for now, both as JSON has them.

    For a run that was not begun, what is asked for is noted in the file, and None returned.

    Raises
    ------
    OutputError
        If the file is damaged, or cannot be written.
    """
    asked = hidden(asked)
    try:
        if not path.exists():
            write_json(path, asked)
            return None
        before = read_json(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be read ({reason_of(error)}); choose another folder") from error
    except ReadError as error:
        raise OutputError(f"{path} is damaged (it {error}); choose another folder, or remove this one") from error
    if not isinstance(before, dict):
        raise OutputError(f"{path} is damaged; choose another folder, or remove this one")
    return before, json.loads(json.dumps(asked))

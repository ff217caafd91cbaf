"""Writing files and folders so that they are whole or not there at all."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from clusterprune.errors import OutputError
from clusterprune.reading import ReadError, explain, read_json

Record = TypeVar("Record")


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside the target and rename it into place when the block ends well.

    Raises
    ------
    OutputError
        If the target exists and is not empty, or the disk refuses.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"the output folder {target} exists and is not empty; choose another or remove it first")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise OutputError(f"cannot write beside {target}: {error.strerror}") from error
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if target.exists():
            target.rmdir()
        temporary.chmod(0o755)
        temporary.rename(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}; nothing was left behind") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
        raise OutputError(f"cannot make the folder out={str(folder)!r}: {error.strerror}; choose another") from error
    yield path


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to a new file beside `path`, then put it in the place of `path` in one step.

    Raises
    ------
    OSError
        The file cannot be written. What was at `path` is untouched.
    """
    temporary = path.with_name(path.name + ".tmp")
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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in the place of what was there, in one step.

    Raises
    ------
    OSError
        The file cannot be written. What was there is untouched.
    """
    replace_file(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


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
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, asked)
            return None
        before = read_json(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); choose another folder") from error
    except ReadError as error:
        raise OutputError(f"{path} is damaged (it {error}); choose another folder, or remove this one") from error
    if not isinstance(before, dict):
        raise OutputError(f"{path} is damaged; choose another folder, or remove this one")
    return before, json.loads(json.dumps(asked))

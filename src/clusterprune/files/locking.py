"""One process at a time in a run's folder.

The lock is the operating system's (``flock``) on a small file beside the folder: it is gone the moment its process is,
however that ends, so that no lock of a dead run has to be found out and removed. The file is beside the folder, not in
it, because a one-shot run makes its folder only when all is done. What it says, who works there, is for the message.
"""

import contextlib
import datetime as dt
import errno
import json
import os
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from clusterprune.errors import OutputError
from clusterprune.files.writing import short_name

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None

_CANNOT = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""What file systems answer that know no locks."""


class NoLockWarning(UserWarning):
    """Nothing keeps a second process out of the folder."""


_held: dict[Path, int] = {}
"""The locks that this process holds, and the threads that took them."""


@contextmanager
def locked(folder: Path, *, within: bool = False) -> Iterator[None]:
    """Keep every other process out of a folder, which need not exist, until the block ends.

    Parameters
    ----------
    within
        Go on where this very thread holds the lock: a function called by whoever took it.

    Raises
    ------
    OutputError
        If another process works there, or the lock's file cannot be made.
    """
    place = _place(folder.absolute())
    if within and _held.get(place) == threading.get_ident():
        yield
        return
    made = _make_parents(place.parent)
    try:
        descriptor = _take(place, folder)
        _held[place] = threading.get_ident()
        try:
            yield
        finally:
            del _held[place]
            if descriptor is not None:
                # Removed while it is held: whoever waits for this very file finds out, and makes a new one.
                with contextlib.suppress(OSError):
                    place.unlink()
                os.close(descriptor)
    finally:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()  # where nothing came of the run


def alone(out: str | Path | None) -> AbstractContextManager[None]:
    """Keep other processes out of the folder of a run, where it has one, and go on where the caller has done so."""
    return nullcontext() if out is None else locked(Path(out).expanduser(), within=True)


def _place(folder: Path) -> Path:
    """Return the lock's file: beside the folder, or in it where nothing can be written beside it."""
    parent = folder.parent
    if folder.is_dir() and not os.access(parent, os.W_OK | os.X_OK):
        return folder / ".lock"
    return parent / f".{short_name(folder.name)}.lock"


def _make_parents(parent: Path) -> list[Path]:
    """Make a folder and those above it; return what was made, the deepest first."""
    missing = []
    for place in (parent, *parent.parents):
        if place.exists():
            break
        missing.append(place)
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {parent}: {error.strerror or error}; choose another") from error
    return missing


def _take(place: Path, folder: Path) -> int | None:
    """Return the descriptor that holds the lock; None where there are no locks."""
    while True:
        try:
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except OSError as error:
            raise OutputError(
                f"out={str(folder)!r} cannot be locked: {place} cannot be opened ({error.strerror or error}); choose "
                "another folder"
            ) from error
        try:
            if not _lock(descriptor, folder, place):
                os.close(descriptor)
                with contextlib.suppress(OSError):
                    place.unlink()
                return None
            if _is_still_there(descriptor, place):
                _introduce(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was removed between the two calls


def _lock(descriptor: int, folder: Path, place: Path) -> bool:
    """Take the lock; return False, with a warning, where the system has none."""
    reason = "this system knows no such locks"
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"out={str(folder)!r} is in use: {_who(place)}. Two runs would write over each other; wait until that "
                "one ends, stop it, or choose another folder"
            ) from None
        except OSError as error:
            if error.errno not in _CANNOT:
                raise OutputError(f"out={str(folder)!r} cannot be locked ({error.strerror or error})") from error
            reason = f"its file system answers: {error.strerror}"
        else:
            return True
    warnings.warn(
        f"out={str(folder)!r} cannot be locked ({reason}); see to it yourself that no other run uses it",
        NoLockWarning,
        stacklevel=5,
    )
    return False


def _is_still_there(descriptor: int, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(place))  # noqa: PTH116 (beside fstat)
    except OSError:
        return False


def _introduce(descriptor: int) -> None:
    """Say in the lock's file who holds it."""
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    text = json.dumps({"process": os.getpid(), "machine": socket.gethostname(), "since": now})
    # A full disk is no reason to fail here: the lock is held, only its message would be poorer.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _who(place: Path) -> str:
    """Return who holds a lock, as far as its file says so."""
    try:
        found = json.loads(place.read_bytes()[:1000])
        return f"process {found['process']} on {found['machine']} works there since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process works there"

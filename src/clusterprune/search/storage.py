"""Where studies are kept: a SQLite file by default, any database that Optuna can open otherwise."""

import importlib.util
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage, get_storage
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from clusterprune.errors import ArgumentError, OutputError
from clusterprune.files.credentials import hide_passwords, passwords_for, without_password

_SECONDS_FOR_LOCK = 60
"""How long a worker waits for another to finish writing to a SQLite file."""
_ATTEMPTS = 20
_FILE = "sqlite:///"

_quiet_lock = threading.Lock()


def storage_url(storage: str | Path | None) -> str:
    """Return the URL of a storage; empty for one in memory, where there is none.

    A password in it is taken out, and remembered for :func:`open_storage` in this process.
    """
    if storage is None:
        return ""
    if isinstance(storage, str) and "://" in storage:
        return without_password(storage)
    return f"{_FILE}{Path(storage).absolute()}"


def is_missing_file(url: str) -> bool:
    """Tell whether a URL is that of a SQLite file that does not exist; opening it would make it."""
    return url.startswith(_FILE) and not Path(url.removeprefix(_FILE)).exists()


def open_storage(url: str) -> BaseStorage:
    """Open a storage, and create its tables or its file when it is new.

    Raises
    ------
    ArgumentError
        If Optuna cannot open the URL.
    OutputError
        If the folder of a SQLite file cannot be made.
    """
    if not url:
        return InMemoryStorage()
    url = without_password(url)
    # Beside the URL, so that no text of SQLAlchemy's or Optuna's can show it.
    options: dict[str, Any] = {"connect_args": passwords_for(url)}
    if url.startswith(_FILE):
        options = {"connect_args": {"timeout": _SECONDS_FOR_LOCK}}
        folder = Path(url.removeprefix(_FILE)).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {folder} of the study: {error.strerror}") from error
    for attempt in range(_ATTEMPTS):
        try:
            opened = RDBStorage(_with_driver(url), engine_kwargs=dict(options))
            if url.startswith(_FILE):
                _write_ahead(opened)
            return get_storage(opened)
        except ImportError as error:
            raise ArgumentError(
                f"storage={url!r} needs a database driver that is not installed ({error}); "
                "for PostgreSQL: pip install 'psycopg[binary]'"
            ) from error
        except Exception as error:  # whatever the driver raises: each has its own exceptions
            # Two workers that make the tables of a new database at the same moment: the second has only to wait.
            beaten = any(word in str(error).lower() for word in ("already exists", "unique constraint", "locked"))
            if not beaten or attempt == _ATTEMPTS - 1:
                raise ArgumentError(
                    f"storage={url!r} cannot be opened: {hide_passwords(_first_line(error))}. Give the path of a "
                    "file, or an Optuna storage URL such as sqlite:///search.db or postgresql://user@host/database, "
                    "of a server that runs and accepts you. A password is never written down: it is taken from the "
                    "environment (PGPASSWORD), from ~/.pgpass, or from the URL that this very call gives."
                ) from error
            time.sleep(0.1 * (attempt + 1))
    raise AssertionError


def _with_driver(url: str) -> str:
    """Name the driver of a PostgreSQL URL that leaves it open: the default is not the same in all SQLAlchemy 2."""
    scheme, separator, rest = url.partition("://")
    if scheme != "postgresql":
        return url
    installed = (name for name in ("psycopg", "psycopg2") if importlib.util.find_spec(name) is not None)
    driver = next(installed, "psycopg")
    return f"{scheme}+{driver}{separator}{rest}"


def _write_ahead(storage: RDBStorage) -> None:
    """Let a SQLite file append to a log instead of rewriting pages: a trial is some twenty small transactions.

    What was committed survives the death of any process. A power failure may cost the last transactions, never
    the file.
    """

    @event.listens_for(storage.engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        ((mode,),) = connection.execute("PRAGMA journal_mode=WAL").fetchall()
        # Some file systems cannot; then each transaction waits for the disk.
        if mode == "wal":
            connection.execute("PRAGMA synchronous=NORMAL")

    storage.remove_session()
    storage.engine.dispose()


def close_storage(storage: BaseStorage) -> None:
    """Let go of the connections of a storage."""
    storage.remove_session()
    backend = getattr(storage, "_backend", storage)
    if isinstance(backend, RDBStorage):
        backend.engine.dispose()


@contextmanager
def failures_named(url: str) -> Iterator[None]:
    """Make an error of ours of what a database raises in the middle of the work.

    Raises
    ------
    OutputError
        In its place.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = hide_passwords(_first_line(error.__cause__ or error))
        raise OutputError(
            f"storage={url!r} failed while the search ran: {reason}. What was evaluated before is kept there; when it "
            "works again, and its disk has room, give the same command to go on"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's announcements on the standard error stream; the user sees ours."""
    with _quiet_lock:
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(logging.ERROR)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(before)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

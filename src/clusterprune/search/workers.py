"""Who evaluates a trial, and whether that worker is still there.

On the same machine the operating system knows at once, also after a `kill -9`. A worker on another machine
is known by its heartbeat: a counter that it raises while it evaluates. One whose counter has stood still for
two minutes, on the observer's own clock, is taken for dead.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.exceptions import OptunaError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from clusterprune.search.trials import WORKER

BEAT = "heartbeat"
"""User attribute of a trial: a counter that its worker raises."""
INTERVAL, PATIENCE = 20.0, 120.0
"""Seconds between heartbeats, and without one until a worker counts as dead."""

_alive: set[str] = set()
"""Workers of this process."""


class Worker:
    """One worker, alive until :meth:`leave`; `token` is what its trials carry."""

    def __init__(self) -> None:
        pid = os.getpid()
        self.token = {"machine": _machine(), "pid": pid, "started": _started(pid), "id": uuid.uuid4().hex}
        _alive.add(self.token["id"])

    def leave(self) -> None:
        """Stop being alive; what this worker left running may be repeated by others."""
        _alive.discard(self.token["id"])

    @contextmanager
    def beating(self, storage: BaseStorage, trial_id: int) -> Iterator[None]:
        """Raise the counter of a trial every 20 seconds."""
        done = threading.Event()

        def beat() -> None:
            count = 0
            while not done.wait(INTERVAL):
                count += 1
                try:
                    storage.set_trial_user_attr(trial_id, BEAT, count)
                except OptunaError:
                    # Someone ended the trial, or the storage is away; the evaluation itself will find out.
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


class Heartbeats:
    """Tells whether the workers of running trials are alive."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[int, tuple[Any, float]] = {}

    def alive(self, trial: FrozenTrial) -> bool:
        """Tell whether someone works on a running trial. A trial of a foreign program carries no token: it is."""
        token = trial.user_attrs.get(WORKER)
        if token is None:
            return True
        if token["machine"] == _machine():
            if token["pid"] == os.getpid():
                return token["id"] in _alive
            return token["started"] == _started(token["pid"])
        beat, since = self._seen.get(trial.number, (None, 0.0))
        now = self._clock()
        if trial.number not in self._seen or beat != trial.user_attrs.get(BEAT):
            self._seen[trial.number] = (trial.user_attrs.get(BEAT), now)
            return True
        return now - since < PATIENCE


def _machine() -> str:
    """Name the set of processes that this one can see: a machine, or a container on it."""
    try:
        space = Path("/proc/self/ns/pid").readlink().name
    except OSError:
        # Without a process table to ask, every other process is a stranger that has to show a heartbeat.
        space = f"process {os.getpid()}"
    return f"{socket.gethostname()} {space}"


def _started(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot; None if there is no such process."""
    try:
        # The second field is the program's name in brackets, and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]

"""The same on PostgreSQL, in a server of our own that listens on a socket in a temporary folder."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from clusterprune.search import search


def program(name: str) -> str | None:
    """Find a program of PostgreSQL; Debian keeps them out of the path."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, places)]))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    initdb, pg_ctl = program("initdb"), program("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    if not any(importlib.util.find_spec(driver) for driver in ("psycopg", "psycopg2")):
        pytest.skip("there is no driver for PostgreSQL: pip install 'psycopg[binary]'")
    # The server refuses to run as root.
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        if user:
            shutil.chown(folder, "postgres")
        data = str(folder / "data")

        def run(*command: str) -> None:
            subprocess.run([*user, *command], check=True, stdout=subprocess.DEVNULL, timeout=60, cwd=folder)

        run(initdb, "-D", data, "-U", "postgres", "-A", "trust", "--no-sync")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        run(pg_ctl, "-D", data, "-l", str(folder / "log"), "-o", options, "-w", "start")
        try:
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            run(pg_ctl, "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_search_goes_on(worker: ModuleType, url: str) -> None:
    whole = worker.run(evaluations=12)
    left = [5]

    def dies(widths: dict[str, int]) -> float:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return worker.fitness(widths)

    given = {"start": worker.START, "storage": url, "seed": 3, "evaluations": 12, "name": "goes on"}
    with pytest.raises(KeyboardInterrupt):
        search(worker.SPACE, dies, **given)
    result = search(worker.SPACE, worker.fitness, **given)
    assert [(e.widths, e.values) for e in result.history] == [(e.widths, e.values) for e in whole.history]


def test_workers_share_a_search(worker: ModuleType, url: str) -> None:
    asked: Counter = Counter()
    results = []

    def fitness(widths: dict[str, int]) -> float:
        asked[tuple(widths.items())] += 1
        return worker.fitness(widths)

    def take_part() -> None:
        results.append(search(worker.SPACE, fitness, start=worker.START, storage=url, name="shared"))

    threads = [threading.Thread(target=take_part) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(result.history) for result in results] == [36, 36, 36]
    assert set(asked.values()) == {1}

"""The same on PostgreSQL, in a server of our own."""

import threading
from collections import Counter
from types import ModuleType

import pytest
from postgres import PASSWORD, Server

import clusterprune.files.credentials
from clusterprune.errors import ArgumentError
from clusterprune.search import search, study_header


def test_a_search_goes_on(worker: ModuleType, postgres: Server) -> None:
    whole = worker.run(evaluations=12)
    left = [5]

    def dies(widths: dict[str, int]) -> float:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return worker.fitness(widths)

    given = {"start": worker.START, "storage": postgres.secret_url, "seed": 3, "evaluations": 12, "name": "goes on"}
    with pytest.raises(KeyboardInterrupt):
        search(worker.SPACE, dies, **given)
    result = search(worker.SPACE, worker.fitness, **given)
    assert [(e.widths, e.values) for e in result.history] == [(e.widths, e.values) for e in whole.history]


def test_workers_share_a_search(worker: ModuleType, postgres: Server) -> None:
    asked: Counter = Counter()
    results = []

    def fitness(widths: dict[str, int]) -> float:
        asked[tuple(widths.items())] += 1
        return worker.fitness(widths)

    def take_part() -> None:
        results.append(search(worker.SPACE, fitness, start=worker.START, storage=postgres.secret_url, name="shared"))

    threads = [threading.Thread(target=take_part) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(result.history) for result in results] == [36, 36, 36]
    assert set(asked.values()) == {1}


def test_the_password_is_taken_from_the_environment(
    worker: ModuleType, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = search(worker.SPACE, worker.fitness, start=worker.START, storage=postgres.secret_url, name="secret")
    assert result.storage == postgres.url
    # As in another process, which was not told.
    monkeypatch.setattr(clusterprune.files.credentials, "_known", {})
    with pytest.raises(ArgumentError, match=r"no password supplied. .* taken from the environment \(PGPASSWORD\)"):
        study_header(result.storage, "secret")
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    found = study_header(result.storage, "secret")
    assert found is not None
    assert found.start == worker.START
    with pytest.raises(ArgumentError, match="password authentication failed") as refused:
        study_header(postgres.url.replace("postgres@", "postgres:wrong-guess@"), "secret")
    assert "wrong-guess" not in str(refused.value)

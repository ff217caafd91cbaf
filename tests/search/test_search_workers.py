"""Several workers and sudden deaths: whoever is gone, every place is settled and no structure is evaluated twice."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from clusterprune.search import search, work, workers
from clusterprune.search.trials import FIRST, WORKER
from clusterprune.search.workers import PATIENCE, Heartbeats, Worker


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def structures(log: Path) -> Counter:
    return Counter(line.partition(" ")[2] for line in lines(log))


def start(worker: ModuleType, folder: Path, seconds: float, *more: str) -> subprocess.Popen:
    script = [sys.executable, worker.__file__, str(folder / "s.db"), str(folder / "log"), str(seconds), *more]
    return subprocess.Popen(script, env={**os.environ, "OMP_NUM_THREADS": "1"})


def kill_after(process: subprocess.Popen, log: Path, count: int, delay: float) -> None:
    """Send SIGKILL a moment after the log has `count` more lines."""
    wanted = len(lines(log)) + count
    until = time.monotonic() + 60
    while len(lines(log)) < wanted and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()


def same(a: object, b: object) -> bool:
    return [(e.widths, e.values, e.duplicate_of) for e in a.history] == [
        (e.widths, e.values, e.duplicate_of) for e in b.history
    ] and (a.best, a.value) == (b.best, b.value)


def check_kills(worker: ModuleType, folder: Path, kills: int) -> None:
    whole = worker.run()
    chance = random.Random(kills)
    for _ in range(kills):
        process = start(worker, folder, 0.02)
        kill_after(process, folder / "log", chance.randint(1, 3), chance.uniform(0, 0.15))
        assert process.returncode == -signal.SIGKILL
    result = worker.run(folder / "s.db", log=folder / "log")
    assert same(result, whole)
    # Only what was killed in the middle was begun again.
    distinct = sum(e.duplicate_of is None for e in whole.history)
    assert len(structures(folder / "log")) == distinct
    assert sum(structures(folder / "log").values()) <= distinct + kills


def test_a_killed_search_ends_like_an_undisturbed_one(worker: ModuleType, tmp_path: Path) -> None:
    check_kills(worker, tmp_path, kills=1)


@pytest.mark.slow
def test_ten_kills_at_random_moments(worker: ModuleType, tmp_path: Path) -> None:
    check_kills(worker, tmp_path, kills=10)


def test_workers_share_a_search(worker: ModuleType, tmp_path: Path) -> None:
    """Three threads, each with connections of its own, on one file."""
    results = []

    def take_part() -> None:
        results.append(worker.run(tmp_path / "s.db", log=tmp_path / "log", seconds=0.05, evaluations=24))

    threads = [threading.Thread(target=take_part) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert [len(r.history) for r in results] == [24, 24, 24]
    assert same(results[0], results[1])
    assert same(results[0], results[2])
    assert set(structures(tmp_path / "log").values()) == {1}
    assert all(e.values == (worker.fitness(e.widths),) for e in results[0].history)


def test_workers_that_want_the_same_structure_evaluate_it_once(worker: ModuleType, tmp_path: Path) -> None:
    """Nine structures for 18 places: nearly every trial is the twin of another, and often of a running one."""
    small = {"a": (11, 13), "b": (20, 20), "c": (29, 31)}
    log = tmp_path / "log"
    results = []

    def slow(widths: dict[str, int]) -> float:
        with log.open("a") as file:
            file.write(f"{threading.get_ident()} {sorted(widths.items())}\n")
        time.sleep(0.1)
        return worker.fitness(widths)

    def take_part() -> None:
        results.append(search(small, slow, start=worker.START, storage=tmp_path / "s.db", evaluations=18))

    threads = [threading.Thread(target=take_part) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert set(structures(log).values()) == {1}
    assert len(structures(log)) + sum(e.duplicate_of is not None for e in results[0].history) == 18


@pytest.mark.slow
def test_a_worker_process_joins_and_one_may_die(worker: ModuleType, tmp_path: Path) -> None:
    first = start(worker, tmp_path, 0.15)
    while not lines(tmp_path / "log"):
        time.sleep(0.01)
    second = start(worker, tmp_path, 0.15, "join")
    while len({line.split()[0] for line in lines(tmp_path / "log")}) < 2:
        time.sleep(0.01)
    kill_after(first, tmp_path / "log", 4, 0.05)
    assert second.wait(timeout=120) == 0
    result = worker.run(tmp_path / "s.db")
    assert len(result.history) == 36
    assert sum(structures(tmp_path / "log").values()) <= len(structures(tmp_path / "log")) + 1


def test_of_two_repeats_of_a_lost_trial_one_is_void(worker: ModuleType, tmp_path: Path) -> None:
    """Four workers find the same trial of a dead worker at once."""
    url = f"sqlite:///{tmp_path / 's.db'}"

    def dies(widths: dict[str, int]) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(worker.SPACE, dies, start=worker.START, storage=url, evaluations=3)
    asked: Counter = Counter()

    def fitness(widths: dict[str, int]) -> float:
        asked[tuple(widths.values())] += 1
        time.sleep(0.3)
        return worker.fitness(widths)

    threads = [threading.Thread(target=work, args=(url, "search", fitness)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(asked.values()) == {1}
    assert len(asked) <= 3
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name="search", storage=url)
    repeats = [t for t in study.trials if t.system_attrs.get(FIRST) == 0]
    assert sum(t.state == TrialState.COMPLETE for t in repeats) == 1
    assert not [t for t in study.trials if t.state == TrialState.RUNNING]


def trial_of(token: dict | None, **more: object) -> optuna.trial.FrozenTrial:
    attributes = ({} if token is None else {WORKER: token}) | more
    return create_trial(state=TrialState.RUNNING, user_attrs=attributes)


def test_who_is_alive_on_this_machine() -> None:
    watch, here = Heartbeats(), Worker()
    assert watch.alive(trial_of(here.token))
    assert watch.alive(trial_of(None))
    here.leave()
    assert not watch.alive(trial_of(here.token))
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    token = {**here.token, "pid": child.pid, "started": workers._started(child.pid)}
    assert watch.alive(trial_of(token))
    assert not watch.alive(trial_of({**token, "started": "1"})), "another process has the number now"
    child.kill()
    while workers._started(child.pid) is not None:
        time.sleep(0.01)
    assert not watch.alive(trial_of(token)), "killed, though nobody has waited for it"
    child.communicate()


def test_who_is_alive_elsewhere() -> None:
    """A heartbeat that stands still, on the observer's clock, for longer than patience lasts."""
    now = 0.0
    watch = Heartbeats(clock=lambda: now)
    token = {"machine": "elsewhere", "pid": 1, "started": "1", "id": "x"}
    assert watch.alive(trial_of(token))
    now = PATIENCE - 1
    assert watch.alive(trial_of(token))
    assert watch.alive(trial_of(token, heartbeat=1))
    now = 2 * PATIENCE - 2
    assert watch.alive(trial_of(token, heartbeat=1))
    now = 2 * PATIENCE
    assert not watch.alive(trial_of(token, heartbeat=1))


def test_a_worker_beats_while_it_evaluates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "INTERVAL", 0.01)
    storage = optuna.storages.InMemoryStorage()
    study = storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE])
    trial = storage.create_new_trial(study, trial_of(None))
    with Worker().beating(storage, trial):
        until = time.monotonic() + 5
        while storage.get_trial(trial).user_attrs.get(workers.BEAT, 0) < 2 and time.monotonic() < until:
            time.sleep(0.01)
    assert storage.get_trial(trial).user_attrs[workers.BEAT] >= 2

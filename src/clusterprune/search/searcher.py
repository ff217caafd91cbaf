"""One worker's part in a search.

Nobody hands out work. A worker claims the next place by creating a trial, which every storage does atomically;
all else follows from the order of the trials:

- A place is a trial's number, less the repeats before it (:func:`clusterprune.search.trials.slots`).
- Workers sample in the order of their trials, so that each knows the structures of all trials before its own.
- A structure that an earlier trial has, or is being evaluated for, is not evaluated again: its value is told.
- A trial whose worker is gone is repeated, in the same place, by a new trial that names it. Of two such repeats the
  later one is void.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from clusterprune.errors import ArgumentError, ClusterpruneError
from clusterprune.search.integers import KEY
from clusterprune.search.swarm import ParticleSwarmSampler
from clusterprune.search.trials import (
    DUPLICATE,
    FAILURE,
    FIRST,
    HISTORY,
    SECONDS,
    WIDTHS,
    WORKER,
    Evaluation,
    SearchResult,
    evaluations,
    front,
    slots,
)
from clusterprune.search.workers import Heartbeats, Worker

Fitness = Callable[[dict[str, int]], float | tuple[float, ...]]
Repair = Callable[[dict[str, int]], dict[str, int]]
OnEvaluation = Callable[[Evaluation, int, int], None]
"""Called with an evaluation, and how many of how many are done."""

_POLL = 0.1
_HOPELESS = 3
"""So many failures and no success: the fitness is wrong, not the structures."""


@dataclass(frozen=True)
class _Claimed:
    """An own trial, its place, and the trials before it as they were when it was created."""

    trial_id: int
    number: int
    slot: int
    before: list[FrozenTrial]


@dataclass(frozen=True)
class _Pending:
    """An own trial that waits for the value of a twin."""

    trial_id: int
    number: int
    widths: dict[str, int]


class Searcher:
    """One worker's part in a search."""

    def __init__(
        self,
        storage: BaseStorage,
        study: optuna.Study,
        settings: Mapping[str, Any],
        sampler_for: Callable[[int], BaseSampler],
        fitness: Fitness,
        progress: OnEvaluation | None,
        repair: Repair | None,
    ) -> None:
        self.repair = repair or dict
        self.storage, self.study = storage, study
        self.study_id = storage.get_study_id_from_name(study.study_name)
        self.space: dict[str, list[int]] = settings["space"]
        self.start: dict[str, int] = settings["start"]
        self.total: int = settings["evaluations"]
        self.objectives = len(settings["directions"])
        self.sampler_for, self.fitness, self.progress = sampler_for, fitness, progress
        self.watch = Heartbeats()
        self.pending: list[_Pending] = []

    def run(self) -> None:
        """Work until every place is settled."""
        self.worker = Worker()
        try:
            while True:
                self._settle()
                trial = self._claim()
                if trial is not None:
                    self._sample(trial)
                elif self.pending or self._others():
                    time.sleep(_POLL)
                else:
                    return
        finally:
            # What is unfinished is left as it is: gone workers' trials are repeated, whatever stopped them.
            self.worker.leave()

    def result(self, url: str) -> SearchResult:
        """Return what the whole search has found."""
        history = tuple(evaluations(self._trials()))
        best = front(self.study, history)
        if not best:
            raise ClusterpruneError(
                f"the fitness failed for all {len(history)} structures, the first with: {history[0].failure}. "
                "Correct it, and search under another name."
            )
        value = (best[0].values or (math.nan,))[0]
        return SearchResult(self.study.study_name, url, dict(best[0].widths), value, best, history)

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _others(self) -> bool:
        """Tell whether a trial of any worker is still running."""
        return any(t.state == TrialState.RUNNING and WORKER in t.user_attrs for t in self._trials())

    # Claiming: the creation of a trial is the claim.

    def _claim(self) -> _Claimed | None:
        """Claim the place of a trial whose worker is gone, else the next place; None if there is none to be had."""
        trials = self._trials()
        slot = slots(trials)
        running = [t for t in trials if t.state == TrialState.RUNNING and not self.watch.alive(t)]
        repeated = {t.system_attrs[HISTORY][-1] for t in trials if FIRST in t.system_attrs}
        for lost in sorted(running, key=lambda t: slot[t.number]):
            needed = slot[lost.number] < self.total and lost.number not in repeated
            mine = self._create(lost) if needed else None
            # Only now: a kill between the two leaves a trial that is repeated already, never a lost place.
            self._fail(lost._trial_id)
            if mine is not None:
                return mine
        if sum(FIRST not in t.system_attrs for t in trials) >= self.total:
            return None
        return self._create(None)

    def _create(self, lost: FrozenTrial | None) -> _Claimed | None:
        """Create a trial, with all that marks it as ours; void it and return None if another was first."""
        marks: dict[str, Any] = {}
        if lost is not None:
            marks = {
                FIRST: lost.system_attrs.get(FIRST, lost.number),
                HISTORY: [*lost.system_attrs.get(HISTORY, []), lost.number],
            }
            if WIDTHS in lost.user_attrs:
                marks["fixed_params"] = lost.params
                marks[KEY] = lost.system_attrs.get(KEY, {})
        template = create_trial(state=TrialState.RUNNING, user_attrs={WORKER: self.worker.token}, system_attrs=marks)
        trial_id = self.storage.create_new_trial(self.study_id, template)
        trials = self._trials()
        number = self.storage.get_trial_number_from_id(trial_id)
        mine = _Claimed(trial_id, number, slots(trials)[number], [t for t in trials if t.number < number])
        beaten = lost is not None and any(t.system_attrs.get(HISTORY) == marks[HISTORY] for t in mine.before)
        if beaten or mine.slot >= self.total:
            self._fail(trial_id)
            return None
        return mine

    def _fail(self, trial_id: int) -> None:
        try:
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return  # another worker was faster

    # Sampling: in the order of the trials.

    def _sample(self, mine: _Claimed) -> None:
        """Sample a structure, announce it, and let it be evaluated."""
        before = mine.before
        while any(self._is_choosing(t) for t in before):
            time.sleep(_POLL / 5)
            before = [t for t in self._trials() if t.number < mine.number]
        self.study.sampler = self.sampler_for(mine.slot)
        if mine.slot == 0 and not isinstance(self.study.sampler, ParticleSwarmSampler):
            self.storage.set_trial_system_attr(mine.trial_id, "fixed_params", self.start)
        trial = optuna.Trial(self.study, mine.trial_id)
        drawn = {name: trial.suggest_int(name, low, high, step=step) for name, (low, high, step) in self.space.items()}
        widths = self.repair(drawn)
        trial.set_user_attr(WIDTHS, widths)
        self.pending.append(_Pending(mine.trial_id, mine.number, widths))

    def _is_choosing(self, trial: FrozenTrial) -> bool:
        """Tell whether a worker has claimed a trial, and not yet announced its structure."""
        ours = WORKER in trial.user_attrs and WIDTHS not in trial.user_attrs
        return ours and trial.state == TrialState.RUNNING and self.watch.alive(trial)

    # Evaluating: once per structure.

    def _settle(self) -> None:
        """Settle every own trial that need not wait for a twin."""
        for entry in tuple(self.pending):
            twins = [t for t in self._trials() if t.number != entry.number and t.user_attrs.get(WIDTHS) == entry.widths]
            if any(self._is_first(t, entry) for t in twins):
                continue
            known = [t for t in twins if t.state == TrialState.COMPLETE or _failed(t)]
            if known:
                self._copy(entry, min(known, key=lambda t: t.number))
            else:
                self._evaluate(entry)
            self.pending.remove(entry)
            self._report(entry)

    def _is_first(self, twin: FrozenTrial, entry: _Pending) -> bool:
        """Tell whether a twin is to be evaluated before an entry, and somebody does."""
        return twin.number < entry.number and twin.state == TrialState.RUNNING and self.watch.alive(twin)

    def _copy(self, entry: _Pending, twin: FrozenTrial) -> None:
        """Tell a trial the outcome of its twin."""
        # Of a twin that is a copy itself, name the original.
        original = twin.user_attrs.get(DUPLICATE, twin.number)
        self.storage.set_trial_user_attr(entry.trial_id, DUPLICATE, original)
        self._tell(entry, twin.values, twin.user_attrs.get(FAILURE))

    def _evaluate(self, entry: _Pending) -> None:
        began = time.perf_counter()
        values, failure, cause = None, None, None
        with self.worker.beating(self.storage, entry.trial_id):
            try:
                returned = self.fitness(dict(entry.widths))
                values = [float(v) for v in (returned if isinstance(returned, tuple) else (returned,))]
            except Exception as error:  # a structure that cannot be evaluated must not end the search
                failure, cause = f"{type(error).__name__}: {error}", error
        if values is not None and len(values) != self.objectives:
            raise ArgumentError(
                f"fitness returned {len(values)} numbers for {self.objectives} directions; return one for each"
            )
        if values is not None and not all(math.isfinite(v) for v in values):
            failure = f"the fitness is {', '.join(str(v) for v in values)}"
        self.storage.set_trial_user_attr(entry.trial_id, SECONDS, round(time.perf_counter() - began, 3))
        self._tell(entry, None if failure else values, failure)
        if failure:
            done = [e for e in evaluations(self._trials()) if e.duplicate_of is None]
            if len(done) >= _HOPELESS and all(e.values is None for e in done):
                raise ClusterpruneError(
                    f"the fitness failed for all of the first {len(done)} structures, the last time with: {failure}. "
                    "Correct it, and search under another name."
                ) from cause

    def _tell(self, entry: _Pending, values: Sequence[float] | None, failure: str | None) -> None:
        if failure:
            self.storage.set_trial_user_attr(entry.trial_id, FAILURE, failure)
        state = TrialState.FAIL if failure else TrialState.COMPLETE
        self.study.tell(entry.number, None if failure else list(values or ()), state=state)

    def _report(self, entry: _Pending) -> None:
        if self.progress is None:
            return
        trials = self._trials()
        done = evaluations(trials)
        slot = slots(trials)[entry.number]
        self.progress(next(e for e in done if e.slot == slot), len(done), self.total)


def _failed(trial: FrozenTrial) -> bool:
    """Tell whether a trial's fitness failed, rather than its worker."""
    return trial.state == TrialState.FAIL and FAILURE in trial.user_attrs

"""What the trials of a study say: which place of the search each has, and what a search has found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from clusterprune.tables import first_widths, plural

FIRST, HISTORY = "failed_trial", "retry_history"
"""System attributes of a trial that repeats others: number of the first, numbers of all. The names are Optuna's."""

WIDTHS, WORKER, DUPLICATE, FAILURE, SECONDS = "widths", "worker", "duplicate_of", "failure", "seconds"
"""User attributes: the structure, who evaluates it, the trial whose value it took, why it failed, how long it took."""


def slots(trials: Sequence[FrozenTrial]) -> dict[int, int]:
    """Return the place of each trial in the search, by its number.

    Places are handed out in order of creation. A trial that repeats another has that one's place. Neither changes
    once a trial exists, so all workers agree on it.

    Examples
    --------
    >>> from optuna.trial import create_trial
    >>> trials = [create_trial(value=0.0) for _ in range(3)] + [create_trial(value=0.0, system_attrs={FIRST: 1})]
    >>> for number, trial in enumerate(trials):
    ...     trial.number = number
    >>> slots(trials)
    {0: 0, 1: 1, 2: 2, 3: 1}
    """
    found: dict[int, int] = {}
    repeats = 0
    for trial in sorted(trials, key=lambda t: t.number):
        first = trial.system_attrs.get(FIRST)
        if first is None:
            found[trial.number] = trial.number - repeats
        else:
            repeats += 1
            found[trial.number] = found[first]
    return found


@dataclass(frozen=True)
class Evaluation:
    """One place of a search.

    Attributes
    ----------
    slot
        Its position in the search, from 0.
    widths
        The structure.
    values
        What the fitness returned, one number per objective; None where it failed.
    duplicate_of
        The slot whose value was taken, because the structure was the same; else None.
    failure
        Why there is no value, or None.
    seconds
        Time that the fitness took; 0 for a duplicate.
    """

    slot: int
    widths: Mapping[str, int]
    values: tuple[float, ...] | None
    duplicate_of: int | None = None
    failure: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    Attributes
    ----------
    name, storage
        Of the study; what another worker needs to join, besides a password. `storage` is empty for one that lives in
        memory.
    best
        Widths of the best structure; of several objectives, the one on the front that is best in the first.
    value
        Its first value.
    front
        The structures that no other beats in all objectives; with one objective, the best alone.
    history
        One evaluation per slot, in order.
    """

    name: str
    storage: str
    best: Mapping[str, int]
    value: float
    front: tuple[Evaluation, ...]
    history: tuple[Evaluation, ...]

    def __repr__(self) -> str:
        """Say how good the best structure is, among how many, and how wide its first groups are."""
        return (
            f"<SearchResult: value {self.value:.6g} in study {self.name!r}, best of "
            f"{plural(len(self.history), 'structure')}, {len(self.failed)} failed: {first_widths(self.best)}>"
        )

    @property
    def failed(self) -> tuple[Evaluation, ...]:
        """The evaluations without a value."""
        return tuple(e for e in self.history if e.values is None)


def evaluations(trials: Sequence[FrozenTrial]) -> list[Evaluation]:
    """Return what is settled, in order of the slots: of each slot the trial that ended with a value or a failure."""
    slot = slots(trials)
    found: dict[int, Evaluation] = {}
    for trial in sorted(trials, key=lambda t: t.number):
        facts: dict[str, Any] = trial.user_attrs
        complete = trial.state == TrialState.COMPLETE
        if not complete and (trial.state != TrialState.FAIL or FAILURE not in facts):
            continue
        twin = facts.get(DUPLICATE)
        found[slot[trial.number]] = Evaluation(
            slot[trial.number],
            facts.get(WIDTHS, trial.params),
            tuple(trial.values) if complete else None,
            None if twin is None else slot[twin],
            facts.get(FAILURE),
            facts.get(SECONDS, 0.0),
        )
    return [found[key] for key in sorted(found)]


def front(study: Study, done: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
    """Return the evaluations that no other beats, duplicates left out, the best in the first objective first."""
    signs = [1 if d == StudyDirection.MAXIMIZE else -1 for d in study.directions]
    scored = [(tuple(s * v for s, v in zip(signs, e.values, strict=True)), e) for e in done if e.values is not None]
    kept: list[tuple[tuple[float, ...], Evaluation]] = []
    for score, evaluation in sorted(scored, key=lambda pair: (*(-v for v in pair[0]), pair[1].slot)):
        if not any(all(a >= b for a, b in zip(other, score, strict=True)) for other, _ in kept):
            kept.append((score, evaluation))
    return tuple(evaluation for _, evaluation in kept)

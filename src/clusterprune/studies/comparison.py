"""All methods on one network, at one budget and with one training.

Every contender may train for the same number of epochs, on the same images, with the same learning rate schedule. What
it does in them is its own affair: one cut and then training (one-shot, the criteria), cuts and training by turns (ICP),
training while filters become identical (CP). A search that does not train (ACP's, by merging) is free, and its time is
in the record.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from clusterprune import evaluate
from clusterprune.data import Split
from clusterprune.errors import ArgumentError
from clusterprune.files.reading import ReadError, parse_yaml
from clusterprune.files.writing import read_record, write_json
from clusterprune.graph.images import silent
from clusterprune.methods._base import FINE_TUNING, Method
from clusterprune.methods._registry import COMPETITORS, find
from clusterprune.methods._work import ASKED_NAME, Network, Outcome, Report, Watch, Work, unwatched
from clusterprune.surgery import compact
from clusterprune.tasks import Task
from clusterprune.train import TrainConfig, here
from clusterprune.train.processes import join

PUBLISHED, OURS = "published", "ours"
"""Presets of a method that competes as its paper has it, or as ours."""
ENTRY_NAME = "entry.json"
COMPACT_NAME = "compact"
TRAINING = FINE_TUNING
"""Of every contender, unless another is given."""


@dataclass(frozen=True)
class Contender:
    """A method, and what differs from its settings in a comparison.

    Attributes
    ----------
    method
        A name, or a class in a file, as :func:`clusterprune.methods.find` takes it.
    changes
        Settings by name.
    """

    method: str
    changes: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def read(cls, text: str) -> "Contender":
        """Read ``"icp"`` or ``"icp:merge=drop:steps=1"``.

        Raises
        ------
        ArgumentError
            If there is no such method, or a change is not of the form name=value.
        """
        method, *changes = (part.strip() for part in text.split(":"))
        if method.endswith(".py") and changes:
            method = f"{method}:{changes.pop(0)}"
        elif method not in COMPETITORS:
            raise ArgumentError(
                f"methods={text!r} names no method; choose from {', '.join(COMPETITORS)}, or path/to/file.py:MyMethod"
            )
        pairs = [change.partition("=") for change in changes]
        if any(not (name and sign and value) for name, sign, value in pairs):
            raise ArgumentError(f"methods={text!r} is not of the form METHOD:NAME=VALUE:NAME=VALUE")
        try:
            return cls(method, tuple((name, parse_yaml(value)) for name, _, value in pairs))
        except ReadError as error:
            raise ArgumentError(f"methods={text!r} has a value that {error}") from error

    def __str__(self) -> str:
        """Return the text that reads as this."""
        return ":".join([self.method, *(f"{name}={value}" for name, value in self.changes)])


@dataclass(frozen=True)
class Entry:
    """How one contender did with one seed.

    Attributes
    ----------
    contender, seed
        Who.
    params, macs
        Of the compact network; multiply-adds for one image.
    accuracy_cut
        Percent of the test images right after the last cut, before the training that follows it; None where training
        comes first.
    accuracy
        Percent of the test images in the end.
    seconds
        Wall time of everything but the tests; None if the run was stopped and went on.
    """

    contender: str
    seed: int
    params: int
    macs: int
    accuracy_cut: float | None
    accuracy: float
    seconds: float | None


def method_of(
    contender: Contender, keep_macs: float, training: TrainConfig, *, published: bool = False
) -> tuple[Method, TrainConfig]:
    """Return a contender's method, and its last training, such that it trains as long as all others.

    A method that was published competes as ours, by the preset of that name, unless `published` or the contender's own
    `preset=published` asks for the paper's. The budget, in place of ε and rate, and the lengths of trainings are the
    comparison's either way.
    """
    kind = find(contender.method)
    settings: dict[str, Any] = {"keep_macs": keep_macs, **kind.within(training.epochs)}
    preset = PUBLISHED if is_published(contender, published=published) else OURS
    settings |= {"preset": preset} if preset in kind.presets else {}
    method = kind.read(settings | dict(contender.changes))
    return method, training.changed(epochs=method.last_epochs(training.epochs))


def is_published(contender: Contender, *, published: bool) -> bool:
    """Tell whether a contender competes as its paper has it, which its own preset or else the comparison says."""
    own = dict(contender.changes).get("preset")
    return PUBLISHED in find(contender.method).presets and (own == PUBLISHED or (own is None and published))


def label(contender: Contender, *, published: bool = False) -> str:
    """Return what a table calls a contender: of methods that a paper has published, whether this is the paper's.

    Examples
    --------
    >>> label(Contender.read("icp")), label(Contender.read("icp"), published=True), label(Contender.read("l1"))
    ('icp (ours)', 'icp (published)', 'l1')
    """
    if PUBLISHED not in find(contender.method).presets:
        return str(contender)
    return f"{contender} ({PUBLISHED if is_published(contender, published=published) else OURS})"


def compare(
    network: Network,
    task: Task,
    test: Split,
    contenders: Sequence[Contender],
    *,
    keep_macs: float,
    training: TrainConfig = TRAINING,
    published: bool = False,
    seeds: Sequence[int] = (0,),
    out: str | Path,
    report: Report | None = None,
    watch: Watch | None = None,
    done: Callable[[Entry], None] | None = None,
) -> list[Entry]:
    """Let methods compete, in several processes as in one. What is finished in `out` is not done again.

    Parameters
    ----------
    test
        Read at the end of every contender's run, for its entry alone.
    training
        Its number of epochs is that of every contender.
    published
        Whether methods compete as published, or as ours; see :func:`method_of`.
    out
        Folder; each contender and seed has a run folder of its own in it.
    report, watch
        As :class:`clusterprune.methods.Work` has them.
    done
        Called with every entry.

    Raises
    ------
    ArgumentError, BudgetError, TrainingError, OutputError
        As :meth:`clusterprune.methods.Method.run`, and when a folder was begun with other settings.
    """
    join(training)
    planned = [(one, *method_of(one, keep_macs, training, published=published)) for one in contenders]
    entries = []
    for seed in seeds:
        for contender, method, own in planned:
            method = method.looking_at(len(task.train))
            folder = _folder(out, contender, seed)
            work = Work(folder, own, seed, resume=True, report=report or silent, watch=watch or unwatched)
            entry = _run(network, task, test, str(contender), method, work)
            entries.append(entry)
            if done is not None:
                done(entry)
    return entries


def finished(out: str | Path, planned: Sequence[tuple[Contender, int]]) -> int:
    """Return how many of the planned runs, each a contender and a seed, are finished in a comparison's folder."""
    return sum((_folder(out, contender, seed) / ENTRY_NAME).exists() for contender, seed in planned)


def _folder(out: str | Path, contender: Contender, seed: int) -> Path:
    return Path(out) / str(contender).replace("/", "_") / f"seed-{seed}"


def _run(network: Network, task: Task, test: Split, name: str, method: Method, work: Work) -> Entry:
    path, processes = work.place / ENTRY_NAME, here()
    began_before = processes.once((work.place / ASKED_NAME).exists)
    work.begin(method.asked(network, task, work))
    if not processes.once(path.exists):
        began = time.perf_counter()
        made = method.run(network, task, work)
        seconds = None if began_before else round(time.perf_counter() - began, 1)
        processes.once(lambda: _write_entry(path, network, task, test, name, made, work.seed, seconds))
    return read_record(path, Entry)


def _write_entry(
    path: Path, network: Network, task: Task, test: Split, name: str, made: Outcome, seed: int, seconds: float | None
) -> None:
    """Measure what was made, and put it into its contender's folder."""

    def accuracy(model: nn.Module) -> float:
        return evaluate.metrics(model, task, test).deciding

    cut = None if made.cut is None else accuracy(made.cut)
    size = evaluate.params(made.model), evaluate.macs(made.model, network.example)
    entry = Entry(name, seed, *size, cut, accuracy(made.model), seconds)
    if not (path.parent / COMPACT_NAME).exists():
        compact.save(made.model, path.parent / COMPACT_NAME)
    write_json(path, asdict(entry))

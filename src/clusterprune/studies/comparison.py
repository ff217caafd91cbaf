"""All methods on one network, at one budget and with one training.

Every contender may train for the same number of epochs, on the same images, with the same learning rate schedule. What
it does in them is its own affair: one cut and then training (one-shot, the criteria), cuts and training by turns (ICP),
training while filters become identical (CP). A search that does not train (ACP's, by merging) is free, and its time is
in the record.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from clusterprune import evaluate
from clusterprune.data import Split
from clusterprune.errors import ArgumentError, OutputError
from clusterprune.files.reading import ReadError, parse_yaml
from clusterprune.files.writing import begun_with, read_record, write_json
from clusterprune.methods.pipeline import Report, Task, Watch, compress
from clusterprune.methods.settings import METHODS, PRESET, PRESETS
from clusterprune.methods.trainings import FINE_TUNING
from clusterprune.surgery import compact
from clusterprune.train import TrainConfig

ASKED_NAME = "asked.json"
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
        One of :data:`clusterprune.methods.settings.METHODS`.
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
        if method not in METHODS:
            raise ArgumentError(f"methods={text!r} names no method; choose from {', '.join(METHODS)}")
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


def settings_of(
    contender: Contender, keep_macs: float, training: TrainConfig, *, published: bool = False
) -> tuple[dict[str, Any], TrainConfig]:
    """Return a contender's settings, and its last training, such that it trains as long as all others.

    ICP, ACP and CP are ours, unless `published` or a contender's own `preset=published` asks for the papers'. Ours of
    ICP and ACP cut as the one-shot compressor does; ours of CP replaces its filters early, and leaves them together, so
    that most of a short training is for recovering. As published, ICP and ACP cut the inner layers by clusters and drop
    the smallest norms, ACP's candidates train, and its last training begins anew; CP trains from random weights without
    the batch norms of its layers. The budget, in place of ε and rate, and the lengths of trainings are the comparison's
    either way.
    """
    settings: dict[str, Any] = {"keep_macs": keep_macs}
    published = is_published(contender, published=published)
    if contender.method == "icp":
        settings |= {"steps": 3, "epochs_between": max(1, training.epochs // 5)}
    if contender.method == "acp":
        settings |= {"equal_macs": False}
    if published:
        settings |= {PRESET: "published"}
    elif contender.method == "icp":
        settings |= {"by": "oneshot", "layers": "all", "samples": 1024, "carry_momentum": True}
    elif contender.method == "acp":
        settings |= {"by": "oneshot", "layers": "all", "samples": 1024, "fitness": "merge", "merge": "refit"}
        settings |= {"candidates_inherit": True, "retraining_inherits": True, "velocity_max": None}
    elif contender.method == "cp":
        settings |= {"curvature": 20.0, "mean_of": "replaced"}
    settings |= dict(contender.changes)
    if contender.method == "icp":
        last = training.epochs - (settings["steps"] - 1) * settings["epochs_between"]
        if last < 1:
            raise ArgumentError(
                f"epochs={training.epochs} are too few for {contender} with steps={settings['steps']} and "
                f"epochs_between={settings['epochs_between']}; give more epochs, or fewer steps"
            )
        training = TrainConfig(**{**training.model_dump(), "epochs": last})
    return settings, training


def is_published(contender: Contender, *, published: bool) -> bool:
    """Tell whether a contender competes as its paper has it, which its own preset or else the comparison says."""
    return contender.method in PRESETS and (dict(contender.changes).get(PRESET) == "published" or published)


def label(contender: Contender, *, published: bool = False) -> str:
    """Return what a table calls a contender: of methods that a paper has published, whether this is the paper's.

    Examples
    --------
    >>> label(Contender.read("icp")), label(Contender.read("icp"), published=True), label(Contender.read("l1"))
    ('icp (ours)', 'icp (published)', 'l1')
    """
    if contender.method not in PRESETS:
        return str(contender)
    return f"{contender} ({'published' if is_published(contender, published=published) else 'ours'})"


def compare(
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
    """Let methods compete. What is finished in `out` is not done again.

    Parameters
    ----------
    test
        Read at the end of every contender's run, for its entry alone.
    training
        Its number of epochs is that of every contender.
    published
        Whether ICP, ACP and CP compete as published, or as ours; see :func:`settings_of`.
    out
        Folder; each contender and seed has a run folder of its own in it.
    report, watch
        As :func:`clusterprune.methods.pipeline.compress`.
    done
        Called with every entry.

    Raises
    ------
    ArgumentError, BudgetError, TrainingError, OutputError
        As :func:`clusterprune.methods.pipeline.compress`, and when a folder was begun with other settings.
    """
    planned = [(one, *settings_of(one, keep_macs, training, published=published)) for one in contenders]
    entries = []
    for seed in seeds:
        for contender, settings, own in planned:
            folder = _folder(out, contender, seed)
            entry = _run(task, test, contender, settings, own, seed, folder, report, watch)
            entries.append(entry)
            if done is not None:
                done(entry)
    return entries


def finished(out: str | Path, planned: Sequence[tuple[Contender, int]]) -> int:
    """Return how many of the planned runs, each a contender and a seed, are finished in a comparison's folder."""
    return sum((_folder(out, contender, seed) / ENTRY_NAME).exists() for contender, seed in planned)


def _folder(out: str | Path, contender: Contender, seed: int) -> Path:
    return Path(out) / str(contender).replace("/", "_") / f"seed-{seed}"


def _run(
    task: Task,
    test: Split,
    contender: Contender,
    settings: Mapping[str, Any],
    training: TrainConfig,
    seed: int,
    folder: Path,
    report: Report | None,
    watch: Watch | None,
) -> Entry:
    path = folder / ENTRY_NAME
    began_before = _same(folder / ASKED_NAME, settings, training, seed)
    if path.exists():
        return read_record(path, Entry)
    began = time.perf_counter()
    made = compress(
        task, contender.method, settings, training=training, seed=seed, out=folder, report=report, watch=watch
    )
    seconds = None if began_before else round(time.perf_counter() - began, 1)

    def accuracy(model: nn.Module) -> float:
        return evaluate.metrics(model, task.purpose, test).deciding

    cut = None if made.cut is None else accuracy(made.cut)
    size = evaluate.params(made.model), evaluate.macs(made.model, task.example)
    entry = Entry(str(contender), seed, *size, cut, accuracy(made.model), seconds)
    if not (folder / COMPACT_NAME).exists():
        compact.save(made.model, folder / COMPACT_NAME)
    write_json(path, asdict(entry))
    return entry


def _same(path: Path, settings: Mapping[str, Any], training: TrainConfig, seed: int) -> bool:
    """Note what is asked for in a run folder; if that was done before, compare, and return True."""
    asked = {"settings": dict(settings), "training": training.model_dump(mode="json"), "seed": seed}
    found = begun_with(path, asked)
    if found is None:
        return False
    before, now = found
    if differ := [name for name in now if now[name] != before.get(name)]:
        raise OutputError(
            f"{path.parent} was begun with other {' and '.join(differ)}; compare in another folder, or remove it"
        )
    return True

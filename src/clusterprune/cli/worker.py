"""``clusterprune worker``: take part in the search of a run of ``compress``, from any process or machine."""

# ruff: noqa: ARG001  (`debug` is read by the wrapper)

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from clusterprune.cli import options
from clusterprune.cli.absolute import absolute_storage
from clusterprune.cli.command import command, explain_stop
from clusterprune.cli.console import duration, show
from clusterprune.cli.job import Job
from clusterprune.cli.opening import open_task, require
from clusterprune.cli.progress import Display
from clusterprune.cli.settings import usual
from clusterprune.cli.trusting import check_named
from clusterprune.errors import ArgumentError
from clusterprune.files.credentials import without_password
from clusterprune.methods import Work, find
from clusterprune.runs import Timeline
from clusterprune.search import StudyHeader, study_header
from clusterprune.train import TrainConfig
from clusterprune.train.config import resolve_device

EXAMPLES = """[bold]Examples[/bold]

clusterprune compress --model resnet56 --weights W --data cifar10:DIR --method acp --eps 0.035 \\
    --storage postgresql://host/searches --study mine --out runs/acp

clusterprune worker --storage postgresql://host/searches --study mine

clusterprune worker --storage runs/acp/search.db --device cuda:1
"""
_POLL = 1.0
_SAME_PATHS = "the one that the run was begun with"


@command(EXAMPLES)
def worker(
    *,
    storage: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Where the search is kept: a file, sqlite:///… or postgresql://…",
            rich_help_panel="Search",
            show_default=False,
        ),
    ],
    study: Annotated[str, typer.Option(metavar="NAME", help="Name of the search.", rich_help_panel="Search")] = usual(
        "study"
    ),
    timeout: Annotated[
        float,
        typer.Option(
            min=0.0, metavar="MINUTES", help="Wait so long for the search to begin.", rich_help_panel="Search"
        ),
    ] = 10.0,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="The data, where it lies elsewhere on this machine.",
            rich_help_panel="Paths",
            show_default=_SAME_PATHS,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The weights, where they lie elsewhere on this machine.",
            rich_help_panel="Paths",
            show_default=_SAME_PATHS,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The model, where its file lies elsewhere on this machine.",
            rich_help_panel="Paths",
            show_default=_SAME_PATHS,
        ),
    ] = None,
    trust: options.Trust = None,
    device: options.Device = None,
    debug: options.Debug = False,
) -> None:
    """Wait for the search, check that this is the same network and data, and work until it is over."""
    here = {"model": model, "weights": weights, "data": data}
    url = absolute_storage(without_password(storage))
    explain_stop(lambda: "The search goes on without this worker; give the same command to join again.")
    with Display() as display:
        header = _wait(url, study, 60 * timeout, display)
        done, best = _work(url, study, header, here, trust, device, display)
    over = f"The search is over. This worker evaluated {done} structures; the best of all has {best:.2f} %."
    show({"evaluated": done, "best": best}, over)


def _wait(url: str, study: str, seconds: float, display: Display) -> StudyHeader:
    """Return the search, as soon as there is one."""
    until = time.monotonic() + seconds
    told = False
    while (found := study_header(url, study)) is None:
        left = until - time.monotonic()
        if left <= 0:
            raise ArgumentError(
                f"there is no search study={study!r} in this storage after {seconds / 60:g} minutes; begin it with "
                "'clusterprune compress --storage … --study …', or wait longer with --timeout"
            )
        if not told:
            display.line(f"Waiting for the search {study!r} to begin, up to {seconds / 60:g} minutes.", "dim")
            told = True
        time.sleep(min(_POLL, left))
    return found


def _work(
    url: str,
    study: str,
    header: StudyHeader,
    here: dict[str, Any],
    trust: list[str] | None,
    device: str | None,
    display: Display,
) -> tuple[int, float]:
    """Evaluate structures until the search is over; return how many, and the fitness of the best."""
    job = Job.read(header.about, f"study={study!r}")
    check_named(
        here["model"] or job.model, {} if job.code is None else {"code": job.code.to_dict()}, f"the study {study!r}",
        trust, named=here["model"] is not None, remedy="Take the file that the run was begun with, or begin a new run.",
    )  # fmt: skip
    training = TrainConfig(**{**job.training, "device": device})
    with Timeline(display).phase("open data and model"):
        given = {name: value for name, value in here.items() if value is not None}
        opened = open_task({**job.model_dump(), **given}, resolve_device(training), tell=display.line)
        network, task = opened.network, require(opened.task, "data", "the search was begun with some; give --data")
        job.check(network, task)
    evaluated = 0

    def show(structure: Any, done: int, total: int) -> None:
        nonlocal evaluated
        evaluated += structure.duplicate_of is None
        widths = " ".join(str(width) for width in structure.widths.values())
        if structure.values is None:
            display.line(f"structure {structure.slot + 1} of {total}: {widths}  failed: {structure.failure}", "yellow")
        else:
            took = "known" if structure.duplicate_of is not None else duration(structure.seconds)
            display.line(f"structure {structure.slot + 1} of {total}: {widths}  {structure.values[0]:.2f} %  {took}")
        display("structures", done, total)

    method = find(job.method).read({**job.settings, "storage": url, "study": study})
    found = method.join(
        network, task, Work(None, training, job.seed, report=display), start=header.start, progress=show
    )
    return evaluated, found.value

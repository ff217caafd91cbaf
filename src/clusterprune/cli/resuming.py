"""Runs that can be stopped: whose folder it is, what a resume may change, what a stop says, what a failure leaves."""

import shlex
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from clusterprune import runs
from clusterprune.cli.absolute import absolute
from clusterprune.cli.command import NOTHING_WRITTEN, explain_stop
from clusterprune.cli.presets import given
from clusterprune.cli.trusting import trust_option, trust_option_of
from clusterprune.errors import ArgumentError
from clusterprune.files.credentials import without_passwords
from clusterprune.files.locking import locked
from clusterprune.files.writing import sweep, sweep_beside
from clusterprune.methods._work import ASKED_NAME
from clusterprune.runs import CONFIG_NAME, RESULT_NAME, read_config
from clusterprune.train import checkpoint, here

# Beside what fit() lets go: a moved folder of images is the same data, or its fingerprint will tell.
MAY_CHANGE = frozenset({"data", "device", "latency_batch", "memory_limit", "runtime", "tensorboard"})


NOTHING_YET = frozenset({CONFIG_NAME, ASKED_NAME})
"""What a run writes before anything is finished."""


@contextmanager
def own_folder(out: Path, *, resume: bool) -> Iterator[Path]:
    """Yield a run's folder, kept for this run alone; what a killed process has left half-written is swept away.

    Raises
    ------
    OutputError
        If another process works there, or the folder of a new run is not empty or cannot be made.
    """
    with here().held(_own(out, resume=resume)):
        yield out.expanduser()


@contextmanager
def _own(out: Path, *, resume: bool) -> Iterator[Path]:
    """Keep a run's folder for this process."""
    folder = out.expanduser() if resume else runs.check_out(out)
    with locked(folder):
        if not resume:
            runs.check_out(out)  # another may have been faster
        sweep_beside(folder)
        sweep(folder)
        try:
            yield folder
        except BaseException:
            if not resume:
                tidy(folder)
            raise


def will_go_on(command: str, folder: Path, done: Callable[[], str], model: str | None = None) -> None:
    """From now on, let Ctrl-C say what is on disk, and the command to go on with.

    Parameters
    ----------
    done
        Says what is done and on disk.
    model
        The run's; None reads it from the folder.
    """

    def explain() -> str:
        if (folder / RESULT_NAME).exists():
            return f"All was done by then: {folder} is finished."
        if not (folder / CONFIG_NAME).exists():
            return NOTHING_WRITTEN
        trust = trust_option_of(folder) if model is None else trust_option(model)
        return f"{done()} Go on with:\n  clusterprune {command} --out {shlex.quote(str(folder))} --resume{trust}"

    explain_stop(explain)


def epochs_on_disk(folder: Path, phase: str = "") -> str:
    """Say how far the training is that was saved last in a run's folder.

    Parameters
    ----------
    phase
        Its name, where a run has several.
    """
    found = sorted(folder.rglob(checkpoint.FILE_NAME), key=lambda path: path.stat().st_mtime_ns)
    reached = checkpoint.progress_of(found[-1]) if found else None
    if reached is None:
        return "What is finished is on disk."
    epoch, step, epochs = reached
    of = f" of this phase ({phase})" if phase else ""
    inside = f", and {step} steps of the next" if step else ""
    return f"{epoch} of {epochs} epochs{of} are done and on disk{inside}."


def check_same(
    context: typer.Context, folder: Path, wanted: dict[str, Any], may_change: Collection[str] = MAY_CHANGE
) -> None:
    """Refuse options on the command line that contradict the run being resumed.

    Raises
    ------
    ArgumentError
        If there are any.
    """
    before = absolute(without_passwords(read_config(folder / CONFIG_NAME)))
    wanted = absolute(wanted)
    different = [
        f"{name}={wanted[name]!r} (the run has {before.get(name)!r})"
        for name in wanted
        if name not in may_change and given(context, name) and wanted[name] != before.get(name)
    ]
    if different:
        raise ArgumentError(
            f"--resume with other options than the run in {folder}: {', '.join(different)}; leave them out, or "
            "choose another folder"
        )


def tidy(folder: Path) -> None:
    """Remove what a run that has finished nothing leaves, so that the corrected command may use the folder."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if CONFIG_NAME in names and names <= NOTHING_YET:
        shutil.rmtree(folder)

"""Runs that can be stopped: what a resume may change, what a stop says, what a failed beginning leaves."""

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

import typer

from clusterprune.cli.command import Stopped
from clusterprune.cli.presets import given
from clusterprune.cli.trusting import trust_option, trust_option_of

# Beside what fit() lets go: a moved folder of images is the same data, or its fingerprint will tell.
MAY_CHANGE = frozenset({"data", "device", "latency_batch"})


def check_same(
    context: typer.Context, folder: Path, wanted: dict[str, Any], may_change: Collection[str] = MAY_CHANGE
) -> None:
    """Refuse options on the command line that contradict the run being resumed.

    Raises
    ------
    ArgumentError
        If there are any.
    """
    from clusterprune.cli.opening import absolute
    from clusterprune.errors import ArgumentError
    from clusterprune.run import CONFIG_NAME, read_config

    before, wanted = absolute(read_config(folder / CONFIG_NAME)), absolute(wanted)
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
    """Remove the options of a run that never began, so that the corrected command may use the folder."""
    from clusterprune.run import CONFIG_NAME

    if [path.name for path in folder.iterdir()] == [CONFIG_NAME]:
        (folder / CONFIG_NAME).unlink()
        folder.rmdir()


def stopped(command: str, folder: Path, done: str, model: str | None = None) -> Stopped:
    """Return what Ctrl-C ends with: what is done, and the command to go on with.

    Parameters
    ----------
    model
        The run's; None reads it from the folder.
    """
    trust = trust_option_of(folder) if model is None else trust_option(model)
    go_on = f"clusterprune {command} --out {shlex.quote(str(folder))} --resume{trust}"
    return Stopped(f"{done} Go on with:\n  {go_on}")

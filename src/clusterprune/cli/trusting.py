"""Whose code a command runs: only that of files which the command itself names."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from clusterprune.cli.presets import given, preset_file

CODE = "code"
"""Entry of ``config.yaml``: what the model's own Python file was when the run began."""

AS_BEFORE = "Put back the file as it was, or begin a new run in another folder."


def check_code(context: typer.Context, model: str, trust: str | None, *, resume: bool = False) -> None:
    """Refuse to run a model's file that this command does not name, or that is not the one a run began with.

    Parameters
    ----------
    model
        The option, from the command or from a file of options.
    resume
        The run goes on: even a file that the command names has to be the one that the run began with.

    Raises
    ------
    UntrustedCodeError
        If it may not be run.
    """
    preset = preset_file(context)
    if preset is None:
        return
    file, content = preset
    named = given(context, "model")
    if named and not resume:
        return
    check_model(model, content, str(file), trust, named=named, remedy=AS_BEFORE if resume else _as_now(model))


def check_model(
    model: str, content: Mapping[str, Any], source: str, trust: str | None, *, named: bool, remedy: str
) -> None:
    """Refuse a model's file that is not named, or that is not the one whose digest stands in a run's options."""
    if not named:
        allow(model, named_by=source, trust=trust)
    compare_code(model, content, source, remedy)


def allow(model: str, *, named_by: str, trust: str | None) -> None:
    """Refuse to run a file that the command does not name: :func:`clusterprune.models.code.allow`."""
    from clusterprune.models import code

    code.allow(model, named_by=named_by, trust=trust)


def compare_code(model: str, content: Mapping[str, Any], source: str, remedy: str) -> None:
    """Refuse a model's file whose digest is not the one in a run's options, where they have one."""
    from clusterprune.models.code import CodeDigest, check_unchanged

    if content.get(CODE) is not None:
        check_unchanged(model, CodeDigest.read(content[CODE], source), named_by=source, remedy=remedy)


def note_code(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``config.yaml`` says of the model's own file, once the model was built."""
    from clusterprune.models.code import digest_of_code

    digest = digest_of_code(wanted["model"])
    return {} if digest is None else {CODE: digest.to_dict()}


def trust_option(model: Any) -> str:
    """Return the option, with a space before it, that a command needs to go on with a run of this model."""
    from clusterprune.models.code import file_of

    file = file_of(model)
    return "" if file is None else f" --trust {shlex.quote(str(file))}"


def trust_option_of(folder: Path) -> str:
    """Return the same for the run in a folder."""
    from clusterprune.errors import ClusterpruneError
    from clusterprune.runs import CONFIG_NAME, read_config

    try:
        return trust_option(read_config(folder / CONFIG_NAME).get("model"))
    except ClusterpruneError:
        return ""  # the command to go on will say what is wrong with the folder


def _as_now(model: str) -> str:
    return f"Put back the file as it was; or, to take it as it is now, name it: --model {shlex.quote(model)}"

"""Whose code a command runs: only that of files which the command itself names."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from clusterprune.cli.presets import given, preset_file
from clusterprune.errors import ClusterpruneError
from clusterprune.models import code
from clusterprune.models.code import CodeDigest, check_unchanged, digest_of_code
from clusterprune.runs import CONFIG_NAME, read_config

CODE = "code"
"""Entry of ``config.yaml``: what the model's own Python file was when the run began."""
METHOD_CODE = "method_code"
"""The same of the files of methods, by their path."""

AS_BEFORE = "Put back the file as it was, or begin a new run in another folder."


def check_code(
    context: typer.Context, wanted: Mapping[str, Any], trust: Sequence[str] | None, *, resume: bool = False
) -> None:
    """Refuse to run files of models or methods that this command does not name, or that a run did not begin with.

    Parameters
    ----------
    wanted
        The options, from the command or from a file of options: `model`, and where there are any `method` or `methods`.
    resume
        The run goes on: even a file that the command names has to be the one that the run began with.

    Raises
    ------
    UntrustedCodeError
        If one may not be run.
    """
    preset = preset_file(context)
    if preset is None:
        return
    file, content = preset
    for option in ("model", "method", "methods"):
        named = given(context, option)
        for name in [] if named and not resume else files_among(wanted.get(option)):
            remedy = AS_BEFORE if resume else _as_now(option, str(wanted[option]))
            check_named(name, _of(content, name, option), str(file), trust, named=named, remedy=remedy, what=option)


def files_among(option: Any) -> list[str]:
    """Return the names in an option that resolve by running a file: ``path/to/file.py:name``, several with commas."""
    return [f"{file}:{name}" for file, name in re.findall(r"([^,]+\.py):(\w+)", str(option or ""))]


def _of(content: Mapping[str, Any], name: str, option: str) -> Mapping[str, Any]:
    """Return what a run's options say of a file, as `CODE`."""
    if option == "model":
        return content
    several = content.get(METHOD_CODE)
    return {CODE: several.get(str(code.file_of(name)))} if isinstance(several, Mapping) else {}


def check_named(
    name: str, content: Mapping[str, Any], source: str, trust: Sequence[str] | None, *, named: bool, remedy: str,
    what: str = "model",
) -> None:  # fmt: skip
    """Refuse a file that is not named, or that is not the one whose digest stands in a run's options."""
    if not named:
        allow(name, named_by=source, trust=trust, what=what)
    compare_code(name, content, source, remedy)


def allow(name: str, *, named_by: str, trust: Sequence[str] | None, what: str = "model") -> None:
    """Refuse to run a file that the command does not name: :func:`clusterprune.models.code.allow`."""
    code.allow(name, named_by=named_by, trust=trusted(name, trust), what=what)


def trusted(name: str, trust: Sequence[str] | None) -> str | None:
    """Return which of the files that a command trusts is a model's or method's; or else any, which says more."""
    file = code.file_of(name)
    own = [one for one in trust or () if file is not None and Path(one.partition("@")[0]).name == file.name]
    return next(iter([*own, *(trust or ())]), None)


def compare_code(name: str, content: Mapping[str, Any], source: str, remedy: str) -> None:
    """Refuse a file whose digest is not the one in a run's options, where they have one."""
    if content.get(CODE) is not None:
        check_unchanged(name, CodeDigest.read(content[CODE], source), named_by=source, remedy=remedy)


def note_code(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``config.yaml`` says of the files of model and methods, once they were run."""
    digest = digest_of_code(wanted["model"])
    found = {} if digest is None else {CODE: digest.to_dict()}
    names = [name for option in ("method", "methods") for name in files_among(wanted.get(option))]
    methods = {str(code.file_of(name)): digest_of_code(name) for name in names}
    several = {name: digest.to_dict() for name, digest in methods.items() if digest is not None}
    return found | ({METHOD_CODE: several} if several else {})


def trust_option(*names: Any) -> str:
    """Return the options, each with a space before it, that a command needs to go on with these models and methods."""
    files = dict.fromkeys(code.file_of(name) for name in names)
    return "".join(f" --trust {shlex.quote(str(file))}" for file in files if file is not None)


def trust_option_of(folder: Path) -> str:
    """Return the same for the run in a folder."""
    try:
        config = read_config(folder / CONFIG_NAME)
    except ClusterpruneError:
        return ""  # the command to go on will say what is wrong with the folder
    return trust_option(config.get("model"), *files_among(config.get("method")), *files_among(config.get("methods")))


def _as_now(option: str, value: str) -> str:
    return f"Put back the file as it was; or, to take it as it is now, name it: --{option} {shlex.quote(value)}"

"""Options that come from a file: ``--config FILE``, and ``train --resume`` from the run's own folder."""

from pathlib import Path
from typing import Any

import typer

from clusterprune.errors import ArgumentError, ClusterpruneError
from clusterprune.files.credentials import without_passwords
from clusterprune.runs import read_config

# What a file never decides: where to write, and what belongs to one call alone.
_ONCE = frozenset({"out", "resume", "config", "debug", "as_json", "quiet", "dry_run", "trust"})
# What a file says beside options.
_BESIDE = ("clusterprune", "command", "code", "method_code")
_META = "clusterprune.presets"
_CONFIG = "config.yaml"


def use_config(context: typer.Context, value: Path | None) -> Path | None:
    """Take the options that the user did not give from a file (callback of an eager option)."""
    if value is not None and not context.resilient_parsing:
        _preset(context, Path(value))
    return value


def remember_out(context: typer.Context, value: Path | None) -> Path | None:
    """Note the run folder, and read its options if it is to be resumed (callback of an eager option)."""
    return _remember(context, "out", value)


def remember_resume(context: typer.Context, value: bool) -> bool:
    """Note that a run is to be resumed, and read its options if its folder is known (callback, eager)."""
    return _remember(context, "resume", value)


def chosen(context: typer.Context) -> dict[str, Any]:
    """Return all options that decide what a run does, by name, in the order of the help; passwords are taken out."""
    names = [parameter.name for parameter in context.command.params]
    for name in names:
        _check_text(name, context.params.get(name))
    return {
        name: without_passwords(context.params[name]) for name in names if name in context.params and name not in _ONCE
    }


def _check_text(name: str | None, value: Any) -> None:
    """Refuse what a run's options cannot keep: a name of a file that is no Unicode.

    Raises
    ------
    ArgumentError
        If the value is one; `--out` may be, for no file repeats it.
    """
    if name in _ONCE or isinstance(value, int | float | None):
        return
    for text in value if isinstance(value, list | tuple) else (value,):
        try:
            str(text).encode()
        except UnicodeEncodeError:
            raise ArgumentError(
                f"{name}={str(text)!a} is not UTF-8, so that the run's {_CONFIG} cannot hold it; rename the file, or "
                "name a link to it"
            ) from None


def given(context: typer.Context, name: str) -> bool:
    """Tell whether the user wrote an option on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def preset_file(context: typer.Context) -> tuple[Path, dict[str, Any]] | None:
    """Return the file of options that was read, and its whole content; None where there was none."""
    return context.meta.get(_META, {}).get("file")


def _remember(context: typer.Context, name: str, value: Any) -> Any:
    known = context.meta.setdefault(_META, {})
    known[name] = value
    if known.get("out") is not None and known.get("resume") and not context.resilient_parsing:
        file = Path(known["out"]).expanduser() / _CONFIG
        if not file.is_file():
            raise typer.BadParameter(
                f"{known['out']} holds no run to resume (there is no {file}). Check --out, or leave --resume out."
            )
        _preset(context, file)
    return value


def _preset(context: typer.Context, file: Path) -> None:

    try:
        content = read_config(file)
    except ClusterpruneError as error:
        raise typer.BadParameter(str(error)) from None
    context.meta.setdefault(_META, {})["file"] = file, dict(content)
    command = content.get("command", context.info_name)
    for name in _BESIDE:
        content.pop(name, None)
    if command != context.info_name:
        raise typer.BadParameter(f"{file} is of 'clusterprune {command}', not of 'clusterprune {context.info_name}'.")
    options = {parameter.name: parameter for parameter in context.command.params if parameter.name not in _ONCE}
    unknown = sorted(str(name) for name in content.keys() - options.keys())
    if unknown:
        raise typer.BadParameter(f"{file} has unknown options: {', '.join(unknown)}. Known: {', '.join(options)}.")
    found = {}
    for name, value in content.items():
        if isinstance(value, list) and not getattr(options[name], "multiple", False):
            value = ",".join(str(item) for item in value)
        if value is not None:
            found[name] = value
    context.default_map = {**(context.default_map or {}), **found}

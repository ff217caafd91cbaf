"""The options of the command line that are settings of methods: read off the methods' own fields."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from clusterprune.cli.presets import given
from clusterprune.errors import ArgumentError
from clusterprune.files.reading import ReadError, parse_yaml
from clusterprune.methods import METHODS, find
from clusterprune.methods._settings import BUDGET, default_of, descriptions, settings_of
from clusterprune.methods.budget import KEEP, read_fraction


def _fields() -> dict[str, dict[str, tuple[type[Any], Field[Any]]]]:
    """Return the fields that are options, by name and method, with their classes."""
    found: dict[str, dict[str, tuple[type[Any], Field[Any]]]] = {}
    for name in METHODS:
        method = find(name)
        for kind in (method, *(each for kinds in method.parts.values() for each in kinds.values())):
            for one in settings_of(kind):
                if "metavar" in one.metadata:
                    found.setdefault(one.name, {}).setdefault(name, (kind, one))
    return found


FIELDS = _fields()
SHARES = tuple(name for name in KEEP if name in FIELDS)
"""Options that take a share as a text too, such as 60%."""


def usual(name: str) -> Any:
    """Return the default of a setting that is an option."""
    return next(default_of(one) for _, one in FIELDS[name].values())


def _parameter(name: str, of: Mapping[str, tuple[type[Any], Field[Any]]]) -> inspect.Parameter:
    """Return the parameter of one option: without a default, for every method has its own."""
    kind, one = next(iter(of.values()))
    hint = get_type_hints(kind)[name]
    plain = next((each for each in get_args(hint) if each is not type(None)), hint) if get_origin(hint) else hint
    default, text = default_of(one), descriptions(kind)[name]
    if len(of) < len(METHODS):
        others = [method for method in METHODS if method not in of]
        text += f" Not for {', '.join(others)}." if len(others) < len(of) else f" For {', '.join(of)}."
    either = any(get_origin(each) is Literal for each in get_args(hint))
    plain = str if name in SHARES or either else plain
    option = typer.Option(
        *(one.metadata["names"] or (f"--{name.replace('_', '-')}",)),
        metavar=one.metadata["metavar"] or None,
        help=text,
        rich_help_panel=one.metadata["panel"],
        show_default=str(default) if default else False,
        parser=_number_or_text if either else None,
    )
    annotation: Any = list[str] | None if isinstance(default, tuple) else plain | None
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, option]
    )


def _number_or_text(text: str) -> int | str:
    """Read the value of a setting that is a number or a word, such as 8 or auto."""
    return int(text) if text.isdigit() else text


def with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the settings of all methods as options, in the place of its ``**settings``."""
    before = inspect.signature(function, eval_str=True)
    after: list[inspect.Parameter] = []
    for parameter in before.parameters.values():
        if parameter.name == "data":  # the budget stands behind the model in the help
            after += [_parameter(name, of) for name, of in FIELDS.items()]
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            after.append(parameter)
    function.__signature__ = before.replace(parameters=after)  # type: ignore[attr-defined]
    return function


def settle_budget(context: typer.Context, wanted: dict[str, Any]) -> None:
    """Read shares, and let a budget on the command line take the place of the one in a file, in place."""
    budgets = [name for name, of in FIELDS.items() for _, one in of.values() if one.metadata["panel"] == BUDGET]
    if any(given(context, name) for name in budgets):
        wanted |= {name: None for name in budgets if not given(context, name)}
    for name in SHARES:
        if wanted[name] is not None:
            shares = [read_fraction(name, part) for part in str(wanted[name]).split(",")]
            wanted[name] = shares[0] if len(shares) == 1 else ",".join(f"{share:g}" for share in shares)


def several_budgets(wanted: Mapping[str, Any]) -> list[dict[str, float]]:
    """Return the budgets that are asked for at once, each as an option with its value; one of them is none.

    Raises
    ------
    ArgumentError
        If more than one option has several, or one has a budget twice.
    """
    several = {name: wanted[name] for name in SHARES if isinstance(wanted[name], str)}
    if len(several) > 1:
        raise ArgumentError(f"{' and '.join(several)} each have several shares; give several of one alone")
    found = [{name: float(part)} for name, text in several.items() for part in text.split(",")]
    if len({str(one) for one in found}) < len(found):
        raise ArgumentError(f"{next(iter(several))}={next(iter(several.values()))} has a share twice; leave one out")
    return found


def read_options(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the method among the options, as plain values, those of ``--set`` included.

    Raises
    ------
    ArgumentError
        If a ``--set`` is not of the form NAME=VALUE, or names what has an option or was set before.
    """
    return read_set(wanted["set"], {name: wanted[name] for name in FIELDS if wanted[name] not in (None, [], ())})


def read_set(texts: Sequence[str] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given with what ``--set`` adds, as plain values.

    Raises
    ------
    ArgumentError
        If a text is not of the form NAME=VALUE, or names what is given already.
    """
    found = dict(given)
    for text in texts or ():
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise ArgumentError(f"set={text!r} is not of the form NAME=VALUE, such as --set merging=refit")
        if name in found:
            raise ArgumentError(f"{name} is given twice, as {found[name]!r} and in --set {text}; leave one out")
        try:
            found[name] = parse_yaml(value)
        except ReadError as error:
            raise ArgumentError(f"set={text!r} has a value that {error}") from None
    return found

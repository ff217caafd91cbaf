# pyright: reportUnknownArgumentType=false
"""From plain values, as a recipe or a command line has them, to settings; and what settings say about themselves.

A setting is written down once: as a field of a frozen dataclass, with its default, its type, and its sentence under
"Attributes". Options, ``--set``, recipes and the tables of the docs are read off these.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, TypeVar, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError

from clusterprune import clustering
from clusterprune.arguments import shown
from clusterprune.clustering import Clustering
from clusterprune.errors import ArgumentError

Settings = TypeVar("Settings")

PRESET = "preset"
"""Stands for several settings, by a name that the method's class gives them."""
BY = "by"
"""In the nested form of a part, which of its kinds it is."""
BUDGET = "Budget"
"""Heading of the options that say how much is kept."""
LARGEST = 2**31 - 1
"""More than any number of epochs, images, clusters or channels; what counts them does not count further."""


def option(default: Any, metavar: str = "", *names: str, panel: str = "Method") -> Any:
    """Return a field that is an option of the command line too, beside ``--set``.

    Parameters
    ----------
    metavar
        What stands for its value in the help; empty for a switch.
    names
        How it is written, where otherwise than the field.
    panel
        Heading in the help.
    """
    return field(default=default, metadata={"metavar": metavar, "names": names, "panel": panel})


def fixed(default: Any) -> Any:
    """Return a field that plain values do not set: it belongs to the class."""
    return field(default=default, metadata={"fixed": True})


def settings_of(kind: type[Any]) -> list[Field[Any]]:
    """Return the fields of a class of settings that plain values set, in their order."""
    return [one for one in fields(kind) if not one.metadata.get("fixed")]


def default_of(one: Field[Any]) -> Any:
    """Return the default of a field."""
    return one.default if one.default_factory is MISSING else one.default_factory()


def descriptions(kind: type[Any]) -> dict[str, str]:
    """Return what the docstrings of a class and its parents say of each field, under "Attributes"."""
    found: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        text = inspect.cleandoc(parent.__dict__.get("__doc__") or "")
        section = re.search(r"^Attributes\n-+\n(.*?)(?=\n\n\w[^\n]*\n-+\n|\Z)", text, re.DOTALL | re.MULTILINE)
        for names, body in re.findall(r"^(\w[\w, ]*)\n((?:[ \t]+\S.*\n?|\n)+)", section[1] if section else "", re.M):
            found |= dict.fromkeys(names.split(", "), " ".join(body.split()))
    return found


@dataclass(frozen=True)
class Part:
    """A setting that is an object with settings of its own, as it was given.

    Attributes
    ----------
    name, kind
        Of the field, and the class of the object.
    values
        What it is made with; of a ready object, None.
    ready
        The object itself, or what is used of it where a value is not given.
    """

    name: str
    kind: type[Any]
    values: dict[str, Any] | None
    ready: Any

    @classmethod
    def read(cls, method: type[Any], name: str, given: Mapping[str, Any]) -> "Part":
        """Find out which kind of object is asked for: by its name, by `by` in a mapping, or by the default.

        Raises
        ------
        ArgumentError
            If there is no such kind.
        """
        kinds: Mapping[str, type[Any]] = method.parts[name]
        default = next(default_of(one) for one in fields(method) if one.name == name)
        if name not in given:
            return cls(name, type(default), {}, default)
        value = given[name]
        values: dict[str, Any] = dict(cast(Mapping[str, Any], value)) if isinstance(value, Mapping) else {}
        wanted = value if isinstance(value, str) else values.pop(BY, None)
        if wanted is None:
            ready = default if isinstance(value, Mapping) else value
            return cls(name, type(ready), values if isinstance(value, Mapping) else None, ready)
        if wanted not in kinds:
            raise ArgumentError(
                f"{name}={shown(wanted)} is not known; of method={method.name!r} there is {', '.join(kinds)}"
            )
        return cls(name, kinds[wanted], values, default if kinds[wanted] is type(default) else None)

    def make(self) -> Any:
        """Return the object."""
        if self.values is None:
            return self.ready
        values = checked_values(self.kind, self.values)
        return self.kind(**values) if self.ready is None else replace(self.ready, **values)


def read_settings(method: type[Settings], given: Mapping[str, Any]) -> Settings:
    """Make a method from plain values; lists become tuples.

    Parameters
    ----------
    method
        A class of :class:`clusterprune.methods.Method`.
    given
        Values by name. "preset" stands for several. Settings of a part, such as the ε of a cut, stand in its own
        mapping (``cut: {eps: 0.02}``) or beside the others (``eps: 0.02``).

    Raises
    ------
    ArgumentError
        If a setting does not exist, a value is not accepted, or two do not go together.
    """
    kind = cast(Any, method)
    given = _with_preset(kind, given)
    own = {one.name for one in settings_of(kind)}
    parts = [Part.read(kind, name, given) for name in kind.parts]
    of_parts = {one.name: part for part in parts if part.values is not None for one in settings_of(part.kind)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name in kind.parts or name in own:
            values[name] = value
        elif name in of_parts:
            inside = of_parts[name].values
            if inside is None or name in inside:
                raise ArgumentError(f"{name}={shown(value)} is given twice, beside and in {of_parts[name].name}")
            inside[name] = value
        else:
            raise ArgumentError(_unknown(kind, parts, name, value))
    values |= {part.name: part.make() for part in parts}
    return method(**checked_values(kind, values, ready=[part.name for part in parts]))


def _with_preset(kind: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given with a preset's values below it, having checked how large the numbers are."""
    for name, value in given.items():
        if _largest(value) > LARGEST and name not in kind.renamed and name in _names(kind):
            raise ArgumentError(f"{name}={shown(value)} is not accepted: whole numbers go up to {LARGEST}")
    if PRESET not in given or not kind.presets:
        return dict(given)
    name = given[PRESET]
    if not isinstance(name, str) or name not in kind.presets:
        raise ArgumentError(
            f"{PRESET}={shown(name)} is not known; of method={kind.name!r} there is {', '.join(kind.presets)}"
        )
    return {**kind.presets[name], **{key: value for key, value in given.items() if key != PRESET}}


def _names(kind: Any, parts: list[Part] | None = None) -> list[str]:
    """Return the names of everything that may be set of a method, with the given parts or with any."""
    of_parts = (
        [part.kind for part in parts] if parts else [each for kinds in kind.parts.values() for each in kinds.values()]
    )
    known = {one.name for each in (kind, *of_parts) for one in settings_of(each)}
    return sorted(known | ({PRESET} if kind.presets else set()))


def _unknown(kind: Any, parts: list[Part], name: str, value: Any) -> str:
    """Say that there is no such setting, and what there is."""
    if name in kind.renamed:
        return f"{name}={shown(value)} is no setting of method={kind.name!r}: {kind.renamed[name]}"
    elsewhere = [
        f"{field}={other!r}"
        for field, kinds in kind.parts.items()
        for other, each in kinds.items()
        if name in {one.name for one in settings_of(each)}
    ]
    hint = f"; it is one of {' and '.join(elsewhere)}" if elsewhere else ""
    names = ", ".join(_names(kind, parts))
    return f"{name}={shown(value)} is no setting of method={kind.name!r}, which has {names}{hint}"


def checked_values(kind: type[Any], values: Mapping[str, Any], *, ready: list[str] | None = None) -> dict[str, Any]:
    """Return the values of fields as their types have them.

    Raises
    ------
    ArgumentError
        If there is no such field, or it does not accept the value.
    """
    hints, readers = get_type_hints(kind), getattr(kind, "readers", {})
    known = {one.name for one in settings_of(kind)}
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise ArgumentError(
                f"{name}={shown(value)} is no setting of {kind.__name__}; it has {', '.join(sorted(known))}"
            )
        if name in (ready or ()):
            found[name] = value
        else:
            found[name] = readers[name](value) if name in readers else checked(name, value, hints[name])
    return found


def _largest(value: Any) -> int:
    """Return the size of the largest whole number in a plain value."""
    if isinstance(value, int):
        return abs(value)
    if isinstance(value, Mapping):
        value = [*cast(Mapping[Any, Any], value).values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return max((_largest(one) for one in cast(list[Any], value)), default=0)
    return 0


def checked(name: str, value: Any, hint: Any) -> Any:
    """Return a plain value as a type has it.

    Raises
    ------
    ArgumentError
        If it does not accept the value.
    """
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        rules = "; or ".join(dict.fromkeys(fault["msg"][0].lower() + fault["msg"][1:] for fault in error.errors()))
        raise ArgumentError(f"{name}={value!r} is not accepted: {rules}") from None


def read_clustering(value: Any) -> Clustering | None:
    """Return a clustering by name, with the settings it has by default; a ready object and None pass.

    Where it takes a number of clusters, the method sets that layer by layer.

    Raises
    ------
    ArgumentError
        If there is no clustering of that name.
    """
    if value is None or hasattr(value, "fit"):
        return value
    try:
        return clustering.create(value, n_clusters=2)
    except ArgumentError:
        return clustering.create(value)

"""What operations are called with and what they give: nested sequences and dictionaries, and arguments by name."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeGuard


def is_sequence(value: Any) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    """Tell whether a value is a list or a tuple, whatever is in it."""
    return isinstance(value, (list, tuple))


def is_mapping(value: Any) -> TypeGuard[Mapping[Any, Any]]:
    """Tell whether a value is a dictionary or like one, whatever is in it."""
    return isinstance(value, Mapping)


def like(sequence: list[Any] | tuple[Any, ...], parts: Iterable[Any]) -> list[Any] | tuple[Any, ...]:
    """Return parts as a list where a sequence is one, and as a tuple otherwise."""
    return list(parts) if isinstance(sequence, list) else tuple(parts)


def map_leaves(change: Callable[[Any], Any], nest: Any) -> Any:
    """Return a nest of the same form, as plain lists, tuples and dictionaries, with every leaf changed."""
    if is_sequence(nest):
        return like(nest, (map_leaves(change, part) for part in nest))
    if is_mapping(nest):
        return {key: map_leaves(change, part) for key, part in nest.items()}
    return change(nest)


def leaves(nest: Any) -> Iterator[Any]:
    """Iterate over what is in a nest, in order."""
    if not is_sequence(nest) and not is_mapping(nest):
        yield nest
        return
    for part in nest.values() if is_mapping(nest) else nest:
        yield from leaves(part)


def schema_of(target: Any) -> Any:
    """Return the schema of an operator's overload, which torch keeps under a private name."""
    return target._schema


def arguments_by_name(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments by the names in an operator's schema; defaults included."""
    schema: list[Any] = schema_of(target).arguments
    named = {argument.name: argument.default_value for argument in schema}
    return {**named, **{argument.name: value for argument, value in zip(schema, args, strict=False)}, **kwargs}

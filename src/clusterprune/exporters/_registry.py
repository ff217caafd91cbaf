"""Exporters by name, for the command line."""

from typing import Any

from clusterprune.errors import ArgumentError
from clusterprune.exporters._base import Exporter
from clusterprune.exporters.int8 import Int8
from clusterprune.exporters.onnx_file import Onnx
from clusterprune.exporters.plain_torch import PlainTorch
from clusterprune.exporters.pt2 import Pt2

_EXPORTERS: dict[str, type[Any]] = {kind.name: kind for kind in (Onnx, Pt2, PlainTorch, Int8)}


def names() -> tuple[str, ...]:
    """Return the names that :func:`create` knows."""
    return tuple(_EXPORTERS)


def find(name: str) -> type[Any]:
    """Return the class of the exporters called ``name``, whose fields are their options.

    Raises
    ------
    ArgumentError
        If there are none of that name.
    """
    if name not in _EXPORTERS:
        raise ArgumentError(f"format must be one of {', '.join(_EXPORTERS)}, but got format={name!r}")
    return _EXPORTERS[name]


def create(name: str, **options: Any) -> Exporter:
    """Return the exporter called ``name`` with the given options.

    Raises
    ------
    ArgumentError
        If there is no such exporter or option.

    Examples
    --------
    >>> create("onnx", opset=20)
    Onnx(opset=20, size=False)
    """
    kind = find(name)
    unknown = [option for option in options if option not in kind.__dataclass_fields__]
    if unknown:
        has = ", ".join(kind.__dataclass_fields__) or "none"
        raise ArgumentError(f"{unknown[0]}={options[unknown[0]]!r} is no option of format={name!r}; its options: {has}")
    return kind(**options)

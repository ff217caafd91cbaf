"""The methods by name: the one place that lists them."""

import functools
from importlib import import_module
from pathlib import Path
from typing import Any

from clusterprune import criteria
from clusterprune.errors import ArgumentError
from clusterprune.methods._base import Method
from clusterprune.methods.once import by_criterion
from clusterprune.models import code

_HOMES = {
    "oneshot": "once:CutOnce",
    "icp": "icp:ICP",
    "acp": "acp:ACP",
    "cp": "cp:CP",
    "sfp": "soft_pruning:Soft",
    "slimming": "slimming:Slimming",
    "lasso": "lasso:Lasso",
    "abcpruner": "abcpruner:ABCPruner",
}
"""Module and class; they are imported when asked for, because Optuna takes a while."""

_FOR_COMPARISON = {"wlp": "wlp:WLP"}
"""Those that make no network smaller, and are here for the figures that they stand in."""
METHODS = (*_HOMES, *criteria.names())
COMPETITORS = (*METHODS, *_FOR_COMPARISON)
COMPARED = "oneshot,icp,acp,cp,l1,fpgm,bn_scale,taylor"
"""Who competes where nobody says otherwise."""
USUAL = "oneshot"
"""The method where nobody says otherwise."""


@functools.cache
def find(name: str) -> type[Method]:
    """Return the class of a method.

    Parameters
    ----------
    name
        One of `COMPETITORS`, or ``path/to/file.py:MyMethod``, a subclass of :class:`Method` in a file, which is run.

    Raises
    ------
    ArgumentError
        If there is no such method.
    ModelError
        If the file cannot be run.
    """
    homes = {**_HOMES, **_FOR_COMPARISON}
    if name in homes:
        module, _, kind = homes[name].partition(":")
        return getattr(import_module(f"clusterprune.methods.{module}"), kind)
    if name in METHODS:
        return by_criterion(name)  # type: ignore[arg-type]
    file = code.file_of(name)
    if file is None:
        raise ArgumentError(
            f"method={name!r} is not known; choose from {', '.join(METHODS)}, or name a class of your own: "
            "path/to/file.py:MyMethod"
        )
    return _of_file(file, name)


def _of_file(file: Path, name: str) -> type[Method]:
    kind: Any = getattr(code.run_file(file, name, what="method"), name.rpartition(":")[2], None)
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise ArgumentError(
            f"method={name!r} names no subclass of clusterprune.Method in {file.name}; write path/to/file.py:MyMethod"
        )
    return kind

"""Make trained convolutional networks smaller and faster by clustering channels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clusterprune.checkpoint import load, save
    from clusterprune.graph import ChannelGraph, trace
    from clusterprune.methods import OneShot, oneshot, plan
    from clusterprune.plans import Merge, Plan
    from clusterprune.surgery import apply

__all__ = ["ChannelGraph", "Merge", "OneShot", "Plan", "apply", "load", "oneshot", "plan", "save", "trace"]

_HOMES = {
    "ChannelGraph": "graph",
    "Merge": "plans",
    "OneShot": "methods",
    "Plan": "plans",
    "apply": "surgery",
    "load": "checkpoint",
    "oneshot": "methods",
    "plan": "methods",
    "save": "checkpoint",
    "trace": "graph",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `clusterprune --help` need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

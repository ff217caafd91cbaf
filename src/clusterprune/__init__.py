"""Make trained convolutional networks smaller and faster by clustering channels."""

from importlib import import_module
from typing import Any

_HOMES = {
    "ACP": "methods.acp",
    "CP": "methods",
    "ICP": "methods",
    "ChannelGraph": "graph",
    "ClusterCut": "methods",
    "CriterionCut": "methods",
    "CutOnce": "methods",
    "Distil": "methods.distil",
    "FromNorms": "merge.bn_images",
    "Merge": "plan",
    "Method": "methods",
    "Network": "methods",
    "OneShot": "methods",
    "OneShotCut": "methods",
    "Op": "graph",
    "Origin": "models.artifact",
    "Outcome": "methods",
    "Plan": "plan",
    "Planner": "methods",
    "Soft": "methods",
    "Work": "methods",
    "apply": "surgery.apply",
    "cluster": "methods",
    "compress": "methods",
    "distil": "methods.distil",
    "draw_graph": "report",
    "export": "exporters",
    "from_hub": "models.hub",
    "images_from_norms": "merge.bn_images",
    "inner_groups": "methods",
    "load": "models.artifact",
    "measure": "methods",
    "oneshot": "methods",
    "prune_by": "methods",
    "push_to_hub": "models.hub",
    "register_op": "graph",
    "save": "models.artifact",
    "trace": "graph",
}

__all__ = [*_HOMES]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `clusterprune --help` need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

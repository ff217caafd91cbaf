"""Make trained convolutional networks smaller and faster by clustering channels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clusterprune.graph import ChannelGraph, Op, register_op, trace
    from clusterprune.merge.bn_images import FromNorms, images_from_norms
    from clusterprune.methods import (
        CP,
        ICP,
        OneShot,
        cluster,
        cluster_prune,
        icp,
        inner_groups,
        oneshot,
        prune_by,
    )
    from clusterprune.methods.acp import ACP, acp
    from clusterprune.methods.distil import Distil, distil
    from clusterprune.plan import Merge, Plan
    from clusterprune.surgery.apply import apply
    from clusterprune.surgery.compact import load, save

__all__ = [
    "ACP",
    "CP",
    "ICP",
    "ChannelGraph",
    "Distil",
    "FromNorms",
    "Merge",
    "OneShot",
    "Op",
    "Plan",
    "acp",
    "apply",
    "cluster",
    "cluster_prune",
    "distil",
    "icp",
    "images_from_norms",
    "inner_groups",
    "load",
    "oneshot",
    "prune_by",
    "register_op",
    "save",
    "trace",
]

_HOMES = {
    "ACP": "methods.acp",
    "CP": "methods",
    "ICP": "methods",
    "ChannelGraph": "graph",
    "Distil": "methods.distil",
    "FromNorms": "merge.bn_images",
    "Merge": "plan",
    "OneShot": "methods",
    "Op": "graph",
    "Plan": "plan",
    "acp": "methods.acp",
    "apply": "surgery.apply",
    "cluster": "methods",
    "cluster_prune": "methods",
    "distil": "methods.distil",
    "icp": "methods",
    "images_from_norms": "merge.bn_images",
    "inner_groups": "methods",
    "load": "surgery.compact",
    "oneshot": "methods",
    "prune_by": "methods",
    "register_op": "graph",
    "save": "surgery.compact",
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

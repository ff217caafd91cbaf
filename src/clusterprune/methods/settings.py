"""From names and plain values, as a recipe or a command line has them, to the settings of a method."""

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from clusterprune import clustering
from clusterprune.arguments import shown
from clusterprune.clustering import Clustering
from clusterprune.errors import ArgumentError
from clusterprune.merge import FreeMergingName
from clusterprune.methods.cp import CP
from clusterprune.methods.cp import PUBLISHED as CP_PUBLISHED
from clusterprune.methods.cp_rates import Adaptive, ClusterCount, Constant, Silhouette
from clusterprune.methods.criteria import CRITERIA, Scope
from clusterprune.methods.icp import ICP
from clusterprune.methods.targets import read_target

TRAINED = ("icp", "acp", "cp", "sfp")
"""Methods that train as they compress, or must afterwards."""
METHODS = ("oneshot", *TRAINED, *CRITERIA)

_RENAMED = {
    ("acp", "inherit"): (
        "candidates that train and the last training inherit weights by settings of their own; give "
        "candidates_inherit, retraining_inherits or both"
    )
}
"""Settings that there were, by method and name, and what to give in their place."""

PRESET = "preset"
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "icp": {"published": {"samples": 128}},
    "acp": {"published": {"samples": 200}},
    "cp": {"published": {**CP_PUBLISHED, "scratch": True}},
}
"""By method and name, settings that a preset gives in place of the defaults; what is given besides comes first.

Published are the samples of the released code, and CP's training from random weights without batch norms; all else that
is published is the default.
"""

Settings = TypeVar("Settings")
Reader = Callable[[Any], Any]


@dataclass(frozen=True)
class Cut:
    """Settings of `oneshot`, which cuts once.

    Attributes
    ----------
    keep_macs, keep_params, keep_latency
        Exactly one: the fraction to keep.
    images
        Training images to look at; their labels are used by `taylor` alone.
    layers
        "all" that may be cut, or "inner": the papers' choice (:func:`clusterprune.inner_groups`).
    round_to, min_width, ignore
        As in :func:`clusterprune.oneshot`.
    """

    keep_macs: float | None = None
    keep_params: float | None = None
    keep_latency: float | None = None
    images: int = 1024
    layers: Literal["all", "inner"] = "all"
    round_to: int = 1
    min_width: int = 1
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the target; the rest is checked by whoever cuts."""
        read_target(self.keep_macs, self.keep_params, self.keep_latency)


@dataclass(frozen=True)
class CriterionCut(Cut):
    """Settings of the criteria, which cut once too: those of `oneshot`, and two of :func:`clusterprune.prune_by`."""

    scope: Scope = "local"
    merge: FreeMergingName = "drop"


@dataclass(frozen=True)
class SoftCut:
    """Settings of `sfp`.

    Attributes
    ----------
    keep_macs, keep_params
        Exactly one: the fraction to keep.
    layers, round_to, min_width, ignore
        As in :class:`Cut`.
    scratch
        Train from random weights.
    """

    keep_macs: float | None = None
    keep_params: float | None = None
    layers: Literal["all", "inner"] = "all"
    round_to: int = 1
    min_width: int = 1
    ignore: tuple[str, ...] = ()
    scratch: bool = False

    def __post_init__(self) -> None:
        """Check the target."""
        read_target(self.keep_macs, self.keep_params, None)


@dataclass(frozen=True)
class BesideCP:
    """Settings of `cp` beside those of :class:`clusterprune.CP`.

    Attributes
    ----------
    keep_macs
        In place of `goal`, `clusters` and `widths`: see :func:`clusterprune.methods.cp.for_macs`.
    scratch
        Train from random weights.
    """

    keep_macs: float | None = None
    scratch: bool = False


@dataclass(frozen=True)
class BesideACP:
    """Settings of `acp` beside those of :class:`clusterprune.methods.acp.ACP`.

    Attributes
    ----------
    storage, study
        Where the search is kept; None is a file in the run's folder.
    equal_macs
        As in :func:`clusterprune.methods.acp.retrain`.
    retraining_inherits
        Whether the last training begins with what is left of the original's weights, or with random ones, as published.
    fitness_epochs
        How long a candidate is trained.
    """

    storage: str | None = None
    study: str = "acp"
    equal_macs: bool = True
    retraining_inherits: bool = False
    fitness_epochs: int = 3


def read_method(method: str, given: Mapping[str, Any], *, seed: int = 0, epochs: int | None = None) -> tuple[Any, Any]:
    """Make the settings of a method from plain values.

    Parameters
    ----------
    method
        One of `METHODS`.
    given
        Values by name. "preset" stands for several, those of `PRESETS`.
    seed, epochs
        Of the run and of its last training: no settings of a method, though some of their classes have them.

    Returns
    -------
    The settings, and what stands beside them: a :class:`BesideCP`, a :class:`BesideACP` or None.

    Raises
    ------
    ArgumentError
        If the method or a setting does not exist, a value is not accepted, or two do not go together.
    """
    if method not in METHODS:
        raise ArgumentError(f"method={method!r} is not known; choose from {', '.join(METHODS)}")
    kind, beside = _kinds(method)
    fixed: dict[str, Any] = {"seed": seed} if _has(kind, "seed") else {}
    if _has(kind, "final_epochs"):
        fixed["final_epochs"] = epochs or kind.final_epochs
    known = [field.name for each in (kind, beside) if each is not None for field in fields(each)]
    presets = PRESETS.get(method, {})
    known += [PRESET] if presets else []
    for name, value in given.items():
        if (method, name) in _RENAMED:
            raise ArgumentError(f"{name}={shown(value)} is no setting of method={method!r}: {_RENAMED[method, name]}")
        if name in fixed or name not in known:
            names = ", ".join(sorted(set(known) - fixed.keys()))
            raise ArgumentError(f"{name}={shown(value)} is no setting of method={method!r}, which has {names}")
        if _largest(value) > LARGEST:
            raise ArgumentError(f"{name}={shown(value)} is not accepted: whole numbers go up to {LARGEST}")
    if PRESET in given:
        name = given[PRESET]
        if not isinstance(name, str) or name not in presets:
            raise ArgumentError(
                f"{PRESET}={shown(name)} is not known; of method={method!r} there is {', '.join(presets)}"
            )
        given = {**presets[name], **{key: value for key, value in given.items() if key != PRESET}}
    if given.get("keep_macs") is not None and beside is BesideCP:
        for name in ("goal", "clusters", "widths"):
            if name in given:
                raise ArgumentError(
                    f"{name}={given[name]!r} and keep_macs={given['keep_macs']!r} exclude each other; give one"
                )
    own = {name: value for name, value in given.items() if _has(kind, name)}
    readers = {"clusters": read_cluster_count, "clustering": read_clustering}
    settings = read_settings(kind, {**own, **fixed}, readers=readers)
    if beside is None:
        return settings, None
    return settings, read_settings(beside, {name: value for name, value in given.items() if name not in own})


def _kinds(method: str) -> tuple[type[Any], type[Any] | None]:
    """Return the class of a method's settings, and of those beside them."""
    if method == "acp":
        from clusterprune.methods.acp import ACP  # Optuna takes a while to import

        return ACP, BesideACP
    if method in CRITERIA:
        return CriterionCut, None
    kinds = {"oneshot": (Cut, None), "icp": (ICP, None), "cp": (CP, BesideCP), "sfp": (SoftCut, None)}
    return kinds[method]


def _has(kind: type[Any], name: str) -> bool:
    return name in {field.name for field in fields(kind)}


def read_settings(
    kind: type[Settings], given: Mapping[str, Any], *, readers: Mapping[str, Reader] = types.MappingProxyType({})
) -> Settings:
    """Make an instance of a dataclass of settings from plain values; lists become tuples.

    Parameters
    ----------
    kind
        The dataclass.
    given
        Values by name of field.
    readers
        For fields whose values are objects: what makes them from plain values.

    Raises
    ------
    ArgumentError
        If there is no such field, or it does not accept the value.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise ArgumentError(
                f"{name}={shown(value)} is no setting of {kind.__name__}; it has {', '.join(sorted(known))}"
            )
        found[name] = readers[name](value) if name in readers else _checked(name, value, hints[name])
    return kind(**found)


LARGEST = 2**31 - 1
"""More than any number of epochs, images, clusters or channels; what counts them does not count further."""


def _largest(value: Any) -> int:
    """Return the size of the largest whole number in a plain value."""
    if isinstance(value, int):
        return abs(value)
    if isinstance(value, Mapping):
        value = [*value.values()]
    return max(map(_largest, value), default=0) if isinstance(value, (list, tuple, set, frozenset)) else 0


def _checked(name: str, value: Any, hint: Any) -> Any:
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        rules = "; or ".join(dict.fromkeys(fault["msg"][0].lower() + fault["msg"][1:] for fault in error.errors()))
        raise ArgumentError(f"{name}={value!r} is not accepted: {rules}") from None


def read_cluster_count(value: Any) -> ClusterCount:
    """Return how many clusters CP makes; a ready object passes.

    Parameters
    ----------
    value
        ``"adaptive"``, ``{"adaptive": real_rate}``, ``{"constant": number}``, ``{"share": share}`` or ``"silhouette"``.

    Raises
    ------
    ArgumentError
        For anything else.
    """
    if hasattr(value, "check"):
        return value
    if value == "silhouette":
        return Silhouette()
    if value == "adaptive":
        return Adaptive()
    makers: dict[str, Callable[[Any], ClusterCount]] = {
        "adaptive": lambda rate: Adaptive(_checked("adaptive", rate, float)),
        "constant": lambda number: Constant(number=_checked("constant", number, int)),
        "share": lambda share: Constant(share=_checked("share", share, float)),
    }
    if isinstance(value, Mapping) and len(value) == 1:
        ((kind, number),) = value.items()
        if kind in makers:
            return makers[kind](number)
    raise ArgumentError(
        f"clusters={value!r} is not known; give adaptive, {{adaptive: RATE}}, {{constant: NUMBER}}, {{share: SHARE}} "
        "or silhouette"
    )


def read_clustering(value: Any) -> Clustering | None:
    """Return a clustering by name, with the settings it has by default; a ready object and None pass.

    Where it takes a number of clusters, CP sets that layer by layer.

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

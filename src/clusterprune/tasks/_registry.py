"""Tasks by name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from clusterprune.tasks.classification import Classification
from clusterprune.tasks.detection import Detection
from clusterprune.tasks.plain import Plain

TASKS: Mapping[str, type[Any]] = MappingProxyType({kind.name: kind for kind in (Classification, Detection, Plain)})
"""The class of each task; all are made with ``train``, ``validation``, ``mean``, ``std`` and options of their own."""

TITLES: Mapping[str, str] = MappingProxyType(
    {name: title for kind in TASKS.values() for name, title in kind.titles.items()}
)
"""What tables call the figures of tasks that are percentages, by name: each class says so in its `titles`."""


def percentages(figures: Mapping[str, Any]) -> dict[str, str]:
    """Return what tables call the percentages that there are among some figures, by name, the deciding one first."""
    return {name: TITLES[name] for name, value in figures.items() if name in TITLES and value is not None}

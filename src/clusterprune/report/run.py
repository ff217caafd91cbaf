"""A run folder as its files tell it: no model, no data, and nothing that must be there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clusterprune.errors import DataError
from clusterprune.files.reading import ReadError, exists, read_json, read_json_lines, read_yaml
from clusterprune.runs import CONFIG_NAME, DETAILS_NAME, LOG_NAME, RESULT_NAME

CUT_FOLDER, CUT_NAME, PLAN_NAME = "cut-record", "cut.json", "plan.json"
_COSTS = frozenset({"params", "macs", "images", "latency_ms", "latency_iqr_ms", "latency_batch"})
"""Of a measured network, what says nothing of what it is worth."""


@dataclass(frozen=True)
class Run:
    """What the files of a run say. A file that is missing or damaged says nothing.

    Attributes
    ----------
    folder
        Where they are.
    """

    folder: Path

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Return a run.

        Raises
        ------
        DataError
            If the folder is none.
        """
        place = Path(folder).expanduser()
        if not any(exists(place / name) for name in (CONFIG_NAME, RESULT_NAME, LOG_NAME)):
            raise DataError(
                f"run={str(folder)!r} is no folder of a run, which has a {CONFIG_NAME} or a {RESULT_NAME}; give what "
                "was given to a command as --out"
            )
        return cls(place)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @cached_property
    def config(self) -> dict[str, Any]:
        """What was asked for, by option; and the command."""
        try:
            found = read_yaml(self.folder / CONFIG_NAME)
        except ReadError:
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def result(self) -> dict[str, Any]:
        """What was measured."""
        return _mapping(self.folder / RESULT_NAME)

    @cached_property
    def details(self) -> dict[str, Any]:
        """Widths of layers, and hits of classes; see :func:`clusterprune.runs.details`."""
        return _mapping(self.folder / DETAILS_NAME)

    @cached_property
    def cut(self) -> dict[str, Any]:
        """What is frozen, and which channels are alike; see :func:`clusterprune.methods._cut_record.record_cut`."""
        return _mapping(self.folder / CUT_FOLDER / CUT_NAME)

    @property
    def command(self) -> str:
        """The command that made it: "compress", "train" and so on; empty where nothing says so."""
        return str(self.config.get("command") or self.result.get("command") or "")

    @cached_property
    def notes(self) -> dict[str, Any]:
        """What the plans of the run note, the first one of them counting most; a comparison's are its contenders'."""
        found: dict[str, Any] = {}
        if "entries" in self.result:
            return found
        for path in sorted(self.folder.rglob(PLAN_NAME)):
            notes = _mapping(path).get("notes")
            found = (notes if isinstance(notes, dict) else {}) | found
        return found

    @cached_property
    def trainings(self) -> dict[str, list[dict[str, Any]]]:
        """The epochs of every training, by its folder within the run ("" for the run's own); none of a comparison."""
        found: dict[str, list[dict[str, Any]]] = {}
        if "entries" in self.result:
            return found
        for path in sorted(self.folder.rglob(LOG_NAME)):
            try:
                lines = read_json_lines(path)
            except ReadError:
                continue
            epochs = [line for line in lines if isinstance(line.get("epoch"), int) and "loss" in line]
            if epochs:
                found[path.parent.relative_to(self.folder).as_posix().removesuffix(".")] = epochs
        return found

    @property
    def networks(self) -> dict[str, dict[str, Any]]:
        """What was measured of each network, by name, the whole one first."""
        names = {"baseline": "original", "trained": "trained", "compressed": "compact"}
        found = {shown: self.result.get(name) for name, shown in names.items()}
        # Means over seeds are whole numbers all the same.
        return {
            name: {key: int(one) if key in ("images", "latency_batch") and one else one for key, one in value.items()}
            for name, value in found.items()
            if isinstance(value, dict)
        }


def opened(folders: Sequence[str | Path]) -> list[Run]:
    """Return the runs in some folders; one that holds a run for each of several budgets stands for these.

    Raises
    ------
    DataError
        If a folder is none of a run.
    """
    found: list[Run] = []
    for run in map(Run.open, folders):
        budgets = run.result.get("budgets")
        below = [run.folder / Path(name).name for name in budgets] if isinstance(budgets, dict) else []
        found += [Run.open(place) for place in below] or [run]
    return found


def worth(network: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return the metric that decides about a measured network, by name; None where nothing was tested."""
    found = ((name, value) for name, value in network.items() if name not in _COSTS)
    return next(((name, value) for name, value in found if isinstance(value, int | float)), None)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except ReadError:
        return {}
    return found if isinstance(found, dict) else {}

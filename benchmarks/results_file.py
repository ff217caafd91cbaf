"""The results file of ``oneshot_accuracy.py``: cells that several processes add to, and the table of them."""

import fcntl
import json
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from baselines import CRITERIA, SCOPES
from rich.table import Table

NOTES = "* MACs more than 1 % off the target; † on part of the test images"
AS_PRUNED, REESTIMATED = "as pruned", "re-estimated"
OURS, ALIGNED, WHOLE = "ours", "ours, aligned", "unpruned"
SAME_SHARE, SAME_SHARE_STREAMS, OURS_WITHOUT = "same share", "same share, streams too", "ours without data"
VARIANTS = (OURS, ALIGNED, SAME_SHARE, SAME_SHARE_STREAMS, OURS_WITHOUT)
"""Rows that ``clusterprune.oneshot`` makes: with its defaults, and with something changed or missing."""
OSSCAR, FOLDING, FOLDING_WITHOUT = "osscar", "folding", "folding without data"
PEERS: Mapping[str, tuple[str, ...]] = {
    OSSCAR: (AS_PRUNED, REESTIMATED),
    FOLDING: (REESTIMATED,),
    FOLDING_WITHOUT: ("",),
}
"""Rows of the published methods in ``peers.py``, and how each treats the batch norms ("": in closed form)."""

Row = tuple[str, str, str]
"""Criterion, scope and treatment of the batch norms."""


@dataclass(frozen=True)
class Cell:
    """One number to measure. ``seed`` is None where nothing depends on the calibration images."""

    network: str
    keep: float
    criterion: str
    scope: str = ""
    batch_norm: str = ""
    seed: int | None = None

    @property
    def key(self) -> str:
        """Name of the cell in the results file."""
        return "/".join(
            str(part) for part in (self.network, self.keep, self.criterion, self.scope, self.batch_norm, self.seed)
        )


class Results:
    """The results file. Several processes may add to it: each write merges under a lock and is atomic."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self.config = dict(config)

    def read(self) -> dict[str, Any]:
        """Return the file's content, or an empty one."""
        if not self.path.exists():
            return {"benchmark": "oneshot_accuracy", "runs": [], "settings": {}, "cells": {}}
        return json.loads(self.path.read_text())

    def update(self, section: str, key: str, value: Any) -> None:
        """Add one entry."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = self.read()
            if section == "runs":
                content["runs"] = [run for run in content["runs"] if run["command"] != key] + [value]
            else:
                content[section][key] = {**value, "config": self.config}
                content[section] = dict(sorted(content[section].items()))
            temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(content, indent=1) + "\n")
            temporary.replace(self.path)
        finally:
            os.close(lock)

    def entry(self, section: str, key: str) -> dict[str, Any] | None:
        """Return an entry measured under the same configuration, if there is one."""
        found = self.read()[section].get(key)
        return found if found and found["config"] == self.config else None

    def done(self, cell: "Cell", images: int) -> bool:
        """Tell whether a cell was measured, on at least so many test images."""
        found = self.entry("cells", cell.key)
        return found is not None and found["images"] >= images

    def cells(self) -> list[dict[str, Any]]:
        """All cells measured under the same configuration."""
        return [{"key": k, **cell} for k, cell in self.read()["cells"].items() if cell["config"] == self.config]


def table(results: list[dict[str, Any]]) -> tuple[Table, list[str]]:
    """Lay out mean and standard deviation, and say for each column who leads: with images, and without any."""
    groups: dict[tuple[str, float], dict[Row, list[dict[str, Any]]]] = {}
    whole = {cell["network"]: _text([cell]) for cell in results if cell["criterion"] == WHOLE}
    for cell in results:
        if cell["criterion"] != WHOLE:
            row = (cell["criterion"], cell["scope"], cell["batch_norm"])
            groups.setdefault((cell["network"], cell["keep"]), {}).setdefault(row, []).append(cell)
    columns = sorted(groups, key=lambda column: (column[0], -column[1]))
    made = Table(title="Top-1 (%) by network and share of MACs kept", caption=NOTES)
    for title in ("criterion", "scope", "batch norm"):
        made.add_column(title)
    for network, keep in columns:
        made.add_column(f"{network}\n{keep:.0%}\n({whole.get(network, '?')} whole)", justify="right")
    rows = [(name, "", "") for name in VARIANTS]
    rows += [(name, "", batch_norm) for name, kinds in PEERS.items() for batch_norm in kinds]
    rows += [(c, s, b) for c in CRITERIA for s in SCOPES for b in (AS_PRUNED, REESTIMATED)]
    shown = [row for row in rows if any(row in groups[column] for column in columns)]
    for row, below in zip_longest(shown, shown[1:]):
        texts = [_text(groups[column].get(row, [])) for column in columns]
        made.add_row(*row, *texts, end_section=below is None or _section(row) != _section(below))
    verdicts = [_verdict(column, groups[column], OURS, without_data=False) for column in columns]
    verdicts += [_verdict(column, groups[column], OURS_WITHOUT, without_data=True) for column in columns]
    return made, [verdict for verdict in verdicts if verdict]


def _section(row: Row) -> int:
    return 0 if row[0] in VARIANTS else 1 if row[0] in PEERS else 2


def _sees_no_image(row: Row) -> bool:
    """Tell whether a row of somebody else's needs no image to make its networks."""
    criterion, _, batch_norm = row
    if criterion in PEERS:
        return criterion == FOLDING_WITHOUT
    return batch_norm == AS_PRUNED and CRITERIA[criterion].gradients == "nothing"


def _verdict(
    column: tuple[str, float], entries: Mapping[Row, list[dict[str, Any]]], name: str, *, without_data: bool
) -> str:
    """Say by how much a row of ours leads the best of the others in a column; nothing if one side is missing."""
    ours = entries.get((name, "", ""))
    others = {
        row: _mean(entry)
        for row, entry in entries.items()
        if row[0] not in VARIANTS and (not without_data or _sees_no_image(row))
    }
    if not ours or not others:
        return ""
    best = max(others, key=lambda row: others[row])
    lead = _mean(ours) - others[best]
    word = "leads" if lead > 0 else "DOES NOT LEAD"
    field = "best other without data" if without_data else "best other"
    title = ", ".join(part for part in best if part)
    return f"{column[0]} at {column[1]:.0%}: {name} {word}, {lead:+.2f} points on the {field} ({title})"


def _mean(entry: list[dict[str, Any]]) -> float:
    return statistics.mean(cell["top1"] for cell in entry)


def _text(entry: list[dict[str, Any]]) -> str:
    if not entry:
        return ""
    spread = f" ±{statistics.stdev(cell['top1'] for cell in entry):.2f}" if len(entry) > 1 else ""
    few = "" if all(cell["images"] == cell["config"]["test_images"] for cell in entry) else "†"
    return f"{_mean(entry):.2f}{spread}{'' if all(cell['within'] for cell in entry) else '*'}{few}"

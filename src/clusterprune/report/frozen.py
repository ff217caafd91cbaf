"""What could not be cut, and why."""

from collections.abc import Sequence
from typing import ClassVar, Self

from clusterprune.report._base import Display, Rows, single
from clusterprune.report.run import Run
from clusterprune.tables import few


class Frozen(Display):
    """Layers whose channels had to stay."""

    name: ClassVar[str] = "frozen"
    title: ClassVar[str] = "What is frozen, and why"
    folded: ClassVar[bool] = False

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Self | None:
        """Read what the run has noted at its first cut."""
        run = single(runs)
        if run is None or "frozen" not in run.cut:
            return None
        rows: Rows = [
            {"layers": few(one["layers"]), "channels": one["channels"], "of": one["of"], "why": one["reason"]}
            for one in run.cut["frozen"]
        ]
        if not rows:
            return cls(rows, "Nothing was frozen: every layer could be cut.")
        number = sum(row["channels"] for row in rows)
        return cls(rows, f"{number:,} channels had to stay, {len(run.cut.get('groups', {}))} groups could be cut.")

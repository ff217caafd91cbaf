"""A row of a paper's table beside what came out here."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from clusterprune.report._base import Display, Rows, single
from clusterprune.report.headline import metric_name
from clusterprune.report.run import Run, worth


class Published(Display):
    """What a paper says of a recipe, and what was measured."""

    name: ClassVar[str] = "published"
    title: ClassVar[str] = "Published and measured"
    folded: ClassVar[bool] = False

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Self | None:
        """Read ``result.json`` of a reproduction."""
        run = single(runs)
        if run is None or not isinstance(run.result.get("recipe"), dict):
            return None
        result, paper = run.result, run.result.get("published") or {}
        whole, small, spread = result["baseline"], result["compressed"], result.get("deviation", {})
        told = {name: paper.get(name) or {} for name in ("baseline", "compressed")}
        key, before = worth(whole) or ("accuracy", 0.0)
        name, lost = metric_name(key), before - small[key]
        rows: Rows = [
            _row(f"{name}, original, %", told["baseline"].get("accuracy"), before, None),
            _row(f"{name}, compact, %", told["compressed"].get("accuracy"), small[key], spread.get(key)),
            _row(f"{name}, points lost", paper.get("drop"), lost, None),
        ]
        for key, name in (("params", "parameters"), ("macs", "MACs")):
            published = told["baseline"].get(key)
            rows.append(_row(f"{name}, original, M", published, whole[key] / 1e6, None))
            rows.append(
                _row(f"{name} removed, %", paper.get(f"{key}_removed"), 100 * (1 - small[key] / whole[key]), None)
            )
        trial = f" as a trial ({result['trial']}), which says nothing of the paper" if result.get("trial") else ""
        there = f", {paper['drop']:.2f} in the paper" if "drop" in paper else ""
        return cls(rows, f"The recipe {result['recipe'].get('name')} was run{trial}: {lost:.2f} points lost{there}.")


def _row(title: str, published: Any, measured: float, deviation: float | None) -> dict[str, Any]:
    return {"quantity": title, "published": published, "measured": measured, "± over seeds": deviation}

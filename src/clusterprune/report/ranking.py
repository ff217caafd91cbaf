"""Who keeps the most in a comparison of methods, over its seeds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from plotly.graph_objects import Figure

from clusterprune.report._base import Display, Rows, single
from clusterprune.report._style import BLUE, GREY, ORANGE, figure
from clusterprune.report.headline import metric_name
from clusterprune.report.run import Run
from clusterprune.tables import plural


@dataclass(frozen=True)
class Ranking(Display):
    """Worth of every contender after the cut and after training, the best first."""

    name: ClassVar[str] = "ranking"
    title: ClassVar[str] = "Who keeps the most"
    folded: ClassVar[bool] = False

    metric: str

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Self | None:
        """Read ``result.json`` of a comparison."""
        run = single(runs)
        entries = [] if run is None else run.result.get("entries", [])
        if run is None or not entries:
            return None
        whole, by_name = run.result["whole"], dict[str, list[dict[str, Any]]]()
        for entry in entries:
            by_name.setdefault(entry["contender"], []).append(entry)
        rows: Rows = [_row(name, some, whole) for name, some in by_name.items()]
        rows.sort(key=lambda row: -row["after training"])
        for row in rows:
            row["change"] = row["after training"] - whole["accuracy"]
        best, seeds = rows[0], max(row["seeds"] for row in rows)
        chance = _close(rows)
        return cls(
            rows,
            f"{plural(len(rows), 'contender')} with {plural(seeds, 'seed')} each, original {whole['accuracy']:.2f}. "
            f"{best['contender']} keeps the most, {best['after training']:.2f}.{chance}",
            whole.get("metric", "accuracy"),
        )

    def plot(self) -> Figure:
        """Draw two marks for each contender, after the cut and after training, with what seeds do to them."""
        names = [row["contender"] for row in self.rows]
        original = self.rows[0]["after training"] - self.rows[0]["change"]
        traces: list[dict[str, Any]] = [
            {
                "type": "scatter", "mode": "markers", "name": name, "y": names, "x": [row[name] for row in self.rows],
                "marker": {"color": colour, "size": 11, "symbol": symbol},
                "error_x": {
                    "array": [row[f"±, {name}"] or 0 for row in self.rows], "thickness": 1.5, "color": colour,
                },
                "hovertemplate": f"%{{y}}, {name}: %{{x:.2f}}<extra></extra>",
            }
            for name, colour, symbol in (("after the cut", ORANGE, "diamond-open"), ("after training", BLUE, "circle"))
        ]  # fmt: skip
        line = {"type": "line", "yref": "paper", "x0": original, "x1": original, "y0": 0, "y1": 1,
                "line": {"color": GREY, "dash": "dash", "width": 1.5}}  # fmt: skip
        note = {"text": "original", "x": original, "yref": "paper", "y": 1, "showarrow": False, "xanchor": "right"}
        return figure(
            traces, height=140 + 30 * len(names), shapes=[line], annotations=[note],
            xaxis={"title": metric_name(self.metric, unit=True)}, yaxis={"type": "category", "autorange": "reversed"},
        )  # fmt: skip


def _row(name: str, entries: Sequence[dict[str, Any]], whole: dict[str, Any]) -> dict[str, Any]:
    cuts = [one["accuracy_cut"] for one in entries if one["accuracy_cut"] is not None]
    final = [one["accuracy"] for one in entries]

    def deviation(values: Sequence[float]) -> float | None:
        return statistics.stdev(values) if len(values) > 1 else None

    return {
        "contender": name,
        "seeds": len(entries),
        "MACs kept, %": 100 * statistics.mean(one["macs"] for one in entries) / whole["macs"],
        "parameters kept, %": 100 * statistics.mean(one["params"] for one in entries) / whole["params"],
        "after the cut": statistics.mean(cuts) if cuts else None,
        "±, after the cut": deviation(cuts),
        "after training": statistics.mean(final),
        "±, after training": deviation(final),
    }


def _close(rows: Rows) -> str:
    """Say which contenders the seeds do not tell from the best."""
    best = rows[0]
    if len(rows) < 2 or best["seeds"] < 2:
        return "" if best["seeds"] > 1 else " One seed alone tells no small differences: give --seeds 0,1,2."
    near = [row["contender"] for row in rows[1:] if best["after training"] - row["after training"] < _errors(best, row)]
    return f" Two standard errors do not tell it from {', '.join(near)}." if near else ""


def _errors(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return two standard errors of the difference of two contenders."""
    return 2 * sum((row["±, after training"] or 0.0) ** 2 / row["seeds"] for row in (one, other)) ** 0.5

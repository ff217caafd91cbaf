"""Several runs beside one another: what each keeps, and how good it still is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from plotly.graph_objects import Figure

from clusterprune.report._base import Display, Rows
from clusterprune.report._style import GREY, figure, marker
from clusterprune.report.headline import metric_name
from clusterprune.report.run import Run, worth


def compared(runs: Sequence[Run]) -> Rows:
    """Return a row for each network of several runs: run, method, costs and worth; originals that are equal once."""
    rows: Rows = []
    for run in runs:
        if run.result.get("entries"):
            metric = run.result["whole"].get("metric", "accuracy")
            rows += [
                {"run": f"{run.name}: {one['contender']}, seed {one['seed']}", "method": one["contender"],
                 "MACs": one["macs"], "parameters": one["params"], metric: one["accuracy"], "latency, ms": None}
                for one in run.result["entries"]
            ]  # fmt: skip
            continue
        for name, network in run.networks.items():
            value = worth(network)
            row = {
                "run": name if name == "original" else run.name,
                "method": name if name != "compact" else str(run.config.get("method") or run.command),
                "MACs": network["macs"], "parameters": network["params"],
                value[0] if value else "accuracy": value[1] if value else None,
                "latency, ms": network.get("latency_ms"),
            }  # fmt: skip
            facts = [row[key] for key in ("MACs", "parameters")]
            if name != "original" or facts not in [[r["MACs"], r["parameters"]] for r in rows if r["run"] == name]:
                rows.append(row)
    return rows


@dataclass(frozen=True)
class _Against(Display):
    """Worth over a cost, a mark for each network.

    Attributes
    ----------
    metric
        What is drawn upwards.
    """

    cost: ClassVar[str]
    unit: ClassVar[str]

    metric: str

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Self | None:
        """Read ``result.json`` of all runs."""
        if len(runs) < 2:
            return None
        rows = compared(runs)
        known = ("run", "method", "MACs", "parameters", "latency, ms")
        metric = next((name for row in rows for name in row if name not in known), "accuracy")
        rows = [row for row in rows if row.get(metric) is not None and row.get(cls.cost) is not None]
        if not rows:
            return None
        compact = [row for row in rows if row["run"] != "original"] or rows
        best, least = max(compact, key=lambda row: row[metric]), min(compact, key=lambda row: row[cls.cost])
        return cls(
            rows,
            f"{len(rows)} networks. The best compact one is {best['run']} with {metric_name(metric)} "
            f"{best[metric]:.2f}; the one with the least {cls.cost} is {least['run']}, with {least[metric]:.2f}.",
            metric,
        )

    def plot(self) -> Figure:
        """Draw a mark for each network; those of a method look alike."""
        methods = list(dict.fromkeys(row["method"] for row in self.rows))
        traces: list[dict[str, Any]] = []
        for number, method in enumerate(methods):
            part = [row for row in self.rows if row["method"] == method]
            look = marker(number) | ({"color": GREY} if method == "original" else {})
            traces.append(
                {
                    "type": "scatter", "mode": "markers", "name": method, "marker": look,
                    "x": [row[self.cost] for row in part], "y": [row[self.metric] for row in part],
                    "text": [row["run"] for row in part],
                    "hovertemplate": f"%{{text}}<br>%{{x:.4s}} {self.cost}<br>%{{y:.2f}}<extra></extra>",
                }
            )  # fmt: skip
        return figure(
            traces, height=420, xaxis={"title": f"{self.cost}{self.unit}", "rangemode": "tozero"},
            yaxis={"title": metric_name(self.metric, unit=True)}, legend={"itemsizing": "constant"}, showlegend=True,
        )  # fmt: skip


class OverMacs(_Against):
    """Worth over multiply-adds."""

    name: ClassVar[str] = "over-macs"
    title: ClassVar[str] = "Worth over MACs"
    cost: ClassVar[str] = "MACs"
    unit: ClassVar[str] = ""


class OverLatency(_Against):
    """Worth over time."""

    name: ClassVar[str] = "over-latency"
    title: ClassVar[str] = "Worth over time"
    cost: ClassVar[str] = "latency, ms"
    unit: ClassVar[str] = " of a pass"


class Table(Display):
    """The numbers of several runs."""

    name: ClassVar[str] = "runs"
    title: ClassVar[str] = "All runs"
    folded: ClassVar[bool] = False

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Self | None:
        """Read ``result.json`` of all runs."""
        rows = compared(runs) if len(runs) > 1 else []
        return cls(rows, f"{len(rows)} networks of {len(runs)} runs.") if rows else None

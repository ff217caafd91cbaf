"""How trainings went, epoch by epoch."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from plotly.graph_objects import Figure

from clusterprune.report._base import Display, Rows, single
from clusterprune.report._style import BLUE, GREEN, ORANGE, counted, figure
from clusterprune.report.headline import metric_name
from clusterprune.report.run import Run

_TRAIN, _HELD_OUT = "train_", "validation_"


class Training(Display):
    """Loss and the deciding metric of every epoch; several trainings follow one another."""

    name: ClassVar[str] = "training"
    title: ClassVar[str] = "Training"

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Self | None:
        """Read every ``log.jsonl`` of the run."""
        run = single(runs)
        trainings = {} if run is None else run.trainings
        rows: Rows = []
        for folder, epochs in trainings.items():
            for epoch in epochs:
                row = {"training": folder or "training", "epoch": epoch["epoch"], "loss": epoch["loss"]}
                row |= {name: v for name, v in epoch.items() if name.startswith((_TRAIN, _HELD_OUT)) and v is not None}
                rows.append(row | {"rate": epoch.get("learning_rate"), "seconds": epoch.get("seconds")})
        if not rows:
            return None
        last = rows[-1]
        first = next((name for name in last if name.startswith(_HELD_OUT)), None)
        told = ""
        if first is not None:
            best = max(row.get(first) or 0.0 for row in rows)
            told = f" On held-out images, {metric_name(first.removeprefix(_HELD_OUT))} ends at {last[first]:.2f}"
            told += "." if best <= last[first] else f"; the best of all epochs was {best:.2f}."
        several = "" if len(trainings) == 1 else f" in {len(trainings)} trainings"
        return cls(
            rows, f"{len(rows)} epochs{several}. The loss goes from {rows[0]['loss']:.3g} to {last['loss']:.3g}.{told}"
        )

    def plot(self) -> Figure:
        """Draw the loss below, and what decides above, over all epochs."""
        steps = list(range(1, len(self.rows) + 1))
        metrics = [name for name in self.rows[-1] if name.startswith((_TRAIN, _HELD_OUT))]
        looks = {_TRAIN: (BLUE, "dot", "training images"), _HELD_OUT: (GREEN, "solid", "held-out images")}
        traces: list[dict[str, Any]] = []
        for metric in metrics:
            kind = next(kind for kind in looks if metric.startswith(kind))
            colour, dash, name = looks[kind]
            traces.append(self._line(metric, name, colour, dash, "y2") | {"x": steps})
        traces.append(self._line("loss", "loss", ORANGE, "dash", "y") | {"x": steps})
        # A line where a training ends and another begins.
        ends = [at for at in steps[1:] if self.rows[at - 1]["training"] != self.rows[at - 2]["training"]]
        cuts = [
            {"type": "line", "xref": "x", "yref": "paper", "x0": at - 0.5, "x1": at - 0.5, "y0": 0, "y1": 1,
             "line": {"color": ORANGE, "width": 1, "dash": "dot"}}
            for at in ends
        ]  # fmt: skip
        title = metric_name(metrics[0].partition("_")[2], unit=True) if metrics else ""
        return figure(
            traces, height=440, shapes=cuts, xaxis={"title": "epoch"} | counted(len(steps)),
            yaxis={"title": "loss", "domain": [0, 0.44], "rangemode": "tozero"},
            yaxis2={"title": title, "domain": [0.54, 1]},
        )  # fmt: skip

    def _line(self, column: str, name: str, colour: str, dash: str, axis: str) -> dict[str, Any]:
        return {
            "type": "scatter", "mode": "lines+markers", "name": name, "yaxis": axis,
            "y": [row.get(column) for row in self.rows], "line": {"color": colour, "dash": dash, "width": 2},
            "marker": {"size": 5, "color": colour}, "hovertemplate": "epoch %{x}: %{y:.4g}",
        }  # fmt: skip

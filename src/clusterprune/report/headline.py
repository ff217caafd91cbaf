"""The numbers that a run is about: original beside compact."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from clusterprune.report._base import Display, Rows, single
from clusterprune.report.run import Run, worth
from clusterprune.tables import count
from clusterprune.tasks import TITLES


def metric_name(name: str, *, unit: bool = False) -> str:
    """Return what people call a metric, with its unit if asked for."""
    return f"{TITLES[name]}{', %' if unit else ''}" if name in TITLES else name


class Headline(Display):
    """Size, time and worth of every network of a run."""

    name: ClassVar[str] = "headline"
    title: ClassVar[str] = "In numbers"
    folded: ClassVar[bool] = False

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Self | None:
        """Read ``result.json``."""
        run = single(runs)
        networks = {} if run is None else run.networks
        if not networks:
            return None
        first, last = next(iter(networks.values())), list(networks.values())[-1]
        rows: Rows = [_row("MACs", networks, "macs"), _row("parameters", networks, "params")]
        named = worth(last)
        metrics = [name for name in last if name in TITLES or (named is not None and name == named[0])]
        rows += [_row(metric_name(name, unit=True), networks, name) for name in metrics if last[name] is not None]
        if "latency_ms" in last:
            batch = last.get("latency_batch", 1)
            rows.append(_row(f"latency, ms for {batch} image{'s' if batch != 1 else ''}", networks, "latency_ms"))
        if len(networks) == 1:
            worth_text = "" if named is None else f" and {metric_name(named[0])} {named[1]:.2f}"
            return cls(rows, f"The network has {count(last['macs'])} MACs{worth_text}.")
        kept = f"{last['macs'] / first['macs']:.1%} of the MACs and {last['params'] / first['params']:.1%} of the"
        parts = [f"{kept} parameters are left"]
        before = worth(first)
        if named is not None and before is not None:
            parts.append(f"{metric_name(named[0])} goes from {before[1]:.2f} to {named[1]:.2f}")
        if "latency_ms" in last:
            parts.append(f"a pass is {first['latency_ms'] / last['latency_ms']:.2f} times as fast")
        return cls(rows, f"{'; '.join(parts)}.")


def _row(title: str, networks: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Return the row of one quantity: each network's, and how the last compares with the first."""
    values = {name: one.get(key) for name, one in networks.items()}
    row: dict[str, Any] = {"quantity": title, **values}
    numbers = [value for value in values.values() if isinstance(value, int | float)]
    if len(numbers) == len(values) > 1:
        if key in ("macs", "params"):
            row["change"] = f"{numbers[-1] / numbers[0]:.1%} kept"
        elif key == "latency_ms":
            row["change"] = f"{numbers[0] / numbers[-1]:.2f} x as fast"
        else:
            row["change"] = f"{numbers[-1] - numbers[0]:+.2f} points"
    return row

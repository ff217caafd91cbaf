"""The tables that commands close with: what a network costs, and what it is worth in its task."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from clusterprune.cli.console import milliseconds, percent, table
from clusterprune.tables import count
from clusterprune.tasks import percentages


def comparison(title: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Table:
    """Return the closing table of a compression: what it cost, and what it brought."""
    made = table(title, ("", "baseline", "compressed", "change"))
    for name, key in (("MACs", "macs"), ("parameters", "params")):
        made.add_row(name, count(before[key]), count(after[key]), _fewer(before[key], after[key]))
    for key, name in percentages(before).items():
        if after.get(key) is not None:
            made.add_row(name, percent(before[key]), percent(after[key]), f"{after[key] - before[key]:+.2f} points")
    made.add_row(
        latency_name(before),
        milliseconds(before["latency_ms"]),
        milliseconds(after["latency_ms"]),
        f"{before['latency_ms'] / after['latency_ms']:.2f} x as fast",
    )
    return made


def single(title: str, values: Mapping[str, Any]) -> Table:
    """Return the table of one model."""
    made = table(title, ("", "measured"))
    for key, name in percentages(values).items():
        made.add_row(name, percent(values[key]))
    if values["images"]:
        made.add_row("test images", f"{values['images']:,}")
    made.add_row("MACs", count(values["macs"]))
    made.add_row("parameters", count(values["params"]))
    made.add_row(latency_name(values), milliseconds(values["latency_ms"]))
    return made


def latency_name(values: Mapping[str, Any]) -> str:
    """Say what a latency is of: latency, 8 images, onnxruntime:threads=1."""
    batch = values["latency_batch"]
    return ", ".join([f"latency, {batch} image{'s' if batch > 1 else ''}", *filter(None, [values.get("runtime")])])


def budgets(title: str, together: Mapping[str, Any]) -> Table:
    """Return the closing table of several budgets: the whole network first."""
    results = together["budgets"]
    whole = next(iter(results.values()))["baseline"]
    worth = list(percentages(whole).items())[:1]
    made = table(title, ("folder", "MACs", "parameters", *(name for _, name in worth), "latency"))
    for name, one in {"(whole)": whole, **{name: result["compressed"] for name, result in results.items()}}.items():
        figures = count(one["macs"]), count(one["params"]), *(percent(one[key]) for key, _ in worth)
        made.add_row(name, *figures, milliseconds(one["latency_ms"]))
    return made


def _fewer(before: int, after: int) -> str:
    kept = 100 * after / before if before else 100.0
    return f"{kept:.1f} % kept"

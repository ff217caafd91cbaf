"""The page of a sweep: a slider over budgets, and what each of them leads to."""

import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any


def explore_page(found: Mapping[str, Any]) -> str:
    """Return the page as one file of HTML: no script, style, font or image is anywhere else.

    Parameters
    ----------
    found
        What ``clusterprune explore`` writes to its `result.json`.
    """
    rows = sorted(found["rows"], key=lambda row: row["macs"])
    start = min(range(len(rows)), key=lambda number: abs(rows[number]["keep"] - 0.5))
    shown = {name: found[name] for name in ("about", "note", "metric", "latency")} | {"rows": rows, "start": start}
    # Inside of a script "<" could be the end of it.
    data = json.dumps(shown, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    template = files("clusterprune.report").joinpath("templates", "explore.html").read_text(encoding="utf-8")
    title = html.escape(f"{found['model']}: what a budget leads to")
    return template.replace("{{title}}", title).replace("{{data}}", data)

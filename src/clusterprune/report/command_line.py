"""The command that made a run, and what it ran on: all that is needed to have it once more."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from clusterprune.report._base import Display, Rows, single
from clusterprune.report.run import Run


class CommandLine(Display):
    """Command, options, versions, device and times."""

    name: ClassVar[str] = "command"
    title: ClassVar[str] = "Command and environment"
    folded: ClassVar[bool] = False

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Self | None:
        """Read ``result.json`` and ``config.yaml``."""
        run = single(runs)
        if run is None:
            return None
        result, rows = run.result, list[dict[str, Any]]()
        rows += _rows("", {name: result.get(name) for name in ("command_line", "working_folder", "device", "threads")})
        rows += _rows("version of ", result.get("versions", {}))
        rows += _rows("--", {k.replace("_", "-"): v for k, v in run.config.items() if k not in ("command", "code")})
        rows += _rows("seconds: ", result.get("seconds", {}))
        made: Rows = [row for row in rows if row["value"] not in (None, [])]
        line = result.get("command_line") or f"clusterprune {run.command}"
        return cls(made, f"Made by: {line}") if made else None


def _rows(prefix: str, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each fact; the names of options stay as they are typed."""
    names = {name: f"{prefix}{name}" for name in facts}
    return [
        {"fact": shown if prefix == "--" else shown.replace("_", " "), "value": facts[name]}
        for name, shown in names.items()
    ]

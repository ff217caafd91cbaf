"""Write docs/methods.md: every setting of every method, read off the methods' own fields; a test keeps it."""

from dataclasses import Field
from pathlib import Path
from typing import Any, get_type_hints

from clusterprune.methods import METHODS, find
from clusterprune.methods._settings import default_of, descriptions, settings_of

HEAD = """# The settings of the methods

Made by `python docs/make_methods.py` from the methods' own fields; do not edit.

`--set NAME=VALUE` gives any of them, a recipe has them under `settings`, `compare` takes them as
`METHOD:NAME=VALUE`, and Python as fields: `cp.ICP(keep_macs=0.5, cut=cp.ClusterCut(survivors="medoid"))`. Settings of a
cut may stand in its own mapping (`cut: {eps: 0.02}`) or beside the others (`eps: 0.02`); `cut=NAME` takes another kind.
Those that are options of `compress` too are marked with their name.
"""


def page() -> str:
    """Return the page."""
    parts: dict[str, type[Any]] = {}
    lines = [HEAD]
    once = [name for name in METHODS if find(name).__bases__ == find("oneshot").__mro__[:1]]
    for name in METHODS:
        if name in once:
            continue
        method = find(name)
        also = f", and of {', '.join(f'`{one}`' for one in once)}" if name == "oneshot" else ""
        lines += [f"## `{name}`{also}", "", _text((method.__doc__ or "").split("\n")[0]), ""]
        lines += _table(method)
        for preset, values in method.presets.items():
            told = ", ".join(f"{key}={value}" for key, value in values.items())
            lines += [f"`preset={preset}` stands for {told}.", ""]
        for each in [name, *once] if name == "oneshot" else [name]:
            for kinds in find(each).parts.values():
                parts |= {other: kind for other, kind in kinds.items() if kind not in parts.values()}
    for name, kind in parts.items():
        title = "criterion" if kind.__name__ == "CriterionCut" else name
        lines += [f"## A cut: `{title}`", "", _text((kind.__doc__ or "").split("\n")[0]), "", *_table(kind)]
    return "\n".join(lines).rstrip() + "\n"


def _table(kind: type[Any]) -> list[str]:
    hints, told = get_type_hints(kind), descriptions(kind)
    rows = [
        f"| `{one.name}`{_option(one)} | {_value(default_of(one))} | {_text(told[one.name])} |"
        for one in settings_of(kind)
        if one.name in hints
    ]
    return ["| setting | default | |", "|---|---|---|", *rows, ""]


def _option(one: Field[Any]) -> str:
    if "metavar" not in one.metadata:
        return ""
    names = one.metadata["names"] or (f"--{one.name.replace('_', '-')}",)
    return f" `{names[0]}`"


def _value(value: Any) -> str:
    text = f"{type(value).__name__}()" if hasattr(value, "__dataclass_fields__") else str(value)
    return "" if value is None or value == () else f"`{text}`"


def _text(text: str) -> str:
    return text.replace("|", "\\|").replace(":func:", "").replace(":class:", "").replace(":meth:", "")


if __name__ == "__main__":
    (Path(__file__).parent / "methods.md").write_text(page())

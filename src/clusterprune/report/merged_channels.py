"""Channels that others stand in for, as pictures of what they see (the picture of CP Fig. 1a)."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import ClassVar, Self

from PIL import Image
from plotly.graph_objects import Figure

from clusterprune.report._base import Display, Rows, single
from clusterprune.report._style import figure
from clusterprune.report.run import CUT_FOLDER, Run

_LARGEST = 1 << 22
"""Bytes of a picture of ours, and many more."""


@dataclass(frozen=True)
class MergedChannels(Display):
    """Pairs of a removed channel and the kept one that is most like it, by their feature maps.

    Attributes
    ----------
    sheets
        The picture of each group, as a PNG; with its size in pixels.
    """

    name: ClassVar[str] = "merged-channels"
    title: ClassVar[str] = "Channels that did the same work"

    sheets: tuple[tuple[str, bytes, tuple[int, int]], ...]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Self | None:
        """Read the pictures that the run has made at its first cut."""
        run = single(runs)
        found = [] if run is None else run.cut.get("similar", [])
        rows: Rows = []
        sheets = []
        for number, one in enumerate(found):
            sheet = _read(run.folder / CUT_FOLDER / f"{number}.png") if run is not None else None
            if sheet is None:
                continue
            sheets.append((one["group"], *sheet))
            rows += [
                {"group": one["group"], "removed channel": gone, "kept channel": stays, "correlation": alike}
                for gone, stays, alike in zip(one["removed"], one["kept"], one["correlation"], strict=True)
            ]
        if not rows:
            return None
        best = max(rows, key=lambda row: row["correlation"])
        return cls(
            rows,
            f"{len(rows)} pairs of feature maps, each a removed channel beside the kept one most like it. The most "
            f"alike are channels {best['removed channel']} and {best['kept channel']} of {best['group']}, with a "
            f"correlation of {best['correlation']:.3f}.",
            tuple(sheets),
        )

    def plot(self) -> Figure:
        """Place the pictures below one another, with the names of their groups."""
        gap = 26
        wide = max(size[0] for _, _, size in self.sheets)
        tall = sum(size[1] + gap for _, _, size in self.sheets)
        images, labels, top = [], [], 0
        for group, png, size in self.sheets:
            labels.append(
                {"text": f"{group}: removed left, kept right", "x": 0, "y": -top, "xref": "x", "yref": "y",
                 "xanchor": "left", "yanchor": "top", "showarrow": False}
            )  # fmt: skip
            source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            images.append(
                {"source": source, "x": 0, "y": -top - 20, "sizex": size[0], "sizey": size[1], "xref": "x", "yref": "y",
                 "layer": "above"}
            )  # fmt: skip
            top += size[1] + gap
        hidden = {"visible": False}
        return figure(
            [{"type": "scatter", "x": [0, wide], "y": [0, -tall], "mode": "markers", "marker": {"opacity": 0},
              "hoverinfo": "skip", "showlegend": False}],
            height=min(900, tall + 30), images=images, annotations=labels,
            xaxis=hidden | {"range": [0, wide], "constrain": "domain"},
            yaxis=hidden | {"range": [-tall, 0], "scaleanchor": "x", "constrain": "domain", "constraintoward": "top"},
        )  # fmt: skip


def _read(path: Path) -> tuple[bytes, tuple[int, int]] | None:
    """Return a PNG and its size; None where there is none, or something else."""
    try:
        if path.stat().st_size > _LARGEST:
            return None
        content = path.read_bytes()
        with Image.open(BytesIO(content), formats=("PNG",)) as image:
            return content, image.size
    except (OSError, ValueError):
        return None

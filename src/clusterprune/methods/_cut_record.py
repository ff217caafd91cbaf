"""What a report shows of a cut: what could not be cut and why, and pictures of channels that others stand in for."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from clusterprune.files.writing import atomic_folder, write_json
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.channels import frozen_layers
from clusterprune.graph.images import Images, as_inputs, batches
from clusterprune.graph.program import Program, named_tensors
from clusterprune.plan import Plan

FOLDER_NAME, RECORD_NAME = "cut-record", "cut.json"
_IMAGES, _PAIRS, _GROUPS = 6, 6, 4
"""Of how many images maps are compared, and how many pairs of channels, of how many groups, are shown."""
_SHOWN = 3
"""Images by which a pair is shown."""
_SIDE = 48
"""Pixels of a map's longer side in a picture; larger maps are shrunk, smaller ones enlarged."""
_LEAST_AREA = 4
"""Positions that a map must have to look like anything."""


def record_cut(folder: Path, graph: ChannelGraph, plan: Plan, images: Callable[[], Images | None]) -> None:
    """Write what a report shows of a cut into a run's folder, unless it is there.

    Parameters
    ----------
    folder
        Of the run; a folder in it, ``cut-record/``, gets ``cut.json`` and a PNG for each group that is shown.
    images
        Returns normalised inputs, of which the first few are run; None leaves out the pictures.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    if (folder / FOLDER_NAME).exists():
        return
    drawn = images()
    shown = [] if drawn is None else _similar(graph, plan, drawn)
    with atomic_folder(folder / FOLDER_NAME) as place:
        for number, one in enumerate(shown):
            one.pop("sheet").save(place / f"{number}.png")
        frozen = [vars(layers) | {"layers": list(layers.layers)} for layers in frozen_layers(graph)[1]]
        widths = {group.name: group.width for group in graph.prunable}
        write_json(place / RECORD_NAME, {"groups": widths, "frozen": frozen, "similar": shown})


def _similar(graph: ChannelGraph, plan: Plan, images: Images) -> list[dict[str, Any]]:
    """Return the pairs of a removed and a kept channel whose maps are most alike, by group, with their pictures."""
    cut: dict[str, list[int]] = {
        m.group: m.kept.tolist() for m in plan.merges if len(m.kept) < graph.by_name[m.group].width
    }
    groups = [graph.by_name[name] for name in cut]
    found: list[dict[str, Any]] = []
    for group, maps in zip(groups, _maps_of(graph, groups, images), strict=True):
        if maps is not None and maps.ndim == 4 and maps[0, 0].numel() >= _LEAST_AREA:
            kept: list[int] = cut[group.name]
            found.append({"group": group.name} | _pairs(maps, kept))
    found = [one for one in found if one["removed"]]
    # From the first to the last, evenly.
    count = min(_GROUPS, len(found))
    return [found[round(index * (len(found) - 1) / max(1, count - 1))] for index in range(count)]


def _pairs(maps: Tensor, kept: Sequence[int]) -> dict[str, Any]:
    """Return the most similar pairs of one group's maps (images, channels, height, width)."""
    removed = sorted(set(range(maps.shape[1])) - set(kept))
    rows = maps.transpose(0, 1).flatten(1).double()
    rows = functional.normalize(rows - rows.mean(1, keepdim=True))
    alike, place = (rows[removed] @ rows[list(kept)].T).max(1)
    best = [int(index) for index in alike.argsort(descending=True, stable=True)[:_PAIRS]]
    pairs = [(removed[index], kept[int(place[index])]) for index in best if float(alike[index]) > 0]
    return {
        "removed": [gone for gone, _ in pairs],
        "kept": [stays for _, stays in pairs],
        "correlation": [round(float(alike[index]), 4) for index in best[: len(pairs)]],
        "sheet": _sheet(maps, pairs),
    }


def _sheet(maps: Tensor, pairs: Sequence[tuple[int, int]]) -> Image.Image:
    """Draw pairs side by side, removed left and kept right, by image from top to bottom; each channel in its range."""
    height, width = maps.shape[-2:]
    scale = _SIDE / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    low, high = maps.amin((0, 2, 3), keepdim=True), maps.amax((0, 2, 3), keepdim=True)
    grey = functional.interpolate((maps - low) / (high - low).clamp_min(1e-12), size=size, mode="nearest")
    # Grey and opacity: nothing is between the maps.
    sheet = torch.zeros(_SHOWN * (size[0] + 2), max(1, len(pairs)) * (2 * size[1] + 14), 2)
    for column, pair in enumerate(pairs):
        for side, channel in enumerate(pair):
            left = column * (2 * size[1] + 14) + side * (size[1] + 2)
            for row in range(min(_SHOWN, len(grey))):
                top = row * (size[0] + 2)
                sheet[top : top + size[0], left : left + size[1], 0] = grey[row, channel]
                sheet[top : top + size[0], left : left + size[1], 1] = 1.0
    return Image.fromarray((sheet * 255).round().byte().numpy(), "LA")


def _maps_of(graph: ChannelGraph, groups: Sequence[Group], images: Images) -> list[Tensor | None]:
    """Return the maps of every group's channels, (images, channels, ...), as its first layer makes them."""
    calls = {call.weight: call for call in graph.calls}
    made = [(calls.get(group.producers[0].path), group.producers[0].positions[:, 0]) for group in groups]
    # With the traced batch size, the model need not be exported a second time.
    program, size = Program(graph, any_batch=False), len(graph.example_tensors[0])
    names = {call.node for call, _ in made if call is not None and call.node in program.index}
    gathered: dict[str, list[Tensor]] = {name: [] for name in names}
    weights = program.weights(named_tensors(graph))
    few = tuple(tensor[: max(_IMAGES // size, 1) * size] for tensor in as_inputs(images))
    with torch.no_grad():
        for batch in batches(few, size):
            if len(batch[0]) == size:
                for name, value in program.visit(program.bind(batch) | weights, names):
                    gathered[name].append(value.float().cpu())
    found: list[Tensor | None] = []
    for call, positions in made:
        parts = gathered.get(call.node) if call is not None else None
        if call is None or not parts:
            found.append(None)
        else:
            found.append(torch.cat(parts).movedim(call.channel_dim, 1)[:, torch.as_tensor(positions)])
    return found

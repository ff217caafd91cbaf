"""A picture of what networks make of some test images, beside a run's numbers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils import _pytree as pytree

from clusterprune.data import Split
from clusterprune.files.writing import output_errors
from clusterprune.graph.throwaway import evaluating
from clusterprune.tasks import Task

SHEET_NAME = "sheet.png"
SHEET_IMAGES = 6


def write_sheet(path: Path, models: Mapping[str, Callable[[], nn.Module | None]], task: Task, test: Split) -> bool:
    """Draw some test images, evenly spaced, with what each network makes of them; tell whether there was anything.

    Parameters
    ----------
    models
        By name, what returns each, or None where there is none; asked only where something can be drawn.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    count = min(SHEET_IMAGES, len(test))
    positions = torch.arange(count) * len(test) // count
    images, targets = test.images(positions), task.targets(test)(positions)
    if task.sheet(images, targets, {}) is None:
        return False
    outputs: dict[str, Any] = {}
    with torch.inference_mode():
        for name, made in models.items():
            if (model := made()) is not None:
                like = next(model.parameters())
                with evaluating(model):
                    found = model(task.normalize(images).to(like))
                outputs[name] = pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, found)
        sheet = task.sheet(images, targets, outputs)
    if sheet is None:
        return False
    with output_errors(path):
        Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy()).save(path)
    return True

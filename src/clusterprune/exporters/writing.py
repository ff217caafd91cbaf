"""Writing a file whole or not at all, and checking it against PyTorch before it counts."""

import copy
import os
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from clusterprune.arguments import type_name
from clusterprune.errors import ArgumentError, ExportError, OutputError
from clusterprune.exporters._base import Exported, Exporter, Runner, Source
from clusterprune.exporters._registry import create
from clusterprune.files.writing import output_errors
from clusterprune.graph.arguments import check_model

BATCHES = (1, 2, 7)
"""Numbers of images at which every file is run."""
TOLERANCE = 1e-3
"""Relative to the largest output of an image: a runtime orders its sums in its own way."""


def export(
    model: nn.Module,
    images: Tensor,
    path: str | Path,
    *,
    format: str | Exporter = "onnx",  # noqa: A002 (the word that everybody knows)
    calibration: Tensor | None = None,
) -> Exported:
    """Write a model, compact or not, in a format that something else runs, and check the file against PyTorch.

    Parameters
    ----------
    model
        Never changed; written as it is in evaluation mode.
    images
        Normalised inputs that the file is checked on, shape (n, c, h, w); one is enough, real ones tell more.
    path
        Of the file; must not exist. Its ending is left as it is.
    format
        "onnx", "pt2", "torch" (a Python file with a state dict beside it), "int8", or an exporter with options, such
        as ``Onnx(opset=20)``.
    calibration
        Normalised inputs for "int8", of which a few hundred do.

    Returns
    -------
    Exported
        Size, largest difference from PyTorch at batches of 1, 2 and 7, and facts such as the opset.

    Raises
    ------
    ExportError
        If the format cannot hold the model, or the file computes something else; nothing is left at `path` then.
    ArgumentError
        If an argument does not fit, or a package is not installed.
    OutputError
        If the file exists or cannot be written.

    Examples
    --------
    >>> import tempfile, torch
    >>> from clusterprune.exporters import export
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = export(torch.nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8), f"{folder}/conv.pt2", format="pt2")
    ...     made.batches
    (1, 2, 7)
    """
    check_model(model)
    exporter = create(format) if isinstance(format, str) else format
    for name, value in (("images", images), ("calibration", calibration)):
        if not (isinstance(value, Tensor) and value.ndim > 1 and len(value)) and not (
            name == "calibration" and value is None
        ):
            raise ArgumentError(f"{name} must be a tensor of inputs, (n, c, h, w), but got {name}={type_name(value)}")
    target = Path(path).expanduser()
    if target.exists():
        raise OutputError(f"path={str(path)!r} exists; export to another name, or remove it first")
    source = Source(
        copy.deepcopy(model).cpu().eval().requires_grad_(requires_grad=False),
        type(model).__name__,
        images.detach().cpu(),
        None if calibration is None else calibration.detach().cpu(),
    )
    # Into a folder beside it, so that what is moved is whole, and on the same disk.
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder:
            draft = Path(folder) / target.name
            facts = exporter.write(source, draft)
            difference = compare(source.model, exporter.open(draft), source.example)
            if exporter.exact and not difference <= TOLERANCE:
                raise ExportError(
                    f"the file that format={exporter.name!r} made differs from PyTorch by {difference:.2g} of the "
                    "largest output, so that it was thrown away; export in another format"
                )
            written = sorted(Path(folder).iterdir())
            size = sum(file.stat().st_size for file in written)
            for file in written:
                file.chmod(0o666 & ~_umask())
                shutil.move(file, target.parent / file.name)
    return Exported(target, exporter.name, size, BATCHES, difference, facts)


def compare(model: nn.Module, run: Runner, images: Tensor) -> float:
    """Return the largest difference from PyTorch over batches of 1, 2 and 7, relative to the largest output.

    Raises
    ------
    ExportError
        If the file cannot be run, or has other outputs.
    """
    worst = 0.0
    for count in BATCHES:
        batch = images.repeat(-(-count // len(images)), *[1] * (images.ndim - 1))[:count].contiguous()
        with torch.no_grad():
            expected = [t for t in pytree.tree_leaves(model(batch)) if isinstance(t, Tensor)]
        try:
            found = run(batch)
        except Exception as error:  # whatever a runtime raises
            raise ExportError(f"the file does not run on a batch of {count}: {error}") from error
        if [t.shape for t in found] != [t.shape for t in expected]:
            shapes = [[tuple(t.shape) for t in each] for each in (found, expected)]
            raise ExportError(f"the file's outputs have the shapes {shapes[0]}, PyTorch's {shapes[1]}")
        for own, theirs in zip(found, expected, strict=True):
            scale = theirs.double().abs().max().clamp_min(1e-12)
            worst = max(worst, float((own.double() - theirs.double()).abs().max() / scale))
    return worst


def _umask() -> int:
    """Return the mask of the modes of new files, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask

"""PyTorch's own exported program, which PyTorch and ExecuTorch load without the model's code."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from clusterprune.errors import ExportError
from clusterprune.exporters._base import Runner, Source
from clusterprune.graph.export import first_line, silence
from clusterprune.runtimes.running import at_least_two, open_dimensions, with_threads


@dataclass(frozen=True)
class Pt2:
    """An exported program, with the batch left open."""

    name: ClassVar[str] = "pt2"
    suffix: ClassVar[str] = ".pt2"
    exact: ClassVar[bool] = True
    calibrates: ClassVar[bool] = False

    def write(self, source: Source, path: Path) -> dict[str, Any]:
        """Write the program with its weights; see :class:`clusterprune.exporters.Exporter`."""
        with silence(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            try:
                program = torch.export.export(
                    source.model, (at_least_two(source.example),), dynamic_shapes=(open_dimensions(0),), strict=False
                )
            except Exception as error:  # whatever the exporter or a model's forward may raise
                raise ExportError(
                    f"{source.name} cannot be exported with an open batch: {first_line(error)}. Export "
                    "it with format='torch', or export the part that can be"
                ) from error
            torch.export.save(program, path)
        return {"torch": torch.__version__, "open_dimensions": [0]}

    def open(self, path: Path, *, threads: int | None = None) -> Runner:
        """Return what runs the program; see :class:`clusterprune.exporters.Exporter`."""
        with silence(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.export.load(path).module()

        def run(images: Tensor) -> list[Tensor]:
            with torch.no_grad():
                return [t for t in pytree.tree_leaves(module(images)) if isinstance(t, Tensor)]

        return with_threads(run, threads)

"""What an exporter is, what it is given, and what came of it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

Runner = Callable[[Tensor], list[Tensor]]
"""Computes all outputs of a batch, in the order of the model's own."""


@dataclass(frozen=True, eq=False)
class Source:
    """What is exported.

    Attributes
    ----------
    model
        In evaluation mode, on the CPU; exporters do not change it.
    name
        Of the model's class.
    example
        Inputs of the model, shape (n, c, h, w), real ones where there are any; each format is checked on them.
    calibration
        Inputs that a quantised format measures its ranges on, (n, c, h, w); None where there are none.
    """

    model: nn.Module
    name: str
    example: Tensor
    calibration: Tensor | None = None


@runtime_checkable
class Exporter(Protocol):
    """Writes a model in one format, and runs what it has written.

    An implementation is a frozen dataclass whose fields are its options.

    Attributes
    ----------
    name
        By which ``--format`` and :func:`clusterprune.exporters.export` know it.
    suffix
        Of its file.
    exact
        Whether the outputs are the model's to rounding. Those of a quantised model are not.
    calibrates
        Whether it measures something on images, so that :attr:`Source.calibration` is needed.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    exact: ClassVar[bool]
    calibrates: ClassVar[bool]

    def write(self, source: Source, path: Path) -> dict[str, Any]:
        """Write the file, and return what is to be known of it, such as the opset, by name.

        Raises
        ------
        ExportError
            If the format cannot hold the model.
        ArgumentError
            If something that the format needs was not given, or a package is not installed.
        """
        ...

    def open(self, path: Path, *, threads: int | None = None) -> Runner:
        """Return what runs the file, on the CPU; with so many threads, or as many as the runtime takes by itself."""
        ...


class FromFile(nn.Module):
    """A file that was exported, as a module: for what measures networks.

    Parameters
    ----------
    run
        What an exporter's `open` returned. A single output comes as a tensor, several as a tuple.
    """

    def __init__(self, run: Runner) -> None:
        super().__init__()
        self._run = run

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute the outputs of a batch."""
        outputs = self._run(images)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


@dataclass(frozen=True)
class Exported:
    """A file, checked against PyTorch.

    Attributes
    ----------
    path, format, bytes
        The file, how it is written, and how large it is, with the weights beside it.
    batches
        Numbers of images at which the file was run.
    difference
        Largest difference of an output from PyTorch's, relative to the largest output of that image.
    facts
        What the exporter has to say, such as the opset.
    """

    path: Path
    format: str
    bytes: int
    batches: tuple[int, ...]
    difference: float
    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self) | {"path": str(self.path)}

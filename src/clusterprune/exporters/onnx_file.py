"""ONNX, by PyTorch's exporter, run by ONNX Runtime."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from clusterprune.errors import ArgumentError, ExportError
from clusterprune.exporters._base import Runner, Source
from clusterprune.runtimes.running import INPUT, OPSET, onnx_session, open_dimensions, write_onnx


@dataclass(frozen=True)
class Onnx:
    """ONNX in float32, for any runtime that reads it.

    Attributes
    ----------
    opset
        Version of the operators; 18 is read by ONNX Runtime from 1.14 on.
    size
        Whether the height and width of the images are left open too, where the model allows it.
    """

    opset: int = OPSET
    size: bool = False

    name: ClassVar[str] = "onnx"
    suffix: ClassVar[str] = ".onnx"
    exact: ClassVar[bool] = True
    calibrates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.opset, int) or not OPSET <= self.opset <= 30:
            raise ArgumentError(f"opset must be a whole number from {OPSET} to 30, but got opset={self.opset!r}")

    def write(self, source: Source, path: Path) -> dict[str, Any]:
        """Write one file, weights included, with an open batch; see :class:`clusterprune.exporters.Exporter`."""
        dims = (0, 2, 3) if self.size and source.example.ndim == 4 else (0,)
        try:
            write_onnx(source.model, source.example, path, opset=self.opset, dynamic=open_dimensions(*dims))
        except ExportError:
            if len(dims) == 1:
                raise
            dims = (0,)
            write_onnx(source.model, source.example, path, opset=self.opset, dynamic=open_dimensions(*dims))
        return {"opset": self.opset, "input": INPUT, "open_dimensions": list(dims)}

    def open(self, path: Path, *, threads: int | None = None) -> Runner:
        """Return a session of ONNX Runtime on the CPU; see :class:`clusterprune.exporters.Exporter`."""
        return onnx_session(path, threads)

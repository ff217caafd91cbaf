"""ONNX, by PyTorch's exporter, run by ONNX Runtime."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.export import Dim

from clusterprune.errors import ArgumentError, ExportError
from clusterprune.export._base import Runner, Source, optional_package
from clusterprune.graph.export import first_line, silence

INPUT = "images"


@dataclass(frozen=True)
class Onnx:
    """ONNX in float32, for any runtime that reads it.

    Attributes
    ----------
    opset
        Version of the operators; 18 is read by ONNX Runtime from 1.14 on, and by TensorRT from 8.6 on.
    size
        Whether the height and width of the images are left open too, where the model allows it.
    """

    opset: int = 18
    size: bool = False

    name: ClassVar[str] = "onnx"
    suffix: ClassVar[str] = ".onnx"
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.opset, int) or not 18 <= self.opset <= 30:
            raise ArgumentError(f"opset must be a whole number from 18 to 30, but got opset={self.opset!r}")

    def write(self, source: Source, path: Path) -> dict[str, Any]:
        """Write one file that holds its weights, with the batch left open; see :class:`Exporter`."""
        for package in ("onnx", "onnxscript"):
            optional_package(package, "the format onnx", "onnx")
        free: list[dict[int, Any]] = [{0: Dim.DYNAMIC}]
        if self.size and source.example.ndim == 4:
            free.insert(0, {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC})
        failure = Exception()
        for dynamic in free:
            try:
                self._write(source, path, dynamic)
            except Exception as error:  # whatever the exporter or a model's forward may raise
                failure = error
            else:
                return {"opset": self.opset, "input": INPUT, "dynamic": sorted(dynamic)}
        raise ExportError(
            f"{source.name} cannot be written as ONNX: {first_line(failure)}. Export it with "
            "format='torch' or 'pt2', or export the part that can be"
        ) from failure

    def _write(self, source: Source, path: Path, dynamic: dict[int, Any]) -> None:
        with silence(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                source.model,
                (at_least_two(source.example),),
                str(path),
                input_names=[INPUT],
                dynamic_shapes=(dynamic,),
                opset_version=self.opset,
                dynamo=True,
                external_data=False,
                verbose=False,
            )

    def open(self, path: Path, *, threads: int | None = None) -> Runner:
        """Return a session of ONNX Runtime on the CPU; see :class:`Exporter`."""
        return onnx_session(path, threads)


def onnx_session(path: Path, threads: int | None) -> Runner:
    """Return what runs an ONNX file in ONNX Runtime on the CPU.

    Raises
    ------
    ArgumentError
        If ONNX Runtime is not installed.
    """
    onnxruntime = optional_package("onnxruntime", "running ONNX", "onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {name: images.numpy()})]

    return run


def at_least_two(images: Tensor) -> Tensor:
    """Return images of which there are two at least: an export takes a batch of one for a constant."""
    return images if len(images) > 1 else images.expand(2, *images.shape[1:]).contiguous()

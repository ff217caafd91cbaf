"""ONNX in eight bits: ONNX Runtime's static quantisation, one scale per channel of the kernels."""

import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from clusterprune.errors import ArgumentError, ExportError
from clusterprune.exporters._base import Runner, Source
from clusterprune.exporters.onnx_file import Onnx
from clusterprune.graph.export import first_line, silence
from clusterprune.runtimes.running import INPUT, OPSET, onnx_session, optional_package

CALIBRATION = "onnxruntime.quantization"


@dataclass(frozen=True)
class Int8:
    """ONNX whose kernels and maps are whole numbers of eight bits, with scales from calibration images.

    Attributes
    ----------
    opset
        As of :class:`clusterprune.exporters.Onnx`.
    ranges
        How the range of a map is found from what the calibration images show: "minmax", or "percentile", which
        leaves 0.001 % of the values outside, for maps with a few very large ones.
    batch
        Calibration images that run at a time.
    """

    opset: int = OPSET
    ranges: Literal["minmax", "percentile"] = "minmax"
    batch: int = 16

    name: ClassVar[str] = "int8"
    suffix: ClassVar[str] = ".int8.onnx"
    exact: ClassVar[bool] = False
    calibrates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Onnx(self.opset)
        if self.ranges not in ("minmax", "percentile"):
            raise ArgumentError(f"ranges must be 'minmax' or 'percentile', but got ranges={self.ranges!r}")

    def write(self, source: Source, path: Path) -> dict[str, Any]:
        """Write ONNX in float, and quantise it; see :class:`clusterprune.exporters.Exporter`."""
        if source.calibration is None:
            raise ArgumentError(
                "format='int8' measures the ranges of maps on images, but calibration=None; give images that the model "
                "may see, a few hundred, without labels"
            )
        quantization = optional_package(CALIBRATION, "the format int8", "onnx")
        preparation = optional_package(f"{CALIBRATION}.shape_inference", "the format int8", "onnx")
        ranges = {
            "minmax": quantization.CalibrationMethod.MinMax,
            "percentile": quantization.CalibrationMethod.Percentile,
        }[self.ranges]
        batches = _Batches(source.calibration, self.batch)
        with tempfile.TemporaryDirectory() as folder, silence(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            real, prepared = Path(folder) / "float.onnx", Path(folder) / "prepared.onnx"
            facts = Onnx(self.opset).write(source, real)
            try:
                # Norms and rectifiers are joined to their layers first: a map between them needs no scale.
                preparation.quant_pre_process(str(real), str(prepared), skip_symbolic_shape=True)
                quantization.quantize_static(
                    str(prepared),
                    str(path),
                    batches,
                    quant_format=quantization.QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                    calibrate_method=ranges,
                    # Without it, sums in sixteen bits may overflow on processors that have no VNNI.
                    reduce_range=not _has_vnni(),
                    extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
                )
            except Exception as error:  # whatever the quantiser may raise
                raise ExportError(
                    f"{source.name} cannot be quantised: {first_line(error)}. Export it as ONNX, and "
                    "quantise what you can"
                ) from error
        return facts | {"calibration_images": len(source.calibration), "ranges": self.ranges}

    def open(self, path: Path, *, threads: int | None = None) -> Runner:
        """Return a session of ONNX Runtime on the CPU; see :class:`clusterprune.exporters.Exporter`."""
        return onnx_session(path, threads)


class _Batches:
    """Hands calibration images to the quantiser, batch by batch."""

    def __init__(self, images: Tensor, batch: int) -> None:
        self._images, self._batch = images, batch
        self.rewind()

    def rewind(self) -> None:
        """Begin anew."""
        self._left: Iterator[Tensor] = iter(self._images.split(self._batch))

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch by the name of the model's input, or None after the last."""
        batch = next(self._left, None)
        return None if batch is None else {INPUT: batch.numpy()}


def _has_vnni() -> bool:
    """Tell whether this processor multiplies bytes without rounding in between; other systems are taken to."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return True
    return "vnni" in text or "flags" not in text

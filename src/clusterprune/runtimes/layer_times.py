"""What one layer takes on the runtime that will serve, by its shape; measured once, and kept in a file that travels.

A network's time is not its multiply-adds: narrow layers on large maps wait for memory, and a kernel made for blocks of
eight channels takes as long for nine as for sixteen. So layers are timed by themselves, at several widths.
"""

import json
import platform
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from clusterprune.errors import DataError
from clusterprune.files.reading import ReadError, read_json
from clusterprune.files.writing import write_file
from clusterprune.runtimes.running import OPSET, OnnxRuntime, Runtime, clock_of, onnx_session, optional_package

Kind = Literal["conv", "linear", "join"]


@dataclass(frozen=True)
class LayerShape:
    """A layer and the maps that it reads, as far as its time depends on them.

    Attributes
    ----------
    kind
        "conv" (of one, two or three dimensions), "linear", or "join": two maps added and rectified, which stands for
        all that only moves numbers.
    batch, inputs, outputs
        Images, and channels read and made.
    size
        Of the maps that are read, without batch and channels.
    kernel, stride, padding, dilation, groups, transposed
        Of a convolution.
    """

    kind: Kind
    batch: int
    inputs: int
    outputs: int
    size: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False

    @property
    def key(self) -> str:
        """Text by which a table knows the shape."""
        numbers = ["x".join(map(str, part)) for part in (self.kernel, self.stride, self.padding, self.dilation)]
        way = "transposed " if self.transposed else ""
        size = "x".join(map(str, self.size)) or "1"
        return " ".join(
            [f"{way}{self.kind}", f"{self.batch}:{self.inputs}>{self.outputs}", f"@{size}", *filter(None, numbers)]
            + ([f"g{self.groups}"] if self.groups > 1 else [])
        )

    def module(self) -> nn.Module:
        """Return a layer of this shape, with a rectifier behind it, in evaluation mode."""
        if self.kind == "join":
            return _Join().eval()
        if self.kind == "linear":
            return nn.Sequential(nn.Linear(self.inputs, self.outputs), nn.ReLU()).eval()
        kinds = {
            False: (nn.Conv1d, nn.Conv2d, nn.Conv3d),
            True: (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        }
        make: Any = kinds[self.transposed][len(self.size) - 1]
        layer = make(
            self.inputs, self.outputs, self.kernel, stride=self.stride, padding=self.padding, dilation=self.dilation,
            groups=self.groups,
        )  # fmt: skip
        return nn.Sequential(layer, nn.ReLU()).eval()

    def images(self) -> torch.Tensor:
        """Return noise for the layer to read."""
        return torch.randn(self.batch, self.inputs, *self.size, generator=torch.Generator().manual_seed(0))


class _Join(nn.Module):
    """A shortcut's end."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.relu(maps + maps.flip(1))


class LatencyTable:
    """Milliseconds of layers on one runtime and machine, measured when first asked for.

    Parameters
    ----------
    runtime
        What runs the layers.
    path
        File to keep the times in; read if it exists, written by :meth:`save`. A table that was measured on another
        machine, such as a phone, is taken as it is.
    seconds
        For how long a layer is run.

    Raises
    ------
    DataError
        If the file is no table of this runtime.
    """

    def __init__(self, runtime: Runtime, path: str | Path | None = None, *, seconds: float = 0.02) -> None:
        self.runtime, self.seconds = runtime, seconds
        self.path = None if path is None else Path(path).expanduser()
        self.times: dict[str, float] = {}
        self.measured = 0
        self._calls: dict[str, Callable[[], object]] = {}
        if self.path is not None and self.path.exists():
            self.times = self._read(self.path)

    def ms(self, shape: LayerShape) -> float:
        """Return the median time of a layer in milliseconds, less what calling anything takes."""
        if shape.key not in self.times:
            self.times[shape.key] = self._measure(shape)
            self.measured += 1
        return self.times[shape.key]

    def save(self) -> None:
        """Write the table, if it has a file.

        Raises
        ------
        OutputError
            If the file cannot be written.
        """
        if self.path is None:
            return
        document = {
            "format": "clusterprune-latency",
            "version": 1,
            "runtime": {"name": self.runtime.name, **asdict(self.runtime)},  # type: ignore[call-overload]
            "machine": platform.processor() or platform.machine(),
            "ms": dict(sorted(self.times.items())),
        }
        write_file(self.path, (json.dumps(document, indent=1) + "\n").encode())

    def _read(self, path: Path) -> dict[str, float]:
        try:
            content = read_json(path)
        except ReadError as error:
            raise DataError(f"latency table {str(path)!r} {error}; remove it to have it measured anew") from error
        times = content.get("ms") if isinstance(content, dict) else None
        if not isinstance(times, dict) or content.get("format") != "clusterprune-latency":
            raise DataError(f"latency table {str(path)!r} holds no times by layer; remove it, or name another file")
        asked = {"name": self.runtime.name, **asdict(self.runtime)}  # type: ignore[call-overload]
        if content.get("runtime") != asked:
            raise DataError(
                f"latency table {str(path)!r} is of the runtime {content.get('runtime')}, not of {asked}; name another "
                "file"
            )
        bad = [key for key, ms in times.items() if not isinstance(ms, (int, float)) or not 0 <= ms < 1e9]
        if bad:
            raise DataError(f"latency table {str(path)!r} has {times[bad[0]]!r} for {bad[0]!r}; remove that line")
        return {str(key): float(ms) for key, ms in times.items()}

    def _measure(self, shape: LayerShape) -> float:
        images = shape.images()
        if isinstance(self.runtime, OnnxRuntime):
            run = _onnx_layer(shape, images, self.runtime.threads)
        else:
            run = self.runtime.prepare(shape.module(), images)
        for _ in range(2):
            run()
        times: list[float] = []
        clock = clock_of(self.runtime, images)
        began = clock()
        while len(times) < 5 or (clock() - began < self.seconds and len(times) < 200):
            start = clock()
            run()
            times.append(clock() - start)
        # The lower quartile: what disturbs a run only ever makes it slower.
        return 1000 * statistics.quantiles(times, n=4)[0]


def _onnx_layer(shape: LayerShape, images: torch.Tensor, threads: int | None) -> Callable[[], object]:
    """Return what runs a layer in ONNX Runtime, its file written directly: an export takes seconds a layer."""
    onnx = optional_package("onnx", "the runtime onnxruntime", "onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    weights = [p.detach().numpy() for p in shape.module().parameters()]
    stored = [onnx.numpy_helper.from_array(w, f"w{n}") for n, w in enumerate(weights)]
    if shape.kind == "join":
        nodes = [helper.make_node("Add", ["images", "images"], ["sum"]), helper.make_node("Relu", ["sum"], ["out"])]
    elif shape.kind == "linear":
        nodes = [
            helper.make_node("Gemm", ["images", "w0", "w1"], ["made"], transB=1),
            helper.make_node("Relu", ["made"], ["out"]),
        ]
    else:
        kind = "ConvTranspose" if shape.transposed else "Conv"
        settings = {
            "kernel_shape": list(shape.kernel),
            "strides": list(shape.stride),
            "pads": [*shape.padding, *shape.padding],
            "dilations": list(shape.dilation),
            "group": shape.groups,
        }
        nodes = [
            helper.make_node(kind, ["images", "w0", "w1"], ["made"], **settings),
            helper.make_node("Relu", ["made"], ["out"]),
        ]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("images", kinds.FLOAT, list(images.shape))],
        [helper.make_tensor_value_info("out", kinds.FLOAT, None)],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        onnx.save(model, str(path))
        session = onnx_session(path, threads)
    return lambda: session(images)

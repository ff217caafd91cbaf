"""What runs a model in production: PyTorch, PyTorch compiled, ONNX Runtime; each prepared once, then timed.

A runtime is asked for by a text, ``NAME[:threads=N]``: how many threads compute decides which of two networks is the
faster as much as the runtime does.
"""

import copy
import importlib
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, ParamSpec, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.export import Dim

from clusterprune.errors import ArgumentError, ExportError
from clusterprune.graph.export import first_line, silence

P = ParamSpec("P")
R = TypeVar("R")

INPUT = "images"
"""What the input of an ONNX file of ours is called."""
OPSET = 18
"""Read by ONNX Runtime from 1.14 on."""


@runtime_checkable
class Runtime(Protocol):
    """Runs networks as they run in production.

    An implementation is a frozen dataclass whose fields are its options.
    """

    name: ClassVar[str]

    def prepare(self, model: nn.Module, images: Tensor) -> Callable[[], object]:
        """Return what runs a model once on these images, as fast as this runtime can.

        Parameters
        ----------
        model
            In evaluation mode or not; never changed.
        images
            A batch, shape (n, c, h, w), on the model's device.

        Raises
        ------
        ExportError
            If this runtime cannot run the model.
        ArgumentError
            If a package is not installed.
        """
        ...


@dataclass(frozen=True)
class Torch:
    """PyTorch as it is, one operation after another.

    Attributes
    ----------
    threads
        That compute; None leaves them as they are.
    """

    threads: int | None = None

    name: ClassVar[str] = "torch"

    def __post_init__(self) -> None:
        _check_threads(self.threads)

    def prepare(self, model: nn.Module, images: Tensor) -> Callable[[], object]:
        """See :class:`Runtime`."""
        return with_threads(_on_images(copy.deepcopy(model).eval(), images), self.threads)


@dataclass(frozen=True)
class TorchCompile:
    """PyTorch, compiled for this one batch and size.

    Attributes
    ----------
    threads
        That compute; None leaves them as they are.
    """

    threads: int | None = None

    name: ClassVar[str] = "torch.compile"

    def __post_init__(self) -> None:
        _check_threads(self.threads)

    def prepare(self, model: nn.Module, images: Tensor) -> Callable[[], object]:
        """See :class:`Runtime`; compiling takes from seconds to minutes."""
        compiled = copy.deepcopy(model).eval()
        compiled.compile(dynamic=False)
        run = with_threads(_on_images(compiled, images), self.threads)
        with silence():
            try:
                run()
            except Exception as error:  # whatever the compiler or its tools may raise
                raise ExportError(
                    f"{type(model).__name__} cannot be compiled here: {first_line(error)}. Take another runtime"
                ) from error
        return run


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime on the CPU, wherever the model is.

    Attributes
    ----------
    threads
        That compute; None is one for each core.
    """

    threads: int | None = None

    name: ClassVar[str] = "onnxruntime"

    def __post_init__(self) -> None:
        _check_threads(self.threads)

    def prepare(self, model: nn.Module, images: Tensor) -> Callable[[], object]:
        """See :class:`Runtime`."""
        images = images.cpu()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            write_onnx(copy.deepcopy(model).cpu().eval(), images, path, opset=OPSET, dynamic={})
            run = onnx_session(path, self.threads)
        return lambda: run(images)


def clock_of(runtime: Runtime, images: Tensor) -> Callable[[], float]:
    """Return what tells the seconds of a run: those of the thread itself where it does all the work.

    Other programs on the machine then cost turns, but do not count.
    """
    alone = getattr(runtime, "threads", None) == 1 and images.device.type == "cpu"
    return time.thread_time if alone else time.perf_counter


_RUNTIMES: dict[str, type[Any]] = {kind.name: kind for kind in (Torch, TorchCompile, OnnxRuntime)}


def runtime_names() -> tuple[str, ...]:
    """Return the names that :func:`create_runtime` knows."""
    return tuple(_RUNTIMES)


def create_runtime(text: str) -> Runtime:
    """Return the runtime of a text, such as ``"onnxruntime"`` or ``"torch:threads=1"``.

    Raises
    ------
    ArgumentError
        If there is no such runtime, or the text is of another form.

    Examples
    --------
    >>> create_runtime("onnxruntime:threads=1")
    OnnxRuntime(threads=1)
    """
    found = re.fullmatch(r"([\w.]+)(?::threads=(\d{1,4}))?", text) if isinstance(text, str) else None
    if found is None or found[1] not in _RUNTIMES:
        raise ArgumentError(
            f"runtime={text!r} is not known; give {', '.join(_RUNTIMES)}, with threads as in 'onnxruntime:threads=1'"
        )
    return _RUNTIMES[found[1]](None if found[2] is None else int(found[2]))


def write_onnx(model: nn.Module, images: Tensor, path: Path, *, opset: int, dynamic: Mapping[int, Any]) -> None:
    """Write a model in evaluation mode as one ONNX file.

    Parameters
    ----------
    images
        A batch that it reads, on its device.
    dynamic
        Dimensions of the images that are left open, with ``Dim.DYNAMIC``.

    Raises
    ------
    ArgumentError
        If a package is not installed.
    ExportError
        If the model cannot be written.
    """
    for package in ("onnx", "onnxscript"):
        optional_package(package, "ONNX", "onnx")
    with silence(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                model,
                (at_least_two(images) if 0 in dynamic else images,),
                str(path),
                input_names=[INPUT],
                dynamic_shapes=(dict(dynamic),) if dynamic else None,
                opset_version=opset,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # whatever the exporter or a model's forward may raise
            raise ExportError(
                f"{type(model).__name__} cannot be written as ONNX: {first_line(error)}. Take another format or "
                "runtime, or the part of the model that can be"
            ) from error


def onnx_session(path: Path, threads: int | None) -> Callable[[Tensor], list[Tensor]]:
    """Return what runs an ONNX file in ONNX Runtime on the CPU: all outputs of a batch.

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


def optional_package(name: str, why: str, extra: str) -> ModuleType:
    """Import a package that an extra of ours installs.

    Raises
    ------
    ArgumentError
        If it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ArgumentError(
            f"{why} needs the package {name.partition('.')[0]}, which is not installed ({error}); "
            f"pip install 'clusterprune[{extra}]'"
        ) from error


def at_least_two(images: Tensor) -> Tensor:
    """Return images of which there are two at least: an export takes a batch of one for a constant."""
    return images if len(images) > 1 else images.expand(2, *images.shape[1:]).contiguous()


def open_dimensions(*dims: int) -> dict[int, Any]:
    """Return dimensions as :func:`write_onnx` leaves them open."""
    return dict.fromkeys(dims, Dim.DYNAMIC)


def _check_threads(threads: int | None) -> None:
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise ArgumentError(f"threads must be a whole number of at least 1, but got threads={threads!r}")


def _on_images(model: nn.Module, images: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            outputs = model(images)
        if images.device.type != "cpu":  # what was launched is not done yet
            torch.accelerator.synchronize(images.device)
        return outputs

    return run


def with_threads(run: Callable[P, R], threads: int | None) -> Callable[P, R]:
    """Return a function that computes with so many of PyTorch's threads; None leaves them as they are."""
    if threads is None:
        return run

    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return run(*args, **kwargs)
        finally:
            torch.set_num_threads(before)

    return limited

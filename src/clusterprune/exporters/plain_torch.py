"""Plain PyTorch: one Python file that builds the compact model, and a file of weights; neither needs this package.

The model's operations are traced, its layers stay layers with their own names, and what lies between them is written
as the calls that it is. The file can be read, changed and trained on.
"""

import copy
import importlib.util
import inspect
import itertools
import json
import re
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from clusterprune.errors import ExportError
from clusterprune.exporters._base import Runner, Source
from clusterprune.graph import trace
from clusterprune.runtimes.running import with_threads
from clusterprune.surgery.rebuild import graph_module, require_length

WEIGHTS = ".pt"


@dataclass(frozen=True)
class PlainTorch:
    """A Python file and its weights, for an environment with PyTorch alone."""

    name: ClassVar[str] = "torch"
    suffix: ClassVar[str] = ".py"
    exact: ClassVar[bool] = True
    calibrates: ClassVar[bool] = False

    def write(self, source: Source, path: Path) -> dict[str, Any]:
        """Write NAME.py and NAME.pt, a state dict; see :class:`clusterprune.exporters.Exporter`."""
        model = copy.deepcopy(source.model).eval()
        graph = trace(model, source.example[:1])
        built = graph_module(model, graph, {})
        text, state = source_of(built, source, path)
        torch.save(state, path.with_suffix(WEIGHTS))
        path.write_text(text, encoding="utf-8")
        return {"weights": path.with_suffix(WEIGHTS).name, "torch": torch.__version__}

    def open(self, path: Path, *, threads: int | None = None) -> Runner:
        """Import the file that was written, and build its model; see :class:`clusterprune.exporters.Exporter`."""
        name = f"_clusterprune_export_{next(_COUNT)}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ExportError(f"{path} is no Python file; export to a name that ends in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        model = module.load().eval()

        def run(images: Tensor) -> list[Tensor]:
            with torch.no_grad():
                return [t for t in pytree.tree_leaves(model(images)) if isinstance(t, Tensor)]

        return with_threads(run, threads)


_COUNT = itertools.count()
_HEADER = '''"""{name}, compact: {parameters:,} parameters. Written by clusterprune; needs PyTorch alone.

    model = load()           # the weights from {weights}, beside this file
    outputs = model(images)  # images of shape {shape}, normalised as the original's were
"""
'''
_LOADER = '''

def put(root: nn.Module, path: str, part: nn.Module | torch.Tensor) -> None:
    """Put a layer, a parameter or a buffer at a path below a module."""
    *above, name = path.split(".")
    for step in above:
        if not hasattr(root, step):
            root.add_module(step, nn.Module())
        root = getattr(root, step)
    if isinstance(part, nn.Parameter):
        root.register_parameter(name, part)
    elif isinstance(part, torch.Tensor):
        root.register_buffer(name, part)
    else:
        root.add_module(name, part)


def load(weights: str | Path = Path(__file__).with_suffix("{suffix}")) -> {name}:
    """Return the model with its weights, in evaluation mode."""
    model = {name}()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()
'''


def source_of(built: fx.GraphModule, source: Source, path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the text of a Python file that builds a graph module's twin, and the twin's state dict.

    Raises
    ------
    ExportError
        If an operation or a constant of the model has no text in Python.
    """
    name = re.sub(r"\W", "", source.name) or "Model"
    graph = fx.Graph()
    graph.output(graph.graph_copy(built.graph, {}))
    for node in graph.nodes:
        if node.target is require_length:
            raise ExportError(f"{name} cannot follow its input to other batches; export it with format='onnx' or 'pt2'")
    fx.GraphModule(built, graph).graph.eliminate_dead_code()
    code = graph.python_code("self")
    imports = _imports({n: v for n, v in code.globals.items() if re.search(rf"\b{re.escape(n)}\b", code.src)})
    body, state = _Layers(built).write(graph)
    forward = "\n".join("    " + line if line.strip() else "" for line in _readable(code.src).splitlines())
    header = _HEADER.format(
        name=name,
        parameters=sum(p.numel() for p in built.parameters()),
        weights=path.with_suffix(WEIGHTS).name,
        shape=f"(n, {', '.join(map(str, source.example.shape[1:]))})",
    )
    text = (
        f"{header}\nfrom pathlib import Path\n\nimport torch\nfrom torch import nn\n{imports}\n\n"
        f"class {name}(nn.Module):\n    def __init__(self) -> None:\n        super().__init__()\n{body}\n\n{forward}\n"
        + _LOADER.format(name=name, suffix=WEIGHTS)
    )
    return text, state


def _readable(text: str) -> str:
    """Return the code of a forward without what frees values early, and without empty lines."""
    lines = [re.sub(r";  (?:\w+ = )+None$", "", line.rstrip()) for line in text.strip().splitlines()]
    lines = [re.sub(r"\s+# .*$", "", line) for line in lines]
    return "\n".join(line for line in lines if line.strip())


def _imports(names: dict[str, Any]) -> str:
    """Return the lines that import what a graph's code calls."""
    lines = []
    for name, value in sorted(names.items()):
        if name in ("torch", "nn"):
            continue
        if isinstance(value, types.ModuleType):
            lines.append(f"import {value.__name__}" + (f" as {name}" if value.__name__ != name else ""))
        elif value is None or isinstance(value, (bool, int, float)):
            lines.append(f"{name} = float({str(value)!r})" if isinstance(value, float) else f"{name} = {value!r}")
        elif str(getattr(value, "__module__", "")).startswith(("torch", "builtins", "math", "_operator", "operator")):
            home = value.__module__
            lines.append(f"from {home} import {value.__name__}" + (f" as {name}" if value.__name__ != name else ""))
        else:
            raise ExportError(
                f"{value!r} has no text in a Python file of PyTorch's alone; export with format='onnx' or 'pt2'"
            )
    return "".join(f"{line}\n" for line in lines)


class _Layers:
    """Writes the constructor: layers and bare tensors by their paths."""

    def __init__(self, built: fx.GraphModule) -> None:
        self.built = built
        self.lines: list[str] = []
        self.state: dict[str, Tensor] = {}

    def write(self, graph: fx.Graph) -> tuple[str, dict[str, Tensor]]:
        called = list(dict.fromkeys(str(n.target) for n in graph.nodes if n.op == "call_module"))
        fetched = list(dict.fromkeys(str(n.target) for n in graph.nodes if n.op == "get_attr"))
        for path in called:
            self._layer(path, self.built.get_submodule(path))
        for path in fetched:
            if path not in self.state:
                self._tensor(path)
        return "\n".join(f"        {line}" for line in self.lines), self.state

    def _layer(self, path: str, layer: nn.Module) -> None:
        self.lines.append(f"put(self, {json.dumps(path)}, {call_of(layer)})")
        for name, tensor in layer.state_dict().items():
            self.state[f"{path}.{name}"] = tensor

    def _tensor(self, path: str) -> None:
        owner, _, name = path.rpartition(".")
        tensor = getattr(self.built.get_submodule(owner), name)
        made = f"torch.empty({tuple(tensor.shape)}, dtype={tensor.dtype})"
        if isinstance(tensor, nn.Parameter):
            made = (
                f"nn.Parameter({made}, {tensor.requires_grad})" if not tensor.requires_grad else f"nn.Parameter({made})"
            )
        self.lines.append(f"put(self, {json.dumps(path)}, {made})")
        self.state[path] = tensor.detach()


def call_of(layer: nn.Module) -> str:
    """Return the call that makes a layer of PyTorch's own with the same settings.

    Raises
    ------
    ExportError
        If a setting has no text.
    """
    kind = next(cls for cls in type(layer).__mro__ if cls.__module__.startswith("torch.nn") and not _private(cls))
    arguments = []
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name in ("self", "device") or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = _simple(_setting(layer, name))
        if value is _UNKNOWN or (parameter.default is not parameter.empty and value == parameter.default):
            continue
        if not _is_plain(value):
            raise ExportError(f"{kind.__name__} has {name}={value!r}, which has no text; export with format='onnx'")
        arguments.append(repr(value) if parameter.default is parameter.empty else f"{name}={value!r}")
    return f"nn.{kind.__name__}({', '.join(arguments)})"


_UNKNOWN = object()


def _private(kind: type) -> bool:
    return kind.__name__.startswith("_")


def _setting(layer: nn.Module, name: str) -> Any:
    """Return an argument of a layer's constructor, read off the layer."""
    if name == "dtype":
        types_ = {p.dtype for p in layer.parameters() if p.is_floating_point()}
        found = types_.pop() if len(types_) == 1 else None
        return found if found not in (None, torch.float32) else _UNKNOWN
    value = getattr(layer, name, _UNKNOWN)
    return value is not None if name == "bias" and (value is None or isinstance(value, Tensor)) else value


def _simple(value: Any) -> Any:
    """Return one number for several that are equal, as the layers of convolution take either."""
    numbers = isinstance(value, tuple) and value and all(isinstance(v, int) for v in value)
    return value[0] if numbers and len(set(value)) == 1 and len(value) > 1 else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))

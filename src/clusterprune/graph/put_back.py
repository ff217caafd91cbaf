# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What may change when a user's code runs, and is put back afterwards: attributes, containers, random numbers."""

import copy
import random
import types
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clusterprune.graph.copying import MANY_OBJECTS, global_names
from clusterprune.graph.nest import is_mapping


class Contents:
    """What lists, dictionaries, sets and tensors that are no parameters hold, to be put back into the same objects."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}
        self._saved: list[tuple[Any, Any]] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []

    def keep(self, value: Any, depth: int = 1000) -> None:
        """Remember the tensors in a container, and what it and the containers in it hold, so many levels deep."""
        if id(value) in self._seen or len(self._seen) > MANY_OBJECTS:
            return
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and _has_numbers(value):
            self._tensors.append((value, value.detach().clone()))
        if not isinstance(value, (list, dict, set, deque)):
            return
        self._seen[id(value)] = value
        if depth > 0:
            try:
                self._saved.append((value, copy.copy(value)))
            except Exception:  # a container of the user's own, that does not let itself be copied
                return
        for part in list(value.values()) if is_mapping(value) else list(value):
            self.keep(part, depth - 1)

    def put_back(self) -> None:
        """Give every container what it held."""
        for value, held in self._saved:
            if len(value) == len(held) and all(a is b for a, b in zip(_flat(value), _flat(held), strict=True)):
                continue
            value.clear()
            value.extend(held) if isinstance(value, (list, deque)) else value.update(held)
        with torch.no_grad():
            for tensor, numbers in self._tensors:
                if not torch.equal(tensor, numbers):
                    tensor.copy_(numbers)


def _has_numbers(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Buffer) and not tensor.is_meta and tensor.layout is torch.strided


def _flat(container: Any) -> list[Any]:
    return [part for pair in container.items() for part in pair] if is_mapping(container) else list(container)


@contextmanager
def surroundings_kept(model: nn.Module) -> Generator[None, None, None]:
    """Put back the attributes of the modules' classes and the global variables that their methods name."""
    classes = {
        cls
        for module in model.modules()
        for cls in type(module).__mro__
        if cls.__module__.partition(".")[0] not in ("torch", "builtins", "torchvision", "timm", "typing")
    }
    contents = Contents()
    attributes: dict[type, dict[str, Any]] = {}
    variables: list[tuple[dict[str, Any], str, Any]] = []
    for cls in classes:
        attributes[cls] = {name: value for name, value in vars(cls).items() if _is_state(name, value)}
        contents.keep(attributes[cls])
        for function in vars(cls).values():
            if not isinstance(function, types.FunctionType):
                continue
            for name in global_names(function.__code__):
                value = function.__globals__.get(name, _MISSING)
                if value is _MISSING or not _is_state(name, value):
                    continue
                variables.append((function.__globals__, name, value))
                contents.keep(value)
    try:
        yield
    finally:
        for cls, held in attributes.items():
            now = {name: value for name, value in vars(cls).items() if _is_state(name, value)}
            for name in now.keys() - held.keys():
                delattr(cls, name)
            for name, value in held.items():
                if now.get(name, _MISSING) is not value:
                    setattr(cls, name, value)
        for scope, name, value in variables:
            if scope.get(name, _MISSING) is not value:
                scope[name] = value
        contents.put_back()


_MISSING = object()


def _is_state(name: str, value: Any) -> bool:
    """Tell whether a class attribute or global variable may be what a forward changes: neither code nor machinery."""
    code = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, classmethod, staticmethod, property)
    return (
        not (name.startswith("__") and name.endswith("__"))
        and not name.startswith("_abc_")
        and not (isinstance(value, code) or hasattr(type(value), "__get__"))
    )


@contextmanager
def seeded(seed: int, devices: Iterable[int] | None = None) -> Generator[None, None, None]:
    """Throw torch's dice as a seed says; afterwards its generators are as they were.

    Those of the GPUs among them, if they are in use and no others are named.
    """
    if devices is None:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        yield


@contextmanager
def randomness_kept() -> Generator[None, None, None]:
    """Let something throw dice; afterwards torch's, Python's and NumPy's generators are as they were."""
    python, numbers = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)

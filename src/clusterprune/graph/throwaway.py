"""Something to run in a model's place: whatever its forward changes is thrown away with it.

A forward may assign attributes, fill lists, write buffers and draw random numbers; so may its hooks, and an
overridden `train`. To export such a model means to run all of that with tensors that hold no numbers. Nothing of it
may reach the user's model, so that what runs is a copy of the module tree, down to the lists in its attributes.
"""

import copy
import dis
import functools
import random
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

_MANY = 200_000
"""Objects that are copied at most. What hangs on a model beyond that (a data set, a trainer) is none of its state."""


@dataclass(frozen=True, eq=False)
class Throwaway:
    """A copy of a module tree, and whose copies its tensors are."""

    module: nn.Module
    originals: dict[int, Tensor] = field(repr=False)

    def original(self, tensor: Tensor) -> Tensor:
        """Return the tensor whose copy was given (or the given one, if it is no copy)."""
        return self.originals.get(id(tensor), tensor)


def duplicate(model: nn.Module, tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return a copy of a model that shares no state with it, closures of hooks and of a replaced forward included.

    Unlike `copy.deepcopy` it does not fail: what cannot be copied (locks, open files) is shared, and tensors lose the
    history of how they were computed.

    Parameters
    ----------
    tensors
        What the copy's parameters and buffers hold, by path, where it is not a copy of the model's own: the given
        tensors themselves, of any shape. Tensors that the model shares stay shared.
    """
    copier = _Copier()
    for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensors is not None and path in tensors:
            given = tensors[path].detach()
            copier.put(tensor, nn.Parameter(given, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else given)
    return copier.copy(model)


@contextmanager
def throwaway(model: nn.Module) -> Iterator[Throwaway]:
    """Give a copy of a model that may be run, in any mode, without the model's noticing.

    Parameters, buffers, attributes, hooks and the containers in them are copies; classes are the model's own. What
    cannot be copied (locks, open files) is shared. Afterwards the random number generators, the attributes of the
    modules' classes, and the global variables that their methods name are as they were.
    """
    copier = _Copier()
    with randomness_kept(), surroundings_kept(model):
        yield Throwaway(copier.copy(model), copier.originals)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model itself into evaluation mode; afterwards it is what it was before, whatever its forward does.

    That is the mode of every module (one by one, because models are used with parts, often batch norm, frozen in
    evaluation mode), its buffers, and what its attributes are. A list to which a forward appends grows.
    """
    modes = [(module, module.training) for module in model.modules()]
    attributes = _Contents()
    for module, _ in modes:
        attributes.keep(module._buffers, depth=1)
        attributes.keep(vars(module), depth=1)
    model.eval()
    try:
        yield model
    finally:
        attributes.put_back()
        for module, mode in modes:
            module.training = mode


_ATOMS = (
    type(None), bool, int, float, complex, str, bytes, type, types.ModuleType, types.BuiltinFunctionType,
    types.CodeType, torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, fx.Graph,
    np.dtype, range, slice,
)  # fmt: skip
_ATOM_TYPES = frozenset(_ATOMS)


class _Copier:
    """Copies whatever hangs on a module."""

    def __init__(self) -> None:
        self.memo: dict[int, Any] = {}
        self.originals: dict[int, Tensor] = {}
        self._seen: list[Any] = []  # what the memo knows by its id must stay alive

    def copy(self, value: Any) -> Any:
        # First by the very type, which settles nearly all there is in a module without a search.
        if type(value) in _ATOM_TYPES or isinstance(value, _ATOMS) or len(self._seen) > _MANY:
            return value
        if id(value) in self.memo:
            return self.memo[id(value)]
        for kinds, how in self._KINDS:
            if isinstance(value, kinds):
                return how(self, value)
        return self._object(value)

    def put(self, value: Any, made: Any) -> None:
        """Say what stands for a value in the copy."""
        self._note(value, made)

    def _note(self, value: Any, made: Any) -> Any:
        self.memo[id(value)] = made
        self._seen.append(value)
        return made

    def _module(self, module: nn.Module) -> nn.Module:
        # Not through the class: it may ask for arguments. A graph module keeps its forward on a class of its own.
        kind = type(module)
        kind = type(kind.__name__, (kind,), {}) if isinstance(module, fx.GraphModule) else kind
        made = self._note(module, object.__new__(kind))
        self._fill(module, made)
        return made

    def _fill(self, value: Any, made: Any) -> None:
        for name in _slots(type(value)):
            if hasattr(value, name):
                object.__setattr__(made, name, self.copy(getattr(value, name)))
        if hasattr(value, "__dict__"):
            made.__dict__.update({name: self.copy(part) for name, part in vars(value).items()})

    def _tensor(self, tensor: Tensor) -> Tensor:
        if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
            return self._by_its_own_rules(tensor)
        made: Tensor = tensor.detach().clone()
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(made, requires_grad=tensor.requires_grad)
        elif tensor.is_leaf and tensor.requires_grad:
            made.requires_grad_(True)
        self.originals[id(made)] = tensor
        self._note(tensor, made)
        for name, part in vars(tensor).items():
            setattr(made, name, self.copy(part))
        return made

    def _list(self, value: Any) -> Any:
        if type(value) not in (list, deque):
            return self._by_its_own_rules(value)
        made = self._note(value, [] if type(value) is list else deque(maxlen=value.maxlen))
        made.extend(self.copy(part) for part in value)
        return made

    def _dict(self, value: dict[Any, Any]) -> Any:
        if type(value) not in (dict, OrderedDict, defaultdict):
            return self._by_its_own_rules(value)
        if not value and type(value) is not defaultdict:
            return self._note(value, type(value)())  # most of them: the hooks of every module
        made = self._note(
            value, defaultdict(value.default_factory) if isinstance(value, defaultdict) else type(value)()
        )
        made.update({key: self.copy(part) for key, part in value.items()})
        return made

    def _set(self, value: Any) -> Any:
        return (
            self._note(value, type(value)(value)) if type(value) in (set, frozenset) else self._by_its_own_rules(value)
        )

    def _tuple(self, value: tuple[Any, ...]) -> Any:
        parts = [self.copy(part) for part in value]
        if type(value) is tuple:
            return tuple(parts)
        return type(value)(*parts) if hasattr(value, "_fields") else self._by_its_own_rules(value)

    def _function(self, function: types.FunctionType) -> Any:
        """Copy what a function on an instance (a hook, another forward) has closed over, and its global variables."""
        if (function.__module__ or "").partition(".")[0] == "torch":
            return function
        scope = function.__globals__
        own = {name: scope[name] for name in _global_names(function.__code__) if name in scope}
        state = {
            name: value
            for name, value in own.items()
            if isinstance(value, (list, dict, set, deque, nn.Module, Tensor))
            or (type(value).__module__ == function.__module__ and not isinstance(value, (*_ATOMS, types.FunctionType)))
        }
        if not function.__closure__ and not state and not _writes_globals(function.__code__):
            return function
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        surroundings = dict(function.__globals__)
        made = types.FunctionType(
            function.__code__, surroundings, function.__name__, function.__defaults__, cells or None
        )
        made.__kwdefaults__ = function.__kwdefaults__
        made.__dict__.update(function.__dict__)
        self._note(function, made)
        for cell, old in zip(cells, function.__closure__ or (), strict=True):
            try:
                cell.cell_contents = self.copy(old.cell_contents)
            except ValueError:  # an empty cell
                continue
        surroundings.update({name: self.copy(value) for name, value in state.items()})
        return made

    def _method(self, method: types.MethodType) -> Any:
        owner, function = method.__self__, method.__func__
        own = getattr(type(owner), getattr(function, "__name__", ""), None) is function
        return types.MethodType(function if own else self.copy(function), self.copy(owner))

    def _partial(self, value: functools.partial[Any]) -> Any:
        if type(value) is not functools.partial:
            return self._by_its_own_rules(value)
        return functools.partial(self.copy(value.func), *self.copy(value.args), **self.copy(value.keywords))

    def _weak(self, reference: weakref.ref[Any]) -> Any:
        target = reference()
        return weakref.ref(self.copy(target)) if isinstance(target, (nn.Module, Tensor)) else reference

    def _generator(self, generator: torch.Generator) -> torch.Generator:
        made = torch.Generator(generator.device)
        made.set_state(generator.get_state())
        return self._note(generator, made)

    def _object(self, value: Any) -> Any:
        kind = type(value)
        if hasattr(kind, "__del__"):
            return value  # a copy would let go of what the original holds
        plain = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
        plain = plain and not any(hasattr(kind, name) for name in ("__deepcopy__", "__copy__", "__setstate__"))
        plain = plain and getattr(kind, "__getstate__", None) is getattr(object, "__getstate__", None)
        if not plain:
            return self._by_its_own_rules(value)
        try:
            made = object.__new__(kind)
        except TypeError:
            return self._by_its_own_rules(value)
        self._note(value, made)
        self._fill(value, made)
        return made

    def _by_its_own_rules(self, value: Any) -> Any:
        try:
            return self._note(value, copy.deepcopy(value, self.memo))
        except Exception:  # whatever an object says that cannot be copied
            return self._note(value, value)

    _KINDS: tuple[tuple[Any, Any], ...] = (
        (nn.Module, _module),
        (Tensor, _tensor),
        ((list, deque), _list),
        (dict, _dict),
        ((set, frozenset), _set),
        (tuple, _tuple),
        (types.FunctionType, _function),
        (types.MethodType, _method),
        (functools.partial, _partial),
        (weakref.ref, _weak),
        (torch.Generator, _generator),
    )


@functools.cache
def _slots(kind: type) -> tuple[str, ...]:
    """Return the names of a class's slots, those of the classes that it is made from included."""
    names = [name for cls in kind.__mro__ for name in _own_slots(cls)]
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _own_slots(cls: type) -> list[str]:
    slots = cls.__dict__.get("__slots__", ())
    private = f"_{cls.__name__.lstrip('_')}"
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return [private + name if name.startswith("__") and not name.endswith("__") else name for name in names]


def _global_names(code: types.CodeType) -> set[str]:
    """Return the names that a function and those inside it look up."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _writes_globals(code: types.CodeType) -> bool:
    """Tell whether a function may rebind a global variable."""
    inside = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    own = any(step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") for step in dis.get_instructions(code))
    return own or any(_writes_globals(constant) for constant in inside)


class _Contents:
    """What lists, dictionaries, sets and tensors that are no parameters hold, to be put back into the same objects."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}
        self._saved: list[tuple[Any, Any]] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []

    def keep(self, value: Any, depth: int = 1000) -> None:
        """Remember the tensors in a container, and what it and the containers in it hold, so many levels deep."""
        if id(value) in self._seen or len(self._seen) > _MANY:
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
        for part in list(value.values()) if isinstance(value, dict) else list(value):
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
    return [part for pair in container.items() for part in pair] if isinstance(container, dict) else list(container)


@contextmanager
def surroundings_kept(model: nn.Module) -> Iterator[None]:
    """Put back the attributes of the modules' classes and the global variables that their methods name."""
    classes = {
        cls
        for module in model.modules()
        for cls in type(module).__mro__
        if cls.__module__.partition(".")[0] not in ("torch", "builtins", "torchvision", "timm", "typing")
    }
    contents = _Contents()
    attributes: dict[type, dict[str, Any]] = {}
    variables: list[tuple[dict[str, Any], str, Any]] = []
    for cls in classes:
        attributes[cls] = {name: value for name, value in vars(cls).items() if _is_state(name, value)}
        contents.keep(attributes[cls])
        for function in vars(cls).values():
            if not isinstance(function, types.FunctionType):
                continue
            for name in _global_names(function.__code__):
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
def randomness_kept() -> Iterator[None]:
    """Let something throw dice; afterwards torch's, Python's and NumPy's generators are as they were."""
    python, numbers = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)

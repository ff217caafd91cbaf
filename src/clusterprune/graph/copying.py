# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Copies of all that hangs on a module, down to closures and global variables."""

import copy
import dis
import functools
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

MANY_OBJECTS = 200_000
"""Objects that are copied, or looked into, at most. What hangs on a model beyond that (a data set, a trainer) is none
of its state."""
_ATOMS = (
    type(None), bool, int, float, complex, str, bytes, type, types.ModuleType, types.BuiltinFunctionType,
    types.CodeType, torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, fx.Graph,
    np.dtype, range, slice,
)  # fmt: skip
_ATOM_TYPES = frozenset(_ATOMS)


class Copier:
    """Copies whatever hangs on a module: what is copied once has one copy, however often it is met."""

    def __init__(self) -> None:
        self.memo: dict[int, Any] = {}
        self.originals: dict[int, Tensor] = {}
        self._seen: list[Any] = []  # what the memo knows by its id must stay alive

    def copy(self, value: Any) -> Any:
        """Return a copy of a value, or the value where it is nothing that is changed."""
        # First by the very type, which settles nearly all there is in a module without a search.
        if type(value) in _ATOM_TYPES or isinstance(value, _ATOMS) or len(self._seen) > MANY_OBJECTS:
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
        own = {name: scope[name] for name in global_names(function.__code__) if name in scope}
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


def global_names(code: types.CodeType) -> set[str]:
    """Return the names that a function and those inside it look up."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= global_names(constant)
    return names


def _writes_globals(code: types.CodeType) -> bool:
    """Tell whether a function may rebind a global variable."""
    inside = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    own = any(step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") for step in dis.get_instructions(code))
    return own or any(_writes_globals(constant) for constant in inside)

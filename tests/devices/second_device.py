"""A second device without hardware: it computes as the CPU does, and refuses to mix devices as CUDA does.

PyTorch keeps a dispatch key for devices that are not its own. Here every operation on that key is answered in Python:
if its arguments lie on several devices, with what CUDA says; otherwise by the CPU, on the memory behind the tensors.
Everything else is PyTorch's own: storages and views, autograd, export, optimizers, saving and moving.

As on CUDA, a tensor with no dimensions may come from the CPU, and so may the tensors that index another one with
brackets; copying goes from anywhere to anywhere; and NumPy is handed nothing.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
_KEY = "PrivateUse1"
_CPU_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_aten = torch.ops.aten

# Their arguments may lie anywhere.
_ACROSS = frozenset({"aten::_copy_from", "aten::copy_", "aten::_copy_from_and_resize"})
# The tensors behind the first may lie on the CPU.
_INDEXING = frozenset(
    {"aten::index", "aten::_unsafe_index", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put"}
)


class SecondDevice:
    """What PyTorch asks a device's module."""

    _is_in_bad_fork = staticmethod(lambda: False)
    is_available = staticmethod(lambda: True)
    is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    manual_seed_all = staticmethod(lambda seed: None)
    synchronize = staticmethod(lambda device=None: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])

    @staticmethod
    def get_rng_state(device: object = None) -> Tensor:
        """Return the CPU's, of which random numbers here are drawn."""
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: Tensor, device: object = None) -> None:
        """Set the CPU's."""
        torch.set_rng_state(state)


def register() -> torch.device:
    """Make the device known to PyTorch; this cannot be taken back in the running process."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=SecondDevice())
    library = torch.library.Library("_", "IMPL")
    library.fallback(_run, _KEY)
    # Autocast finds nothing to cast here.
    library.fallback(torch.library.fallthrough_kernel, f"Autocast{_KEY}")
    of_aten = torch.library.Library("aten", "IMPL")
    for name, function in _PRIMITIVES.items():
        of_aten.impl(name, function, _KEY)
    _libraries.extend([library, of_aten])
    synchronize = torch.accelerator.synchronize
    torch.accelerator.synchronize = lambda device=None: (
        None if torch.device(device).type == NAME else synchronize(device)
    )
    clone = torch.UntypedStorage.clone

    def clone_storage(storage: torch.UntypedStorage) -> torch.UntypedStorage:
        if storage.device.type != NAME:
            return clone(storage)
        return on_device(torch.empty(0, dtype=torch.uint8).set_(clone(storage.memory))).untyped_storage()

    torch.UntypedStorage.clone = clone_storage
    return torch.device(NAME, 0)


_libraries: list[torch.library.Library] = []


def _is_ours(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def on_device(value: Tensor) -> Tensor:
    """Return a tensor on the second device over the storage of one on the CPU."""
    memory = value.untyped_storage()
    storage = torch._C._construct_storage_from_data_pointer(memory.data_ptr(), torch.device(NAME, 0), memory.nbytes())
    storage.memory = memory
    made = torch._C._acc.create_empty_tensor((0,), value.dtype)
    return _set(made, storage, value.storage_offset(), value.size(), value.stride())


def memory_of(value: Tensor) -> Tensor:
    """Return the tensor on the CPU that shares the memory of one on the second device."""
    storage = value.untyped_storage()
    empty = torch.empty(0, dtype=value.dtype)
    return empty.set_(storage.memory, value.storage_offset(), value.size(), value.stride())


def _set(tensor: Tensor, storage: torch.UntypedStorage, offset: int, size: object, stride: object) -> Tensor:
    return _aten.set_.source_Storage_storage_offset.redispatch(_CPU_KEYS, tensor, storage, offset, size, stride)


def _run(operation: torch._ops.OpOverload, *args: object, **kwargs: object) -> object:
    """Answer any operation that has a tensor of ours, or makes one."""
    _refuse_mixtures(operation, args, kwargs)
    flat, structure = pytree.tree_flatten((args, kwargs))
    owners = {value.untyped_storage().memory._cdata: value for value in flat if _is_ours(value)}
    lent = [memory_of(v) if _is_ours(v) else torch.device("cpu") if _names_us(v) else v for v in flat]
    shapes = [v.shape if isinstance(v, Tensor) else None for v in lent]
    operation, given = _translate(operation, pytree.tree_unflatten(lent, structure))
    with torch._C._AutoDispatchBelowAutograd():
        result = operation(*given[0], **given[1])
    back = {}
    for value, memory, shape in zip(flat, lent, shapes, strict=True):
        if isinstance(memory, Tensor):
            if _is_ours(value) and memory.shape != shape:  # an output that had to grow
                fresh = on_device(memory)
                _set(value, fresh.untyped_storage(), fresh.storage_offset(), fresh.size(), fresh.stride())
            back[id(memory)] = value

    def home(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        if id(value) in back:
            return back[id(value)]
        owner = owners.get(value.untyped_storage()._cdata)
        if owner is None:
            return on_device(value)
        with torch.inference_mode(owner.is_inference()):  # a view is what its base is
            made = torch._C._acc.create_empty_tensor((0,), value.dtype)
            return _set(made, owner.untyped_storage(), value.storage_offset(), value.size(), value.stride())

    return pytree.tree_map(home, result)


def _names_us(value: object) -> bool:
    return isinstance(value, torch.device) and value.type == NAME


def _refuse_mixtures(operation: torch._ops.OpOverload, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    name = operation._schema.name
    if name in _ACROSS:
        return
    values = pytree.tree_leaves((args, kwargs))
    ours = any(_is_ours(value) for value in values) or any(_names_us(value) for value in values)
    if any(isinstance(value, torch.Generator) and value.device.type == "cpu" for value in values) and ours:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu' ({name})")
    if name in _INDEXING:
        if not _is_ours(args[0]):
            raise RuntimeError(
                f"indices should be either on cpu or on the same device as the indexed tensor (cpu) ({name})"
            )
        values = pytree.tree_leaves((args[2:], kwargs))
    strange = [v for v in values if isinstance(v, Tensor) and v.device.type == "cpu" and v.ndim]
    if strange:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! ({name})"
        )


def _translate(
    operation: torch._ops.OpOverload, given: tuple[tuple, dict]
) -> tuple[torch._ops.OpOverload, tuple[tuple, dict]]:
    """Exchange what PyTorch asks of foreign devices alone for what the CPU has."""
    args, kwargs = given
    if operation is _aten.convolution_overrideable.default:
        return _aten.convolution.default, given
    if operation is _aten.convolution_backward_overrideable.default:
        gradient, image, weight, *rest = args
        return _aten.convolution_backward.default, ((gradient, image, weight, [gradient.shape[1]], *rest), kwargs)
    if operation is _aten._copy_from.default:
        source, target, *rest = args
        return _aten.copy_.default, ((target, source, *rest), kwargs)
    return operation, given


def _set_source(
    tensor: Tensor, storage: torch.UntypedStorage, offset: int, size: list[int], stride: list[int] | tuple[()] = ()
) -> Tensor:
    return _set(tensor, storage, offset, size, stride or torch.empty(size, device="meta").stride())


def _answer(operation: torch._ops.OpOverload) -> Callable[..., object]:
    return lambda *args, **kwargs: _run(operation, *args, **kwargs)


# What PyTorch would do itself, or refuse, before the fallback is asked.
_PRIMITIVES: dict[str, Callable[..., object]] = {
    "convolution_overrideable": _answer(_aten.convolution_overrideable.default),
    "convolution_backward_overrideable": _answer(_aten.convolution_backward_overrideable.default),
    "set_.source_Storage_storage_offset": _set_source,
    "_fused_sdp_choice": lambda *args, **kwargs: 0,  # attention from products of matrices
}

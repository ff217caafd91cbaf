"""Random tensors in place of a model's own, in which every branch counts and none explodes."""

import functools
import math
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]


def random_state(named: State, dtype: torch.dtype | None = None, gain: float = 1.0) -> dict[str, Tensor]:
    """Draw tensors in the shape of a model's own, so that every branch of it counts and none explodes.

    Matrices and kernels are scaled by their fan-in, and add up to nothing. Scales (of norms, layers, gates) lie around
    one, never near zero, whatever they are in the model; biases around zero. Buffers keep their values, but for the
    statistics of norms: code may depend on what stands in a buffer. What a tensor gets depends on its path alone, not
    on its neighbours.

    Parameters
    ----------
    named
        Parameters and buffers by path.
    dtype
        Floating-point type of what is drawn; None for that of each tensor.
    gain
        Of kernels, beside that with which activations keep their size. Very deep networks need less, or one rounding
        in the first layer becomes another output.
    """
    drawn: dict[str, Tensor] = {}
    for path, tensor in named.items():
        to = dtype or tensor.dtype
        if not tensor.is_floating_point():
            drawn[path] = tensor.detach().clone()
            continue
        if not _is_drawn(path, tensor):
            drawn[path] = tensor.detach().to(to, copy=True)
            continue
        value = _noise(path, tensor)
        if _is_shift(path):
            value *= 0.3
        elif _is_kernel(tensor):
            # Without a sum, so that what a kernel makes has both signs though all that it reads is positive: else an
            # activation in the wrong place may change nothing.
            rows = value.flatten(1)
            if rows.shape[1] > 3:
                rows -= rows.mean(1, keepdim=True)
            rows *= gain * math.sqrt(6 / max(1, rows.shape[1]))
        else:
            value = value.div_(2).add_(1)
        drawn[path] = value.to(tensor.device, to)
    return drawn


def turned(state: State, named: State) -> dict[str, Tensor]:
    """Return another draw: kernels, biases and running means with the other sign.

    A channel that is dead in one draw, because what reaches its activation is negative for every image, is alive in
    the other.

    Parameters
    ----------
    state
        Tensors by path, drawn by :func:`random_state` and then masked or cut.
    named
        The model's own parameters and buffers by path.
    """
    return {
        path: -tensor
        if path not in named or (_is_drawn(path, named[path]) and (_is_shift(path) or _is_kernel(named[path])))
        else tensor
        for path, tensor in state.items()
    }


def _is_drawn(path: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and (
        isinstance(tensor, nn.Parameter) or path.rpartition(".")[2].startswith("running_")
    )


def _is_shift(path: str) -> bool:
    leaf = path.rpartition(".")[2]
    return "bias" in leaf or leaf == "running_mean"


def _is_kernel(tensor: Tensor) -> bool:
    return sum(length > 1 for length in tensor.shape) > 1


def shaken(path: str, tensor: Tensor) -> Tensor:
    """Move every number by about one rounding."""
    if not tensor.is_floating_point():
        return tensor
    signs = _noise(path, tensor).sign_().to(tensor.device, tensor.dtype)
    return signs.mul_(torch.finfo(tensor.dtype).eps).add_(1).mul_(tensor)


def _noise(path: str, tensor: Tensor) -> Tensor:
    """Return numbers between -1 and 1, in a tensor's shape, that depend on its path alone."""
    # Pieces of one long noise: of prime length, so that no two rows of a matrix are the same piece.
    start = zlib.crc32(path.encode()) % _PRIME
    drawn = torch.empty(tensor.numel(), dtype=torch.float64)
    noise, done = _noise_of_prime_length(), 0
    while done < len(drawn):
        piece = noise[start : start + len(drawn) - done]
        drawn[done : done + len(piece)] = piece
        start, done = 0, done + len(piece)
    return drawn.view(tensor.shape)


_PRIME = 1048573


@functools.cache
def _noise_of_prime_length() -> Tensor:
    """Return numbers drawn evenly from [-1, 1)."""
    return torch.rand(_PRIME, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1

"""When two outputs are the same but for rounding."""

import torch
from torch import Tensor

_RELATIVE = 1e-7
"""Largest difference of one number relative to itself; a billion roundings of float64 leave room for deep networks."""
_OF_SLICE = 1e-10
"""Largest difference of one number relative to the largest of the least of the slices through it."""
_ROUNDINGS = 64.0
"""How many times the effect of one rounding of the weights a difference may have, where a model rounds coarsely."""
_COARSE = 0.05
"""Beyond this share of its slice no difference is taken for rounding, however coarse."""


def tells(outputs: list[Tensor]) -> bool:
    """Tell whether outputs are finite enough, and varied enough, to show an error."""
    finite = [output[output.isfinite()] if output.is_floating_point() else output.flatten() for output in outputs]
    return any(
        2 * len(f) >= o.numel() > 0 and len(f) > 0 and bool((f != f[0]).any())
        for f, o in zip(finite, outputs, strict=True)
    )


def drowns(expected: Tensor, noisy: Tensor) -> bool:
    """Tell whether one rounding of the weights moves an output by more than a few hundredths of its size."""
    if not expected.is_floating_point() or expected.shape != noisy.shape:
        return False
    expected, noisy = (t.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for t in (expected, noisy))
    return float((noisy - expected).norm()) > _COARSE * float(expected.norm())


def close(actual: Tensor, expected: Tensor, noisy: Tensor | None = None) -> bool:
    """Compare two outputs number by number.

    A number counts beside the largest of the least slice through it: a probability beside the other probabilities,
    though pixels stand in the same tensor, and neither beside a masked score of -1e38. What is not finite must be the
    same.
    """
    if not actual.is_floating_point():
        return bool((actual == expected).all())
    if actual.numel() == 0:
        return True
    finite = expected.isfinite()
    if not bool((finite == actual.isfinite()).all()):
        return False
    odd = ~finite
    if not torch.equal(actual[odd].nan_to_num(nan=0.5), expected[odd].nan_to_num(nan=0.5)):
        return False
    actual, expected = (t.double().masked_fill(odd, 0) for t in (actual, expected))
    scale = expected.abs().max().expand_as(expected)
    for dim in range(expected.ndim):
        others = [d for d in range(expected.ndim) if d != dim]
        scale = torch.minimum(scale, expected.abs().amax(others, keepdim=True) if others else expected.abs())
    allowed = _RELATIVE * expected.abs() + _OF_SLICE * scale
    if noisy is not None:
        if noisy.shape != expected.shape:
            return False
        moved = (noisy.double().masked_fill(odd, 0) - expected).abs().nan_to_num(nan=0.0, posinf=0.0)
        # One run shows no more than one draw of the rounding: numbers beside it may have moved as far.
        for dim in range(moved.ndim):
            others = [d for d in range(moved.ndim) if d != dim]
            spread = moved.square().mean(others, keepdim=True).sqrt() if others else moved
            allowed = torch.maximum(
                allowed, torch.minimum(_ROUNDINGS * spread.expand_as(allowed), _COARSE * scale + allowed)
            )
    return bool(((actual - expected).abs() <= allowed).all())

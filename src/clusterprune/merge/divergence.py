r"""How far a network's outputs are from the original's, by what kind of output each is.

One row of scores per image is taken for logits: what counts is the distribution p that their softmax gives, and
the divergence is Kullback and Leibler's, in nats. Everything else (maps, boxes, embeddings) is taken for numbers with
Gaussian noise whose deviation, channel by channel, is that of the original's outputs; each output then counts as much
as any other, however many numbers it has.

Ordering and pricing need the same measure to second order, which is half the Fisher information along a change:
:func:`score` gives a random function of the outputs whose gradients have that covariance.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from clusterprune.errors import ModelError


class Divergence(Protocol):
    """How far a network's outputs are from the original's; tasks have one of their own."""

    def divergence(self, expected: Sequence[Tensor], actual: Sequence[Tensor]) -> Tensor:
        """Return how far outputs are from the original's, image by image, (n,); see :func:`divergence`."""
        ...

    def score(self, outputs: Sequence[Tensor], temperature: float, generator: torch.Generator) -> Tensor:
        """Return a random function of the outputs that goes with it; see :func:`score`."""
        ...


class ByKind:
    """The divergence that this module describes: for logits Kullback and Leibler's, for all else a relative square."""

    def divergence(self, expected: Sequence[Tensor], actual: Sequence[Tensor]) -> Tensor:
        """Return :func:`divergence`."""
        return divergence(expected, actual)

    def score(self, outputs: Sequence[Tensor], temperature: float, generator: torch.Generator) -> Tensor:
        """Return :func:`score`."""
        return score(outputs, temperature, generator)


BY_KIND = ByKind()
"""What is taken where no task says otherwise."""


def is_logits(output: Tensor) -> bool:
    """Tell whether an output is one row of scores per image."""
    return output.ndim == 2 and output.shape[1] > 1


def channel_dim(output: Tensor) -> int:
    """Return the dimension along which an output's numbers differ in kind: maps have it second, lists last."""
    return 1 if output.ndim > 3 or output.ndim == 1 else output.ndim - 1


def deviations(output: Tensor) -> Tensor:
    """Return the standard deviation of each channel of an output, broadcastable to it.

    A channel that hardly varies does not count more for that: its deviation is at least a hundredth of the largest.
    """
    if output.ndim < 2:
        return output.detach().float().std(unbiased=False).clamp_min(1e-6)
    dim = channel_dim(output)
    others = [d for d in range(output.ndim) if d != dim]
    found = output.detach().float().std(others, unbiased=False, keepdim=True)
    return found.clamp_min(max(1e-6, 0.01 * float(found.max())))


def score(outputs: Sequence[Tensor], temperature: float, generator: torch.Generator) -> Tensor:
    r"""Return a random function of the outputs, whose gradients have the Fisher information as their covariance.

    For logits that is ⟨v, logits⟩ with v = √p ∘ ε - p ⟨√p, ε⟩ and random signs ε, whose covariance is that of the
    scores of drawn labels, diag(p) - p pᵀ. Drawn labels would do, but where the network is sure they almost always
    give next to nothing, and then once in a while a great deal. For other outputs it is a random projection.

    Parameters
    ----------
    outputs
        Those that can be differentiated; at least one.
    temperature
        Softens the predictions.
    """
    parts: list[Tensor] = []
    for output in outputs:
        if is_logits(output):
            probabilities = (output.detach().float() / temperature).softmax(1)
            signs = torch.randint(0, 2, output.shape, generator=generator).to(probabilities) * 2 - 1
            root = probabilities.sqrt() * signs
            direction = root - probabilities * root.sum(1, keepdim=True)
        else:
            noise = torch.randn(output.shape, generator=generator).to(output.device)
            # As much as logits of one image: not the more the larger its maps are.
            count = max(1, output.numel() // max(1, len(output) if output.ndim else 1))
            direction = noise / deviations(output) / count**0.5
        parts.append((output * direction.to(output.dtype)).sum())
    return torch.stack(parts).sum()


def divergence(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> Tensor:
    """Return how far outputs are from the original's, image by image: the sum over outputs.

    Parameters
    ----------
    expected, actual
        The original's outputs and another network's for the same images: of the same shapes, images first.

    Returns
    -------
    Tensor
        Shape (images,): in nats for logits; for other outputs half the mean squared difference, in units of the
        original's deviations. Infinite where an output of the other network is not finite.
    """
    total = torch.zeros(len(expected[0]), dtype=torch.float64)
    for wanted, got in zip(expected, actual, strict=True):
        if is_logits(wanted):
            before, after = (t.double().log_softmax(1) for t in (wanted, got))
            found = (before.exp() * (before - after)).sum(1)
        else:
            found = relative(wanted.double(), got.double())
        total += found.cpu().nan_to_num(nan=torch.inf, posinf=torch.inf)
    return total


def relative(expected: Tensor, actual: Tensor) -> Tensor:
    """Return half the mean squared difference of an output, image by image, in units of the original's deviations."""
    difference = 0.5 * ((actual - expected) / deviations(expected)).square()
    return difference.flatten(1).mean(1) if expected.ndim > 1 else difference


def distillation(logits: Tensor, guide: Tensor, temperature: float) -> Tensor:
    """Return τ²·KL( softmax(z_T/τ) ‖ softmax(z_S/τ) ): summed over classes, averaged over the batch.

    Parameters
    ----------
    logits, guide
        Of the student and of the teacher, (n, classes).

    Raises
    ------
    ModelError
        They have different numbers of classes.
    """
    if logits.shape != guide.shape:
        raise ModelError(
            f"the teacher returns logits of shape {tuple(guide.shape)}, the model {tuple(logits.shape)}; "
            "take a teacher of the same classes"
        )
    own, guides = (functional.log_softmax(z.float() / temperature, dim=1) for z in (logits, guide))
    return temperature**2 * functional.kl_div(own, guides, reduction="batchmean", log_target=True)

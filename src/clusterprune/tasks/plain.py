"""Plain: no labels, any network; what counts is how close its outputs are to a reference network's."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from clusterprune.errors import ArgumentError, ModelError
from clusterprune.merge.divergence import distillation, is_logits, relative
from clusterprune.tasks._images import ImageTask, SplitLike
from clusterprune.tasks.reference import Reference


class Plain(ImageTask):
    """Images without labels, for any network: it is held to the outputs of another, usually the one it was cut from.

    Outputs are the floating-point tensors in whatever the networks return, each of the shape (images, …). Measured is
    the divergence (:class:`clusterprune.merge.divergence.ByKind`), in nats for logits, and the agreement: 100 · e⁻ᴰ for
    a mean divergence D, from 100 where the outputs are the same down to 0.
    See :class:`clusterprune.tasks._images.ImageTask` for the parameters that are not here.

    Parameters
    ----------
    reference
        The network whose outputs count; copied. It reads the same normalised images.

    Examples
    --------
    >>> import torch
    >>> pixels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    >>> from clusterprune.data import Split
    >>> Plain(Split.from_tensors(pixels), mean=[0.5], std=[0.25], reference=torch.nn.Conv2d(1, 2, 3)).guess is None
    True
    """

    name = "plain"
    titles: ClassVar[dict[str, str]] = {"agreement": "agreement"}
    metrics = (*titles, "divergence")

    def __init__(
        self,
        train: SplitLike,
        validation: SplitLike | None = None,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        reference: nn.Module,
        whole: SplitLike | None = None,
    ) -> None:
        super().__init__(train, validation, mean=mean, std=std, whole=whole)
        self._reference = Reference(reference)

    def __repr__(self) -> str:
        """Name the reference by its class and a digest of its weights."""
        return f"Plain(reference={self._reference!r})"

    def check(self, outputs: Any, images: Tensor) -> None:
        """Check that the reference returns outputs of the same shapes."""
        _pairs(outputs, self._reference(images))

    def loss(self, outputs: Any, images: Tensor, targets: Any, *, smoothing: float = 0.0) -> Tensor:
        """Return the mean divergence from the reference's outputs."""
        del targets
        if smoothing:
            raise ArgumentError(f"label_smoothing={smoothing:g}, but a plain task has no labels; pass 0")
        return self.distillation(outputs, self._reference(images), 1.0)

    def distillation(self, outputs: Any, guide: Any, temperature: float) -> Tensor:
        """Return the mean divergence from a teacher's outputs, logits at a temperature: τ²·KL."""
        return compared(outputs, guide, temperature)

    def right(self, outputs: Any, targets: Any) -> Tensor:
        """Fail: no image is simply right or wrong."""
        raise NotImplementedError

    def observe(self, outputs: Any, images: Tensor, targets: Any) -> Tensor:
        """Return (1, 2): the sum of the divergences, and the number of images."""
        del targets
        pairs = _pairs(outputs, self._reference(images))
        found = self.divergence([wanted for _, wanted in pairs], [got for got, _ in pairs])
        return torch.tensor([[found.sum().item(), len(images)]], dtype=torch.float32)

    def summarise(self, rows: Tensor) -> dict[str, float | None]:
        """Return the agreement in percent, and the mean divergence."""
        if not len(rows):
            return dict.fromkeys(self.metrics)
        total, images = (float(value) for value in rows.double().sum(0))
        return {"agreement": 100 * math.exp(-total / images), "divergence": total / images}


def compared(outputs: Any, guide: Any, temperature: float) -> Tensor:
    """Return the mean divergence of two networks' outputs, each by its kind, logits at a temperature: τ²·KL.

    Raises
    ------
    ModelError
        They are not alike.
    """
    parts = [
        distillation(got, wanted, temperature) if is_logits(wanted) else relative(wanted.float(), got.float()).mean()
        for got, wanted in _pairs(outputs, guide)
    ]
    return torch.stack(parts).sum()


def _pairs(outputs: Any, guide: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the floating-point outputs of two networks beside one another."""
    own, others = (
        [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        for found in (outputs, guide)
    )
    if not own or [one.shape for one in own] != [one.shape for one in others]:
        shapes = [", ".join(str(tuple(one.shape)) for one in found) or "none" for found in (own, others)]
        raise ModelError(
            f"the model's outputs have the shapes {shapes[0]}, those of the reference {shapes[1]}; compare networks "
            "whose outputs are alike"
        )
    return list(zip(own, others, strict=True))

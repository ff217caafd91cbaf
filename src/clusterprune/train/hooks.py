"""What may act on a network between two epochs of its training."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn


class EpochHook(Protocol):
    """Called after every epoch; its state is saved with the checkpoint and put back by a resume.

    What it draws, it should draw from PyTorch's generators or from its own tensors: only then is a
    resumed run the same as an undisturbed one.
    """

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int) -> None:
        """Look at the network, and change its weights in place if need be, but not their shapes.

        Called without gradients, after the last step of an epoch and before its validation and
        checkpoint.

        Parameters
        ----------
        model
            In training mode, on the training device.
        epoch
            The epoch that ends, counted from 1.
        epochs
            How many there are.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return its state; nothing where it has none."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` returned. The tensors are on the CPU and not the hook's own: copy them."""
        ...

"""The protocol that every task fulfils."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from clusterprune.data import Split
from clusterprune.data.augment import Augmentation
from clusterprune.merge.divergence import Divergence


class Task(Divergence, Protocol):
    """What a network is for, with the data that it is trained and measured on.

    A task never changes, and its `repr` says what training aims at: no run is resumed with another. What it is given as
    `outputs` is what the network returned, in whatever form; `images` are normalised (n, c, h, w); `targets` are what
    its own :meth:`targets` made for these images, on their device.
    """

    @property
    def name(self) -> str:
        """The kind of task, as :data:`clusterprune.tasks.TASKS` knows it."""
        ...

    @property
    def train(self) -> Split:
        """Images to train on."""
        ...

    @property
    def validation(self) -> Split | None:
        """Images held out of them; None where nothing is to be watched or chosen."""
        ...

    @property
    def whole(self) -> Split | None:
        """`train` and `validation` together, for what trains after all is chosen; None is `train`."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean per channel, of images in [0, 1]."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation per channel, of images in [0, 1]."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures that :meth:`summarise` returns; the first decides, and more of it is better."""
        ...

    @property
    def guess(self) -> float | None:
        """Percent of the training images that guessing gets right; None where no image is simply right or wrong."""
        ...

    def on(self, train: Split, validation: Split | None = None) -> Self:
        """Return the same task on other images."""
        ...

    def normalize(self, images: Tensor) -> Tensor:
        """Return uint8 images (n, c, h, w) as the network reads them."""
        ...

    def targets(self, split: Split) -> Callable[[Tensor], Any]:
        """Return a function that puts a batch's targets together: from positions in `split`, int64 (n,), on the CPU.

        What it returns may be a tensor, or tensors in lists, tuples and dictionaries; they are moved to the device.

        Raises
        ------
        ArgumentError
            The split does not hold what the task needs.
        """
        ...

    def crops_files(self, kind: Augmentation) -> bool:
        """Whether images are cropped at random where they are read; :meth:`augment` is then called with ``"none"``."""
        ...

    def augment(
        self,
        images: Tensor,
        targets: Any,
        kind: Augmentation,
        generator: torch.Generator,
        total: int | None = None,
        share: slice | None = None,
    ) -> tuple[Tensor, Any]:
        """Change uint8 images and their targets at random; see :func:`clusterprune.data.augment.augment`."""
        ...

    def draws(
        self, kind: Augmentation, count: int, size: tuple[int, int], generator: torch.Generator
    ) -> tuple[Tensor, ...] | None:
        """Draw on the CPU what :meth:`augmented` does to so many images of this height and width.

        Of a generator in the same state, :meth:`augment` makes the same draws: an epoch's can be made beforehand.

        Returns
        -------
        tuple
            Tensors with a row an image; None where this augmentation cannot be split into draws and what they do.
        """
        ...

    def augmented(
        self, images: Tensor, targets: Any, kind: Augmentation, draws: tuple[Tensor, ...]
    ) -> tuple[Tensor, Any]:
        """Change uint8 images and their targets by what :meth:`draws` drew, without waiting for the device."""
        ...

    def check(self, outputs: Any, images: Tensor) -> None:
        """Check that a network with these outputs fits the data.

        Raises
        ------
        ArgumentError, ModelError
            It does not.
        """
        ...

    def loss(self, outputs: Any, images: Tensor, targets: Any, *, smoothing: float = 0.0) -> Tensor:
        """Return what training minimises: a scalar, float32, the mean over the images.

        Parameters
        ----------
        smoothing
            The training's `label_smoothing`.
        """
        ...

    def distillation(self, outputs: Any, guide: Any, temperature: float) -> Tensor:
        """Return how far a student's outputs are from its teacher's: a scalar, float32, the mean over the images."""
        ...

    def right(self, outputs: Any, targets: Any) -> Tensor:
        """Return how many images of a batch are right, as a scalar; asked only where `guess` is a number."""
        ...

    def observe(self, outputs: Any, images: Tensor, targets: Any) -> Tensor:
        """Return what the metrics need to know of a batch: float32 rows (r, k) with any number r of rows.

        The rows of all batches, in any order of the batches, go to :meth:`summarise`.
        """
        ...

    def summarise(self, rows: Tensor) -> dict[str, float | None]:
        """Return the metrics, in the order of `metrics`, of all that was observed; None for one that does not exist."""
        ...

    def sheet(self, images: Tensor, targets: Any, outputs: Mapping[str, Any]) -> Tensor | None:
        """Draw images beside what networks make of them, for people to look at.

        Parameters
        ----------
        images
            As a split has them, uint8 (n, c, h, w).
        outputs
            Of each network, by its name.

        Returns
        -------
        Tensor
            A picture, uint8 (3, height, width); None where there is nothing to be drawn.
        """
        ...

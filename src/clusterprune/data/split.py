"""Images with labels."""

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from clusterprune.data.boxes import NO_BOXES, Boxes
from clusterprune.data.crops import DRAWS
from clusterprune.data.decode import OnRead
from clusterprune.data.resize import check_size
from clusterprune.data.store import Damage, ImageStore, MemoryStore, all_damaged
from clusterprune.errors import ArgumentError, DataError

Indices = Tensor | Sequence[int]


class CorruptImageWarning(UserWarning):
    """Some image files cannot be read and are left out."""


class Split:
    """Images with labels, in a fixed order.

    A split knows its length and labels at once and decodes pixels when they are asked for, so files
    that cannot be read are found only then. They are announced once by a
    :class:`CorruptImageWarning` and listed in :attr:`skipped`. :meth:`load` and :meth:`batches`
    leave them out. :meth:`images` and indexing, whose rows must stay in step with :attr:`labels`,
    put the next readable image of the same class in their place, or a grey one where there are boxes. When more than
    half of a split cannot be read, that is a :class:`~clusterprune.errors.DataError`.

    Parameters
    ----------
    store
        Where the pixels are.
    labels
        Class index of every image in the store, int64 (n,), or None.
    classes
        Class names, in the order of the labels.
    image_size
        Size used where a method is given none; None for the images' own.
    numbers
        Which images of the store belong to the split; all by default.
    boxes
        The objects in every image of the store, or None.
    """

    def __init__(
        self,
        store: ImageStore,
        labels: Tensor | None,
        classes: Sequence[str] = (),
        *,
        image_size: int | None = None,
        numbers: Tensor | None = None,
        boxes: Sequence[Boxes] | None = None,
    ) -> None:
        self.classes = tuple(classes)
        self.image_size = check_size(image_size)
        self._store = store
        self._all_labels = labels
        self._all_boxes = boxes
        self._numbers = torch.arange(len(store)) if numbers is None else numbers

    @classmethod
    def from_tensors(
        cls,
        images: Tensor,
        labels: Tensor | None = None,
        classes: Sequence[str] | None = None,
        image_size: int | None = None,
    ) -> "Split":
        """Wrap ``uint8`` images (n, c, h, w) and int64 labels (n,) that are already in memory.

        A split keeps them on the CPU, wherever they come from; each batch goes to the device that works on it.
        Without ``classes``, the classes are named "0", "1", … up to the largest label.

        Raises
        ------
        ArgumentError
            When shapes or types do not fit, or a label is outside the classes.
        """
        if images.dim() != 4 or images.dtype != torch.uint8:
            raise ArgumentError(
                "images must be a uint8 tensor of shape (n, c, h, w), but got "
                f"{images.dtype} of shape {tuple(images.shape)}."
            )
        if labels is None:
            return cls(MemoryStore(images.cpu()), None, classes or (), image_size=image_size)
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise ArgumentError(
                f"labels must be int64 of shape ({len(images)},), one per image, but got "
                f"{labels.dtype} of shape {tuple(labels.shape)}."
            )
        top = int(labels.max()) + 1 if len(labels) else 0
        names = [str(i) for i in range(top)] if classes is None else list(classes)
        if len(labels) and (int(labels.min()) < 0 or top > len(names)):
            raise ArgumentError(
                f"labels must lie in 0..{len(names) - 1} for {len(names)} classes, but they span "
                f"{int(labels.min())}..{top - 1}."
            )
        return cls(MemoryStore(images.cpu()), labels.to("cpu", copy=True), names, image_size=image_size)

    def __len__(self) -> int:
        return len(self._numbers)

    def __repr__(self) -> str:
        labelled = self._all_labels is not None or self._all_boxes is not None
        kind = f"{len(self.classes)} classes" if labelled else "unlabelled"
        return f"Split({len(self)} images, {kind}, image_size={self.image_size})"

    @property
    def labels(self) -> Tensor | None:
        """Class index of every image, int64 (n,); None when the images are unlabelled."""
        return None if self._all_labels is None else self._all_labels[self._numbers]

    @property
    def boxes(self) -> list[Boxes] | None:
        """The objects in every image; None when they are not known.

        A file that was met and cannot be read has none: what stands in for it is a grey image.
        """
        if self._all_boxes is None:
            return None
        return [NO_BOXES if n in self._store.damaged else self._all_boxes[n] for n in self._numbers.tolist()]

    @property
    def digest(self) -> str:
        """A short digest of what the images are said to show, labels and boxes; their pixels are not read."""
        known = [] if self.labels is None else [self.labels]
        if self._all_boxes is not None:
            known += [tensor for number in self._numbers.tolist() for tensor in self._all_boxes[number]]
        return sha256(b"".join(tensor.cpu().numpy().tobytes() for tensor in known)).hexdigest()[:16]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image at the split's own size."""
        return self._store.shape(self.image_size)

    @property
    def own_shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width of the images as they are stored; None where they differ."""
        return self._store.common_shape()

    @property
    def in_files(self) -> bool:
        """Whether the pixels are in files, decoded when they are asked for."""
        return not self._store.in_memory

    @property
    def skipped(self) -> list[Damage]:
        """(path, reason) of the files in this split that were met and could not be read."""
        damaged = self._store.damaged
        if not damaged:
            return []
        return [damaged[n] for n in self._numbers.unique().tolist() if n in damaged]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image ``index`` as ``uint8`` (c, h, w) and its label (-1 when unlabelled)."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for a split of {len(self)} images")
        image = self.images([index % len(self)])[0]
        labels = self._all_labels
        return image, -1 if labels is None else int(labels[self._numbers[index]])

    def load(
        self,
        indices: Indices | None = None,
        *,
        size: int | None = None,
        progress: OnRead | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Readable images and their labels: ``uint8`` (m, c, h, w) and int64 (m,), m <= n.

        Labels are -1 when the split has none. ``progress(done, total)`` counts files while they are
        decoded.

        Raises
        ------
        ArgumentError
            When an index or the size is out of range.
        DataError
            When more than half of the split cannot be read, or images differ in size and no size is
            given.
        """
        return self._settle(self._read(self._positions(indices), size, progress))

    def images(
        self,
        indices: Indices | None = None,
        *,
        size: int | None = None,
        progress: OnRead | None = None,
    ) -> Tensor:
        """Images ``uint8`` (n, c, h, w), one row per index and in step with ``labels[indices]``.

        Raises
        ------
        ArgumentError, DataError
            As :meth:`load`; and DataError when a class has no readable image at all.
        """
        positions = self._positions(indices)
        images, _, good = result = self._read(positions, size, progress)
        self._settle(result)
        if good is not None:
            for row in (~good).nonzero().flatten().tolist():
                images[row] = self._stand_in(int(positions[row]), size)
        return images

    def batches(
        self,
        batch_size: int,
        *,
        size: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        crops: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate once over (``uint8`` images, int64 labels), reading one batch ahead.

        Unreadable images are left out, so a batch may be smaller than ``batch_size``. The order
        under ``shuffle`` depends on ``seed`` alone: give another seed every epoch. ``crops``, draws of a
        :func:`~clusterprune.data.crops.resized_crop` (n, 5), give random windows in place of whole images.

        Raises
        ------
        ArgumentError
            When ``batch_size`` or ``size`` is below 1, or ``crops`` are not as many as the images.
        """
        if batch_size < 1:
            raise ArgumentError(f"batch_size must be at least 1, but got batch_size={batch_size}.")
        check_size(size, "size")
        if crops is not None and crops.shape != (len(self), DRAWS):
            raise ArgumentError(f"crops must have shape {(len(self), DRAWS)}, but got {tuple(crops.shape)}.")
        order = torch.arange(len(self))
        if shuffle:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        parts = [part for part in order.split(batch_size) if len(part)]
        if drop_last and parts and len(parts[-1]) < batch_size:
            parts.pop()
        return self._iterate(parts, size, crops)

    def numbered(self) -> "Split":
        """Return the same images with their positions in this split in place of labels."""
        where = torch.full((len(self._store),), -1)
        where[self._numbers] = torch.arange(len(self))
        return Split(self._store, where, image_size=self.image_size, numbers=self._numbers)

    def subset(self, indices: Indices) -> "Split":
        """Split of the images at ``indices``, sharing pixels with this one."""
        return self._like(numbers=self._numbers[self._positions(indices)])

    def resized(self, size: int | None) -> "Split":
        """Return the same images, read at another size; None is their own."""
        return self._like(image_size=size)

    def relabelled(self, labels: Tensor, classes: Sequence[str]) -> "Split":
        """Return the same images with other labels: `labels[k]` in place of every k, among `classes`."""
        if self._all_labels is None:
            return self
        return self._like(labels=labels[self._all_labels], classes=classes)

    def _like(self, **changes: Any) -> "Split":
        """Return a split of the same store that differs in some arguments."""
        own = {"labels": self._all_labels, "classes": self.classes, "boxes": self._all_boxes}
        return Split(self._store, **{**own, "image_size": self.image_size, "numbers": self._numbers, **changes})

    def _iterate(self, parts: list[Tensor], size: int | None, crops: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        def read(part: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            return self._read(part, size, None, None if crops is None else crops[part])

        if self._store.in_memory:
            for part in parts:
                yield self._settle(read(part))
            return
        with ThreadPoolExecutor(1, thread_name_prefix="clusterprune-ahead") as ahead:
            reads = (ahead.submit(read, part) for part in parts)
            current = next(reads, None)
            while current is not None:
                result = current.result()
                current = next(reads, None)  # starts before this batch is used
                images, labels = self._settle(result)
                if len(images):
                    yield images, labels

    def _positions(self, indices: Indices | None) -> Tensor:
        """Check indices and return them as int64; a boolean mask is understood too."""
        if indices is None:
            return torch.arange(len(self))
        positions = torch.as_tensor(indices).cpu()
        if positions.dtype == torch.bool:
            if positions.shape != (len(self),):
                raise ArgumentError(
                    f"a boolean mask must have one entry per image ({len(self)}), but has shape "
                    f"{tuple(positions.shape)}."
                )
            return positions.nonzero().flatten()
        if positions.numel() == 0:
            return torch.empty(0, dtype=torch.int64)
        if positions.is_floating_point() or positions.dim() != 1:
            raise ArgumentError(
                "indices must be one row of whole numbers, but got "
                f"{positions.dtype} of shape {tuple(positions.shape)}."
            )
        low, high = int(positions.min()), int(positions.max())
        if low < 0 or high >= len(self):
            raise ArgumentError(
                f"indices must lie in 0..{len(self) - 1} for a split of {len(self)} images, but "
                f"they span {low}..{high}."
            )
        return positions.to(torch.int64)

    def _read(
        self, positions: Tensor, size: int | None, progress: OnRead | None, crops: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images, labels and which rows are good, before any complaint about the others."""
        numbers = self._numbers[positions]
        size = check_size(size, "size") or self.image_size
        images, good = self._store.read(numbers, size, progress, crops)
        if self._all_labels is None:
            return images, torch.full((len(numbers),), -1), good
        return images, self._all_labels[numbers], good

    def _settle(self, result: tuple[Tensor, Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
        """Complain about what could not be read, and drop it."""
        images, labels, good = result
        if good is None:
            return images, labels
        damaged = self._store.damaged
        mine = [n for n in self._numbers.unique().tolist() if n in damaged]
        bad = [damaged[n] for n in mine]
        if 2 * len(bad) > len(self._numbers.unique()):
            raise DataError(all_damaged(bad, len(self)))
        fresh = [n for n in mine if n not in self._store.announced]
        if fresh:
            self._store.announced.update(fresh)
            listing = "; ".join(f"{damaged[n].path} ({damaged[n].reason})" for n in fresh[:5])
            more = f"; and {len(fresh) - 5} more, see .skipped" if len(fresh) > 5 else ""
            warnings.warn(
                f"skipped {len(fresh)} image(s) that cannot be read: {listing}{more}",
                CorruptImageWarning,
                stacklevel=3,
            )
        return images[good], labels[good]

    def _stand_in(self, position: int, size: int | None) -> Tensor:
        """Find a readable image of the same class, in the split or else in the store; a grey one where it has boxes."""
        if self._all_boxes is not None:
            return torch.full(self._store.shape(size or self.image_size), 127, dtype=torch.uint8)
        labels = self._all_labels
        everything = torch.arange(len(self._store))
        candidates = torch.cat([self._numbers.roll(-position - 1), everything])
        if labels is not None:
            candidates = candidates[labels[candidates] == labels[self._numbers[position]]]
        for number in candidates.tolist():
            images, good = self._store.read(torch.tensor([number]), size or self.image_size)
            if good is None:
                return images[0]
        name = "" if labels is None else self.classes[int(labels[self._numbers[position]])]
        raise DataError(f"class {name!r} has no readable image. Fetch its images again, or remove the class.")

"""Where pixels are kept: in memory, or in files that are decoded when they are asked for."""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from clusterprune.data.crops import resized_crop
from clusterprune.data.decode import MixedSizesError, OnRead, decode, decode_into, explain, shape_of
from clusterprune.data.resize import empty_images, resize_batch
from clusterprune.errors import DataError

#: Decoded images are kept as long as a whole store at that size takes no more room than this.
CACHE_BYTES = 1 << 30
#: Files whose headers say whether all images have one size: reading those of a million would take minutes.
LOOKED_AT = 500


class Damage(NamedTuple):
    """A file that could not be read, and why."""

    path: str
    reason: str


class ImageStore(Protocol):
    """A numbered collection of images."""

    #: Damaged files met so far, by number.
    damaged: dict[int, Damage]
    #: Those of them that the user has been warned about.
    announced: set[int]
    #: Whether :meth:`read` is quick enough not to need reading ahead.
    in_memory: bool

    def __len__(self) -> int:
        """Count the images, damaged ones included."""
        ...

    def shape(self, size: int | None) -> tuple[int, int, int]:
        """Channels, height and width of what :meth:`read` returns."""
        ...

    def common_shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width of the images as they are; None where they differ."""
        ...

    def read(
        self, numbers: Tensor, size: int | None, progress: OnRead | None = None, crops: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Images ``uint8`` (n, c, h, w) and which rows are good (bool, None when all are).

        With ``crops``, the draws (n, 5) of a :func:`~clusterprune.data.crops.resized_crop`, a window of each.
        """
        ...


class MemoryStore:
    """Images held as one ``uint8`` tensor (n, c, h, w)."""

    in_memory = True

    def __init__(self, images: Tensor) -> None:
        self.damaged: dict[int, Damage] = {}
        self.announced: set[int] = set()
        self._images = images

    def __len__(self) -> int:
        return self._images.shape[0]

    def shape(self, size: int | None) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self._images.shape[1:]
        return (channels, height, width) if size is None else (channels, size, size)

    def common_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.shape(None)

    def read(
        self, numbers: Tensor, size: int | None, progress: OnRead | None = None, crops: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Copy the images asked for; see :class:`ImageStore`."""
        images = self._images[numbers]
        if size is not None and tuple(images.shape[-2:]) != (size, size):
            images = resize_batch(images, size)
        if crops is not None:
            images = resized_crop(images, crops)
        if progress:
            progress(len(numbers), len(numbers))
        return images, None


class FileStore:
    """Image files, decoded to RGB on demand and kept when the whole store is small.

    With `whole`, images are stretched to a square, so that boxes in them stay whole; else its centre is cut out.
    """

    in_memory = False

    def __init__(self, paths: Sequence[str], *, whole: bool = False) -> None:
        self._whole = whole
        self.damaged: dict[int, Damage] = {}
        self.announced: set[int] = set()
        self._paths = list(paths)
        self._native: tuple[int, int, int] | None = None
        self._cache: dict[int | None, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def shape(self, size: int | None) -> tuple[int, int, int]:
        """Channels, height, width; without a size, those of the first readable file."""
        if size is not None:
            return (3, size, size)
        if self._native is None:
            for number, path in enumerate(self._paths):
                if number in self.damaged:
                    continue
                try:
                    channels, height, width = decode(path).shape
                except Exception as error:  # as in decode_into
                    self.damaged[number] = Damage(path, explain(error))
                else:
                    self._native = (channels, height, width)
                    break
            else:
                raise DataError(all_damaged(list(self.damaged.values()), len(self)))
        return self._native

    def common_shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width of a few hundred files that lie evenly among all; None where two differ."""
        found: set[tuple[int, int, int]] = set()
        for path in self._paths[:: max(1, len(self) // LOOKED_AT)]:
            with contextlib.suppress(Exception):  # whatever a damaged file raises; whoever reads it will say so
                found.add(shape_of(path))
            if len(found) > 1:
                return None
        return found.pop() if found else None

    def read(
        self, numbers: Tensor, size: int | None, progress: OnRead | None = None, crops: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Decode the images asked for, or fetch those kept; see :class:`ImageStore`."""
        shape = self.shape(size)
        kept = self._room(size, shape) if crops is None else None
        if kept is None:
            images = empty_images(len(numbers), shape)
            wanted = [(row, n) for row, n in enumerate(numbers.tolist()) if n not in self.damaged]
            self._decode(wanted, images, size, progress, crops)
        else:
            cache, ready = kept
            todo = numbers[~ready[numbers]].unique().tolist()
            wanted = [(n, n) for n in todo if n not in self.damaged]
            self._decode(wanted, cache, size, progress)
            ready[[n for _, n in wanted if n not in self.damaged]] = True
            images = cache[numbers]
        if not self.damaged:
            return images, None
        good = torch.tensor([n not in self.damaged for n in numbers.tolist()], dtype=torch.bool)
        return images, None if good.all() else good

    def _decode(
        self,
        wanted: list[tuple[int, int]],
        out: Tensor,
        size: int | None,
        progress: OnRead | None,
        crops: Tensor | None = None,
    ) -> None:
        """Decode file ``number`` into row ``row`` of ``out`` for every (row, number) wanted."""
        numbers = dict(wanted)
        paths = [self._paths[n] for n in numbers.values()]
        try:
            problems = decode_into(paths, list(numbers), out, size, progress, crops, whole=self._whole)
        except MixedSizesError as error:
            height, width = out.shape[-2:]
            raise DataError(
                f"the images differ in size: {error.path} is {error.shape[0]}x{error.shape[1]}, "
                f"others are {height}x{width} (height x width). Give image_size (or size) to bring "
                "all to one."
            ) from None
        for row, reason in problems.items():
            self.damaged[numbers[row]] = Damage(self._paths[numbers[row]], reason)

    def _room(self, size: int | None, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor] | None:
        """Find the kept images of this size and which are decoded; None if too many to keep."""
        if size not in self._cache:
            channels, height, width = shape
            need = len(self) * channels * height * width
            used = sum(images.numel() for images, _ in self._cache.values())
            if need + used > CACHE_BYTES:
                return None
            # Uninitialised memory costs nothing until it is written, so a few images stay cheap.
            room = empty_images(len(self), shape)
            self._cache[size] = (room, torch.zeros(len(self), dtype=torch.bool))
        return self._cache[size]


def all_damaged(damaged: Sequence[Damage], total: int) -> str:
    """Message for a collection with too many unreadable images."""
    some = "; ".join(f"{d.path} ({d.reason})" for d in damaged[:3])
    return (
        f"{len(damaged)} of {total} images cannot be read, more than half: {some}"
        f"{'; …' if len(damaged) > 3 else ''}. Fetch the data again, or remove the damaged files."
    )

"""A data set: its splits by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from clusterprune.data.split import Split
from clusterprune.errors import DataError


@dataclass(frozen=True)
class Dataset:
    """A named data set.

    Attributes
    ----------
    name
        The spec it was opened by, such as ``cifar10:DIR``.
    classes
        Class names, in the order of the labels.
    splits
        "train", "test" or both.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split] = field(repr=False)

    @property
    def train(self) -> Split:
        """Images to learn from. Raises DataError when the data set has none."""
        return self._get("train", "train/")

    @property
    def test(self) -> Split:
        """Images to be read once, at the end. Raises DataError when the data set has none."""
        return self._get("test", "test/ or val/")

    def resized(self, size: int | None) -> "Dataset":
        """Return the same data, read at another size; None is the images' own."""
        return replace(self, splits={key: split.resized(size) for key, split in self.splits.items()})

    def _get(self, key: str, where: str) -> Split:
        if key not in self.splits:
            raise DataError(
                f"data set {self.name!r} has no {key} images. Add a folder {where} with one folder "
                "per class, or do without this step."
            )
        return self.splits[key]

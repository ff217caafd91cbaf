"""What a report draws of two networks, and nobody reads as numbers: widths of layers, hits of classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_WIDTHS = ("out_channels", "out_features")


class HitsByClass:
    """Counts, batch by batch, how many images of each class a network gets right.

    It is an `each` of :func:`clusterprune.evaluate.metrics`. Of outputs that are no scores of classes, or targets that
    are no class for each image, it counts nothing.
    """

    def __init__(self) -> None:
        self._hits = self._images = torch.zeros(0, dtype=torch.int64)

    def __call__(self, outputs: Any, targets: Any) -> None:
        """Count a batch: scores (n, classes), and the class of each image, int64 (n,)."""
        if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or outputs.ndim != 2:
            return
        if targets.shape != outputs.shape[:1] or targets.is_floating_point():
            return
        right = targets[outputs.argmax(1) == targets]
        count = outputs.shape[1]
        hits, images = (torch.bincount(part.cpu().long(), minlength=count) for part in (right, targets))
        self._hits, self._images = (hits, images) if not len(self._hits) else (self._hits + hits, self._images + images)

    @property
    def images(self) -> list[int]:
        """Images by class; empty where nothing was counted."""
        return self._images.tolist()

    @property
    def hits(self) -> list[int]:
        """Those among them that were right."""
        return self._hits.tolist()


def details(
    models: Mapping[str, nn.Module], by_class: Mapping[str, HitsByClass], classes: Sequence[str]
) -> dict[str, Any]:
    """Return the content of ``details.json``.

    Parameters
    ----------
    models
        The networks by name, the whole one first.
    by_class
        What was counted of each.
    classes
        Their names.

    Returns
    -------
    dict
        `widths`: by layer, the channels that it makes in each of the networks. `classes`: names, images, and the hits
        in each of the networks; without images, there is none.
    """
    widths = [_widths(model) for model in models.values()]
    found: dict[str, Any] = {
        "networks": list(models),
        "widths": {layer: [some.get(layer) for some in widths] for layer in widths[0]},
    }
    counted = next(iter(by_class.values())).images
    if counted:
        names = [*classes, *(str(number) for number in range(len(classes), len(counted)))]
        hits = {name: one.hits for name, one in by_class.items()}
        found["classes"] = {"names": names[: len(counted)], "images": counted, "hits": hits}
    return found


def _widths(model: nn.Module) -> dict[str, int]:
    """Return how many channels every convolution and linear layer makes, by its path, in the order of the modules."""
    found: dict[str, int] = {}
    for path, module in model.named_modules():
        width = next((value for name in _WIDTHS if isinstance(value := getattr(module, name, None), int)), None)
        if width is not None:
            found[path] = width
    return found

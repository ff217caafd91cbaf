"""What the outputs of the detectors that we know mean."""

from torch import nn

from clusterprune.errors import ArgumentError
from clusterprune.models.ssd import SSD
from clusterprune.tasks import Head, MultiBox


def head_of(model: nn.Module) -> Head:
    """Return what the outputs of a detector mean.

    Raises
    ------
    ArgumentError
        It is none that says so.
    """
    if isinstance(model, SSD):
        return MultiBox(model.default_boxes)
    raise ArgumentError(
        f"nobody says what the outputs of model={type(model).__name__} mean: write decode(outputs), and loss(outputs, "
        "targets) if it is to be trained, beside its factory; or give --task plain, which compares outputs as they are"
    )

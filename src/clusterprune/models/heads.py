"""What the outputs of the detectors that we know mean."""

from torch import Tensor, nn

from clusterprune.errors import ArgumentError
from clusterprune.tasks import Head, MultiBox


def head_of(model: nn.Module) -> Head:
    """Return what the outputs of a detector mean: of one with `default_boxes`, what SSD's do.

    Raises
    ------
    ArgumentError
        It is none that says so.
    """
    boxes = getattr(model, "default_boxes", None)
    if isinstance(boxes, Tensor):
        return MultiBox(boxes)
    name = type(getattr(model, "detector", model)).__name__
    raise ArgumentError(
        f"nobody says what the outputs of model={name} mean: write decode(outputs), and loss(outputs, "
        "targets) if it is to be trained, beside its factory; or give --task plain, which compares outputs as they are"
    )

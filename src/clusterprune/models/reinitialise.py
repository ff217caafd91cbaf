"""Random weights for a network that nobody can build anew."""

from torch import nn

from clusterprune.errors import ModelError
from clusterprune.evaluate.mode import device_of
from clusterprune.graph.put_back import seeded


def reinitialise_(model: nn.Module, seed: int) -> nn.Module:
    """Let every layer draw its own initial weights, in place, by its `reset_parameters`.

    They are drawn on the CPU, so that a seed means the same weights on every device.

    Raises
    ------
    ModelError
        If a module has parameters and does not know how.
    """
    place = device_of(model)
    model.cpu()
    with seeded(seed):
        for path, module in model.named_modules():
            if not list(module.parameters(recurse=False)):
                continue
            reset = getattr(module, "reset_parameters", None)
            if not callable(reset):
                raise ModelError(
                    f"{path or type(module).__name__} has parameters but no reset_parameters, so it cannot be trained "
                    "from random weights; give a factory, or let it inherit the original's"
                )
            reset()
    return model.to(place)

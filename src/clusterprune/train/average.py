"""The exponential moving average of a network's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """After each step a ← decay · a + (1 − decay) · w (Polyak and Juditsky 1992, with forgetting).

    It follows every floating-point parameter and buffer, running statistics included, so that the
    averaged weights come with statistics of their own age.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._update = get_ema_multi_avg_fn(decay)
        self.tensors = {name: tensor.detach().clone() for name, tensor in _floating(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        self._update(list(self.tensors.values()), [t.detach() for t in _floating(model).values()], 0)

    @torch.no_grad()
    def write_to(self, model: nn.Module) -> None:
        """Replace the model's weights by their average."""
        for name, tensor in _floating(model).items():
            tensor.copy_(self.tensors[name])

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Lend the model the averaged weights; afterwards it has its own again."""
        own = {name: tensor.detach().clone() for name, tensor in _floating(model).items()}
        try:
            self.write_to(model)
            yield
        finally:
            with torch.no_grad():
                for name, tensor in _floating(model).items():
                    tensor.copy_(own[name])


def _floating(model: nn.Module) -> dict[str, Tensor]:
    return {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor) and t.is_floating_point()}

"""What the second device refuses and allows, as CUDA does; run by ``run_on_second_device.py``."""

from collections.abc import Callable

import pytest
import second_device
import torch
from torch import nn

THERE = torch.device(second_device.NAME, 0)
here, there = torch.ones(4, 3), torch.ones(4, 3, device=THERE)
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "sum": (lambda: here + there, "two devices"),
    "product": (lambda: there @ here.T, "two devices"),
    "in place": (lambda: there.add_(here), "two devices"),
    "in place, the other way": (lambda: here.add_(there), "two devices"),
    "layer": (lambda: nn.Linear(3, 2)(there), "two devices"),
    "concatenation": (lambda: torch.cat([here, there]), "two devices"),
    "vector with a number from there": (lambda: here * there.sum(), "two devices"),
    "index from there": (lambda: here[torch.tensor([0], device=THERE)], "indices should be"),
    "index_select": (lambda: there.index_select(0, torch.tensor([0])), "two devices"),
    "values for indices": (lambda: there.index_put_((torch.tensor([0]),), here[0]), "two devices"),
    "generator": (lambda: torch.randn(2, device=THERE, generator=torch.Generator()), "generator"),
    "permutation": (lambda: torch.randperm(4, device=THERE, generator=torch.Generator()), "generator"),
    "NumPy": (there.numpy, "numpy"),
}
for attempt, message in REFUSED.values():
    with pytest.raises((RuntimeError, TypeError), match=message):
        attempt()

there = torch.ones(4, 3, device=THERE)
assert (there * torch.tensor(2.0)).device == THERE  # a number from the CPU
assert there[torch.tensor([0, 2])].device == THERE
assert there[torch.tensor([True, False, True, False])].shape == (2, 3)
there[torch.tensor([1])] = torch.tensor(5.0)
there[2:] = here[2:] * 7  # a copy
assert there.cpu().sum(1).tolist() == [3, 15, 21, 21]
assert there.copy_(here).sum().item() == 12
assert here.copy_(there * 2).sum() == 24
assert there.to("cpu").device.type == "cpu"
there.view(-1)[0] = 9  # views share memory
assert there[0, 0].item() == 9

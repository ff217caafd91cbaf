"""Nothing in a step that is to be recorded waits for the second device or copies from the CPU, as CUDA would refuse.

Run by ``run_on_second_device.py``. PyTorch's fused optimizer, which reads the learning rate on the card, does not know
this device; one that does the same takes its place.
"""

from collections.abc import Callable

import pytest
import second_device
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from clusterprune import models, tasks, train
from clusterprune.train import Guidance, captured

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


class Refused(TorchDispatchMode):
    """Notes what reads a value of the device, and what comes from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        waits = name in WAITS and tensors[0].device.type == second_device.NAME
        places = {tensor.device.type for tensor in tensors if tensor.ndim}
        if waits or (second_device.NAME in places and len(places) > 1):
            self.found.append(name)
        return result


class Strict:
    """A recorder that looks at every operation of the step that it is given to record."""

    recorded = 0

    def rehearse(self, step: Callable[[], None]) -> list[str]:
        step()
        return []

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        Strict.recorded += 1
        first = True

        def replay() -> None:
            nonlocal first
            refused = Refused()
            if first:
                with refused:
                    step()
            else:
                step()
            first = False
            assert refused.found == [], refused.found

        return replay


class SGD(torch.optim.SGD):
    """Steps without reading the rate."""

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                change = parameter.grad + group["weight_decay"] * parameter
                buffer = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
                buffer.mul_(group["momentum"]).add_(change)
                parameter.sub_((change + group["momentum"] * buffer) * group["lr"])


torch.optim.SGD = SGD
captured.recorder_for = lambda device: Strict()
captured.WORTH = 0

generator = torch.Generator().manual_seed(0)
pixels = torch.randint(0, 255, (150, 3, 32, 32), dtype=torch.uint8, generator=generator)
labels = torch.arange(150) % 10
task = tasks.Classification((pixels, labels), (pixels[:40], labels[:40]), mean=(0.5,) * 3, std=(0.25,) * 3)
spec = {"num_classes": 10, "seed": 0}
for settings in (
    {"augment": "crop_flip", "clip_norm": 1.0, "label_smoothing": 0.1},
    {"augment": "resized_crop_flip", "ema_decay": 0.9},
):
    model = models.build("resnet20", **spec)
    config = train.TrainConfig(epochs=2, batch_size=32, device=second_device.NAME, precision="float32", **settings)
    train.fit(model, task, config)
config = train.TrainConfig(epochs=2, batch_size=32, device=second_device.NAME, precision="float32")
teacher = models.build("resnet20", **spec)
train.fit(models.build("resnet20", **spec), task, config, loss=Guidance(teacher, task))
assert Strict.recorded == 3


class Reads(nn.Module):
    """Looks at a value while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.network = models.build("resnet20", **spec)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images) * (1.0 if images.mean().item() > -1e9 else 0.0)


with pytest.raises(AssertionError, match="_local_scalar_dense"):
    train.fit(Reads(), task, config)

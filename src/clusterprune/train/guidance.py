"""Training under the guidance of the network before it was cut (ICP): distillation and attention transfer."""

import math
from collections.abc import Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from clusterprune.errors import ArgumentError, ModelError
from clusterprune.tasks import Task
from clusterprune.tasks.reference import Reference
from clusterprune.train.stages import Call, Reader, calls_of, check_stages, find_stages, reader


class Guidance:
    """A loss that holds a student to its task and to a teacher, on the same images.

    ::

        L = α·D_τ(z_S, z_T) + (1 − α)·loss(z_S, y) + β·Σ_k mean( (A(F_S^k) − A(F_T^k))² )

    (Hinton et al. 2015; Zagoruyko and Komodakis 2017.) The task says what D and the loss are: of classification,
    D_τ = τ²·KL( softmax(z_T/τ) ‖ softmax(z_S/τ) ), summed over classes and averaged over the batch, and the cross
    entropy. A is :func:`attention`.

    Parameters
    ----------
    teacher
        Copied; the copy is in evaluation mode, is never changed, and follows the images from device
        to device.
    task
        What the networks are for.
    temperature
        τ; above 0.
    alpha
        α, from 0 (the task's loss alone) to 1 (teacher alone).
    beta
        β, 0 or more. Without it no stage is looked for; with α = 0 as well, the teacher is not run.
    stages
        Names of the modules whose outputs are compared: feature maps (n, c, h, w) of the same
        height and width in teacher and student, with any number of channels each. ``"auto"`` takes
        the papers' for CIFAR VGG (the ReLUs that end stages 2, 3 and 4), CIFAR and torchvision
        ResNet (layer1, layer2, layer3) and CIFAR GoogLeNet (3b, 4e, 5b), and for any other teacher
        the last map at each resolution above one pixel. In a student that was rebuilt as a graph,
        they are found by what follows the last layer of the stage
        (see :mod:`clusterprune.train.stages`).

    Notes
    -----
    The defaults are ICP's for CIFAR; for ImageNet its authors take α = 0.5 and β = 50.

    Raises
    ------
    ArgumentError
        A number is out of range.
    """

    def __init__(
        self,
        teacher: nn.Module,
        task: Task,
        *,
        temperature: float = 20.0,
        alpha: float = 0.3,
        beta: float = 1.0,
        stages: Sequence[str] | Literal["auto"] = "auto",
    ) -> None:
        if not (math.isfinite(temperature) and temperature > 0):
            raise ArgumentError(f"temperature must be above 0, but got temperature={temperature}")
        if not 0 <= alpha <= 1:
            raise ArgumentError(f"alpha must be between 0 and 1, but got alpha={alpha}")
        if not (math.isfinite(beta) and beta >= 0):
            raise ArgumentError(f"beta must be 0 or more, but got beta={beta}")
        if stages != "auto" and (isinstance(stages, str) or not stages):
            raise ArgumentError(f"stages must be 'auto' or a list of module names, but got stages={stages!r}")
        self.temperature = temperature
        self.alpha = alpha
        self.beta = beta
        self.stages: tuple[str, ...] | Literal["auto"] = "auto" if stages == "auto" else tuple(stages)
        self._task, self._teacher = task, Reference(teacher)
        self._calls: list[Call] = []
        self._readers: WeakKeyDictionary[nn.Module, tuple[Reader, Reader]] = WeakKeyDictionary()

    def __call__(self, model: nn.Module, images: Tensor, targets: Any) -> tuple[Tensor, Any]:
        """Return the loss (scalar, float32) and the student's outputs.

        Raises
        ------
        ArgumentError
            A stage is no feature map of the teacher, or the student is compiled.
        ModelError
            The student lacks a stage, or its maps or outputs have other sizes than the teacher's.
        """
        if self.alpha == self.beta == 0:
            outputs = model(images)
            return self._task.loss(outputs, images, targets), outputs
        if self._teacher.follow(images.device):
            self._readers.clear()
        if self.beta == 0:
            outputs, maps = model(images), []
            guide, guide_maps = self._teacher(images), []
        else:
            read_student, read_teacher = self._readers_for(model, images)
            outputs, maps = read_student(model, images)
            with torch.no_grad():
                guide, guide_maps = read_teacher(self._teacher.network, images)
        loss = torch.zeros((), device=images.device)
        if self.alpha < 1:
            loss = loss + (1 - self.alpha) * self._task.loss(outputs, images, targets)
        if self.alpha > 0:
            loss = loss + self.alpha * self._task.distillation(outputs, guide, self.temperature)
        for own, guides in zip(maps, guide_maps, strict=True):
            loss = loss + self.beta * (attention(own) - attention(_same_size(guides, own))).square().mean()
        return loss, outputs

    def __repr__(self) -> str:
        """Name the settings, and the teacher by its class and a digest of its weights."""
        return (
            f"Guidance(teacher={self._teacher!r}, task={self._task!r}, temperature={self.temperature}, "
            f"alpha={self.alpha}, beta={self.beta}, stages={self.stages!r})"
        )

    @property
    def reads_outputs_alone(self) -> bool:
        """Whether no stage is looked at, so that a compiled network will do."""
        return self.beta == 0

    def _readers_for(self, model: nn.Module, images: Tensor) -> tuple[Reader, Reader]:
        """Return how to read the stages of student and teacher; found on a student's first batch."""
        if model._compiled_call_impl is not None:
            raise ArgumentError("compile=True leaves no stages to compare; pass compile=False, or beta=0 to Guidance")
        if model not in self._readers:
            calls = self._calls = self._calls or calls_of(self._teacher.network, images)
            if self.stages == "auto":
                stages = find_stages(self._teacher.network, model, calls)
            else:
                stages = self.stages
            check_stages(stages, calls)
            self._readers[model] = (
                reader(model, stages, calls, images),
                reader(self._teacher.network, stages, calls, images),
            )
        return self._readers[model]


def attention(maps: Tensor) -> Tensor:
    """Return A(F), (n, h·w): where a stage is active, whatever its number of channels.

    A(F) = l2-normalise( flatten( mean over channels of F² ) ) for F (n, c, h, w).
    """
    return functional.normalize(maps.float().square().mean(1).flatten(1), dim=1)


def _same_size(guides: Tensor, own: Tensor) -> Tensor:
    if guides.shape[2:] != own.shape[2:]:
        raise ModelError(
            f"a stage has maps of {tuple(guides.shape[2:])} pixels in the teacher and {tuple(own.shape[2:])} in the "
            "model; name stages of equal resolution"
        )
    return guides

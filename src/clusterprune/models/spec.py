"""What the rest of the library needs to know about a model before it is built."""

import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clusterprune.errors import ArgumentError, ClusterpruneError, ModelError
from clusterprune.graph.put_back import seeded
from clusterprune.tasks import Head

CIFAR_SHAPE = (3, 32, 32)
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)
IMAGENET_SHAPE = (3, 224, 224)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def usual_statistics(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation that are assumed where nobody states them.

    Of three channels ImageNet's; of others 0 and 1, which leave images in [0, 1] as they are.
    """
    return (IMAGENET_MEAN, IMAGENET_STD) if channels == len(IMAGENET_MEAN) else ((0.0,) * channels, (1.0,) * channels)


@dataclass(frozen=True)
class ModelSpec:
    """A way to build a network, and the input that it expects.

    Attributes
    ----------
    name
        What the user wrote; errors repeat it.
    factory
        Returns a new network. It is called with ``num_classes=int`` when a number is asked for and
        it takes that argument, else with nothing.
    input_shape
        (channels, height, width).
    mean, std
        Per channel, on images in [0, 1]: the network reads (image - mean) / std.
    num_classes
        What ``factory()`` gives by default; 0 when that is unknown or the network ends without a
        classifier.
    assumed
        Which of `input_shape`, `mean` and `std` nobody has stated, so that ImageNet's stand there.
    head
        Of a detector: from the network as built, what its outputs mean.
    resize
        Of a network that is built for images of one height and width: makes it one for others.
    """

    name: str
    factory: Callable[..., nn.Module]
    input_shape: tuple[int, int, int] = IMAGENET_SHAPE
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    num_classes: int = 0
    assumed: frozenset[str] = frozenset()
    head: Callable[[Any], Head] | None = None
    resize: Callable[[nn.Module, int, int], None] | None = None

    def __post_init__(self) -> None:
        """Refuse shapes and statistics that no image can have."""
        shape, channels = self.input_shape, self.input_shape[0] if self.input_shape else 0
        if len(shape) != len(IMAGENET_SHAPE) or not all(_is_integer(n, 1) for n in shape):
            msg = (
                f"model={self.name!r}: input_shape must be (channels, height, width), three "
                f"integers of 1 or more, but got {shape}."
            )
            raise ModelError(msg)
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            msg = (
                f"model={self.name!r}: mean and std must have one number for each of the "
                f"{channels} input channels, and std be above 0, but got mean={self.mean}, "
                f"std={self.std}."
            )
            raise ModelError(msg)
        if not _is_integer(self.num_classes, 0):
            msg = f"model={self.name!r}: num_classes must be an integer of 0 or more, but got {self.num_classes!r}."
            raise ModelError(msg)

    @property
    def takes_num_classes(self) -> bool:
        """Whether the factory can be asked for a number of classes."""
        return _takes_num_classes(self.factory)

    def build(self, num_classes: int | None = None, seed: int | None = None) -> nn.Module:
        """Return a new network in eval mode.

        Parameters
        ----------
        num_classes
            Outputs of the last layer; None leaves the factory's default.
        seed
            Seeds the initial weights and leaves the global generator as it was; None draws from it.

        Raises
        ------
        ModelError
            The factory raises, returns something else, or cannot give ``num_classes`` outputs.
        ArgumentError
            ``num_classes`` or ``seed`` is not an integer in range.
        """
        _check_integer("num_classes", num_classes, 1)
        _check_integer("seed", seed, 0)
        takes = _takes_num_classes(self.factory)
        arguments = {"num_classes": num_classes} if takes and num_classes is not None else {}
        if seed is None:
            model = self._call(arguments)
        else:
            with seeded(seed):
                model = self._call(arguments)
        if self.resize is not None:
            self.resize(model, *self.input_shape[1:])
        model.eval()
        if num_classes is not None and not takes:
            self._check_outputs(model, num_classes)
        return model

    def example(self, batch: int = 1) -> Tensor:
        """Return a float32 input (batch, channels, height, width) of fixed normal noise."""
        _check_integer("batch", batch, 1)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, *self.input_shape, generator=generator)

    def _call(self, arguments: dict[str, int]) -> nn.Module:
        try:
            model = self.factory(**arguments)
        except ClusterpruneError:
            raise
        # Whatever a user's own code raises becomes an error that names it.
        except (Exception, SystemExit) as error:
            called = ", ".join(f"{key}={value}" for key, value in arguments.items())
            msg = (
                f"model={self.name!r}: the factory, called with ({called}), raised "
                f"{describe(error)}. Correct the factory: called like this, it must return a "
                "torch.nn.Module."
            )
            raise ModelError(msg) from error
        if not isinstance(model, nn.Module):
            msg = (
                f"model={self.name!r}: the factory returned {type(model).__name__}, but must return a torch.nn.Module."
            )
            raise ModelError(msg)
        return model

    def _check_outputs(self, model: nn.Module, num_classes: int) -> None:
        """Compare the logits with what was asked, for a factory that could not be told."""
        parameter = next(model.parameters(), None)
        example = self.example() if parameter is None else self.example().to(parameter)
        try:
            with torch.no_grad():
                output = model(example)
        # A model that cannot run on this input is reported by whoever first needs it to run.
        except Exception:
            return
        logits = output.shape[1:] if isinstance(output, Tensor) else ()
        if len(logits) == 1 and logits[0] != num_classes:
            msg = (
                f"model={self.name!r} has {logits[0]} outputs, but num_classes={num_classes} was "
                "asked for. Give the factory a num_classes parameter, or leave num_classes out."
            )
            raise ModelError(msg)


def describe(error: BaseException) -> str:
    """Say what was raised and on which line, since the command line prints no traceback."""
    text = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    # A syntax error names its line itself, and a line of ours would mislead.
    if isinstance(error, SyntaxError) or not frames:
        return text
    file = Path(frames[-1].filename)
    return text if file.parent == Path(__file__).parent else f"{text} ({file}:{frames[-1].lineno})"


def _takes_num_classes(factory: Callable[..., nn.Module]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # callables written in C may have no signature
        return False
    return any(
        p.kind is p.VAR_KEYWORD or (p.name == "num_classes" and p.kind is not p.POSITIONAL_ONLY) for p in parameters
    )


def _is_integer(value: object, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _check_integer(argument: str, value: int | None, minimum: int) -> None:
    if value is not None and not _is_integer(value, minimum):
        msg = f"{argument} must be an integer of {minimum} or more, but got {argument}={value!r}."
        raise ArgumentError(msg)

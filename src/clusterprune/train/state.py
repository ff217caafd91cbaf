"""Everything that training changes, in one object that can be taken out and put back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from clusterprune.errors import ArgumentError, ModelError
from clusterprune.train.average import WeightAverage
from clusterprune.train.checkpoint import Tally
from clusterprune.train.hooks import EpochHook

_SCALER = ("scale", "_growth_tracker")  # what changes in the state of a gradient scaler
_SHOWN = 5  # differences that one error lists


@dataclass
class TrainState:
    """A run between two steps.

    Attributes
    ----------
    epoch
        Number of epochs completed.
    step
        Number of steps taken in the epoch after those.
    history
        One record per completed epoch.
    tally
        Sums over those `step` steps.
    hook, average
        With a state of their own, where there are any.
    scaler
        Keeps small gradients above zero in float16; otherwise disabled.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    hook: EpochHook | None = None
    average: WeightAverage | None = None
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))

    def tensors(self) -> dict[str, Tensor]:
        """Return copies on the CPU: the model and its average, the optimizer's buffers, hook, scaler and generators.

        Raises
        ------
        ModelError
            The model keeps a state that is no tensor, which only pickle could save.
        """
        found: dict[str, Tensor] = {"rng.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            found["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        for name, value in self.model.state_dict().items():
            if not isinstance(value, Tensor):
                raise ModelError(
                    f"the model's state {name!r} is a {type(value).__name__}, but only tensors can "
                    "be saved; keep it in a buffer, or train without an output folder"
                )
            found[f"model.{name}"] = value
        for name, parameter in self._trained():
            for key, value in self.optimizer.state[parameter].items():
                if isinstance(value, Tensor):
                    found[f"optimizer.{key}.{name}"] = value
        if self.average is not None:
            found |= {f"average.{name}": value for name, value in self.average.tensors.items()}
        if self.hook is not None:
            found |= {f"hook.{name}": value for name, value in self.hook.tensors().items()}
        if self.scaler.is_enabled():
            scales = self.scaler.state_dict()
            found |= {f"scaler.{key}": torch.tensor(scales[key], dtype=torch.float64) for key in _SCALER}
        return {name: _copy(value) for name, value in found.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` returned.

        Raises
        ------
        ArgumentError
            They are of another model; it lists the differences. Nothing has changed then.
        """
        own = self.model.state_dict()
        saved = _below("model.", tensors)
        differences = compare(saved, own)
        if differences:
            more = len(differences) - _SHOWN
            listed = "; ".join(differences[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
            raise ArgumentError(
                f"model is not the one that the checkpoint was made with: {listed}; "
                "build the same model, or train into another folder"
            )
        with torch.no_grad():
            # Copying in place keeps shared weights shared and every memory format as it is.
            for name, value in own.items():
                value.copy_(saved[name])
            self.optimizer.state.clear()
            by_name = dict(self._trained())
            for path, value in _below("optimizer.", tensors).items():
                key, name = path.split(".", 1)
                parameter = by_name[name]
                buffer = torch.empty_like(parameter, dtype=value.dtype)
                self.optimizer.state[parameter][key] = buffer.copy_(value)
            if self.average is not None:
                for name, value in _below("average.", tensors).items():
                    self.average.tensors[name].copy_(value)
        if self.hook is not None:
            self.hook.restore(_below("hook.", tensors))
        if self.scaler.is_enabled() and "scaler.scale" in tensors:
            scale, tracker = (tensors[f"scaler.{key}"].item() for key in _SCALER)
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale, "_growth_tracker": int(tracker)})
        torch.set_rng_state(tensors["rng.cpu"])
        if self.device.type == "cuda" and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"], self.device)

    def is_finite(self) -> bool:
        """Tell whether every trained weight is finite."""
        finite = [parameter.detach().isfinite().all() for _, parameter in self._trained()]
        return bool(torch.stack(finite).all())

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        named = self.model.named_parameters()
        return [(name, parameter) for name, parameter in named if parameter.requires_grad]


def compare(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Say how the tensors of a checkpoint differ from a model's in name, shape or data type."""
    differences = [f"{name} is only in the checkpoint" for name in saved.keys() - own.keys()]
    differences += [f"{name} is only in the model" for name in own.keys() - saved.keys()]
    for name in saved.keys() & own.keys():
        before, now = (f"{tuple(t.shape)} {t.dtype}" for t in (saved[name], own[name]))
        if before != now:
            differences.append(f"{name} is {before} in the checkpoint, {now} in the model")
    return sorted(differences)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()

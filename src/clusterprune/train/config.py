"""The settings of a training run."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from clusterprune.data.augment import Augmentation
from clusterprune.errors import ArgumentError

Schedule = Literal["cosine", "step", "onecycle", "constant"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


class TrainConfig(BaseModel):
    """How to train: stochastic gradient descent on the loss of a task.

    The defaults are the usual CIFAR recipe of the pruning literature: Nesterov momentum 0.9, weight
    decay 5e-4, batches of 128, 200 epochs from a rate of 0.1.

    Attributes
    ----------
    epochs
        Passes over the training images.
    batch_size
        Images per step, over all processes together. Scale `lr` in proportion when changing it (Goyal et al. 2017).
    lr
        Peak learning rate.
    momentum, nesterov, weight_decay
        As in `torch.optim.SGD`; the decay applies to every parameter.
    schedule
        ``"cosine"``; ``"step"``: times `gamma` at each of `milestones`; ``"onecycle"``: up to `lr`
        over the first three tenths of the run and down to almost nothing; or ``"constant"``.
    milestones
        Fractions of the whole run, increasing, each between 0 and 1: epoch 60 of 200 is 60 / 200.
        The default and `gamma` are those of He et al. 2016, §4.2.
    gamma
        Factor of the step schedule.
    warmup_epochs
        Length of the linear warm-up; part of `epochs`, may be a fraction.
    label_smoothing
        Of classification: share of the target spread evenly over all classes (Szegedy et al. 2016, §7).
    clip_norm
        Largest ℓ2 norm of the whole gradient; none when None.
    ema_decay
        Also keep an exponential moving average of the weights, with this factor per step. It is
        what validation measures and what the model holds at the end.
    augment
        ``"crop_flip"``, ``"crop"`` (for images whose mirror image means something else, such as
        digits), ``"resized_crop_flip"`` (for ImageNet) or ``"none"``; see :func:`clusterprune.data.augment.augment`.
        Resized crops are of whole files, which are therefore read again in every epoch.
    precision
        ``"bfloat16"`` runs the forward pass in bfloat16 autocast; weights stay as they are.
        ``"auto"`` takes it where the processor computes in it, else float32. ``"float16"`` is for
        CUDA devices without bfloat16; it scales the loss so that small gradients do not vanish.
    compile
        Compile the model with `torch.compile`. The first step then takes long. ``"auto"`` compiles where that pays for
        its time: on CUDA, in runs of at least 50,000 steps whose loss reads nothing but the outputs.
    capture
        On CUDA, record a whole step as one CUDA graph and replay it, which spares the time that Python takes to launch
        its kernels. The result is the same up to rounding. What cannot be recorded is taken step by step, and said:
        several processes, images that are read from disk, float16, a model that waits for the device.
    seed
        Seeds the order of the images, the augmentation and PyTorch's global generators.
    device
        Such as ``"cpu"`` or ``"cuda:0"``; None is CUDA when there is one, else the CPU.
    deterministic
        On CUDA, use cuDNN's deterministic algorithms, at some cost in speed.
    checkpoint_minutes
        Also save inside an epoch when the last checkpoint is older than this.
    memory_limit_gib
        Images of a split that fit in this much memory stay decoded on the device; above it they
        are read again in every epoch. The result is the same.

    Raises
    ------
    ArgumentError
        A field is unknown or its value is not accepted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: Annotated[int, Field(ge=1)] = 200
    batch_size: Annotated[int, Field(ge=1)] = 128
    lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    schedule: Schedule = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: Annotated[float | None, Field(gt=0)] = None
    ema_decay: Annotated[float | None, Field(gt=0, lt=1)] = None
    augment: Augmentation = "crop_flip"
    precision: Precision = "auto"
    compile: bool | Literal["auto"] = False
    capture: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: str | None = None
    deterministic: bool = True
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10.0
    memory_limit_gib: Annotated[float, Field(ge=0)] = 4.0

    if not TYPE_CHECKING:  # type checkers keep the signature made from the fields

        def __init__(self, **fields: Any) -> None:
            """Check `fields`; see the class."""
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise ArgumentError(_explain(error)) from None

    @field_validator("milestones")
    @classmethod
    def _check_milestones(cls, milestones: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < milestone < 1 for milestone in milestones):
            raise ValueError("milestones must be fractions of the run between 0 and 1 (epoch 60 of 200 is 0.3)")
        if list(milestones) != sorted(set(milestones)):
            raise ValueError("milestones must increase")
        return milestones

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be less than epochs={self.epochs}, but got warmup_epochs={self.warmup_epochs:g}"
            )
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=True needs momentum above 0; pass nesterov=False")
        if self.schedule == "onecycle" and self.warmup_epochs > 0:
            raise ValueError(
                f"schedule='onecycle' warms up by itself, but got warmup_epochs={self.warmup_epochs:g}; leave it at 0"
            )
        return self

    def changed(self, **fields: Any) -> Self:
        """Return the same settings but for some fields.

        Raises
        ------
        ArgumentError
            A field is unknown or its value is not accepted.
        """
        return type(self)(**{**self.model_dump(), **fields})


def resolve_device(config: TrainConfig) -> torch.device:
    """Return the device to train on.

    Raises
    ------
    ArgumentError
        `config.device` is no device of this machine.
    """
    if config.device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(
            f"device={config.device!r} cannot be used here ({reason}); pass 'cpu', or leave it out"
        ) from error
    if device.type == "meta":
        raise ArgumentError("device='meta' holds no values to train; pass 'cpu' or 'cuda'")
    return device


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the data type of the forward pass.

    A processor without bfloat16 instructions emulates them an order of magnitude more slowly than
    it computes in float32, so ``"auto"`` asks for the instructions, not for whether it would run.

    Raises
    ------
    ArgumentError
        float16 on a device other than CUDA.
    """
    if precision == "auto":
        native = {"cuda": _cuda_has_bfloat16, "cpu": _cpu_has_bfloat16}.get(device.type)
        precision = "bfloat16" if native is not None and native() else "float32"
    if precision == "float16" and device.type != "cuda":
        raise ArgumentError(
            f"precision='float16' needs a CUDA device, but got {device.type}; pass 'bfloat16' or 'auto'"
        )
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def _cuda_has_bfloat16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_has_bfloat16() -> bool:
    # Not in every release of PyTorch that we support; without it float32 is the safe answer.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    # The last one is ARM's name.
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _explain(error: ValidationError) -> str:
    """Say in one line per fault which field is wrong, its value, and what it accepts."""
    lines = []
    for fault in error.errors(include_url=False):
        field = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = ", ".join(TrainConfig.model_fields)
            lines.append(f"{field} is not a training setting; the settings are {known}")
        elif fault["type"] == "value_error":  # ours: the sentence is complete
            got = f", but got {field}={fault['input']!r}" if field else ""
            lines.append(str(fault["ctx"]["error"] if "ctx" in fault else fault["msg"]) + got)
        else:
            rule = fault["msg"][0].lower() + fault["msg"][1:]
            lines.append(f"{field}: {rule}, but got {field}={fault['input']!r}")
    return "; ".join(lines)

"""What comes before the first step: arguments checked, the machine set up, the state new or resumed."""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from clusterprune.arguments import check_instance, type_name
from clusterprune.data import Split
from clusterprune.errors import ArgumentError, ModelError
from clusterprune.graph.arguments import check_model
from clusterprune.surgery.history import why_untrainable
from clusterprune.tasks import Task
from clusterprune.train.average import WeightAverage
from clusterprune.train.config import TrainConfig, resolve_precision
from clusterprune.train.hooks import EpochHook
from clusterprune.train.images import Source, source
from clusterprune.train.interrupts import Interrupts
from clusterprune.train.losses import Loss, TaskLoss, name_of
from clusterprune.train.momentum import set_momentum, start_momentum
from clusterprune.train.processes import Processes, join
from clusterprune.train.record import Recorder
from clusterprune.train.result import Progress
from clusterprune.train.state import TrainState

logger = logging.getLogger(__name__)

COMPILING_PAYS = 50_000
"""Steps: compiling takes some minutes, and a small network's step is shorter by some milliseconds at most."""


@dataclass(frozen=True)
class Run:
    """What stays as it is through a run."""

    task: Task
    config: TrainConfig
    device: torch.device
    precision: torch.dtype
    processes: Processes
    loss: Loss
    hook: EpochHook | None
    train: Source
    validation: Source | None
    steps: int
    recorder: Recorder
    interrupts: Interrupts
    progress: Callable[[Progress], None] | None
    guess: float | None

    def report(self, progress: Progress) -> None:
        """Tell the caller, once for all processes."""
        if not self.processes.is_main:
            return
        if progress.kind == "note":
            logger.info(progress.message)
        if self.progress is not None:
            self.progress(progress)

    def inputs(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 images, in the memory format that convolutions are fastest in."""
        images = self.task.normalize(pixels)
        return images.contiguous(memory_format=torch.channels_last)

    def autocast(self) -> torch.autocast:
        """Return the context of the forward pass."""
        enabled = self.precision != torch.float32
        return torch.autocast(self.device.type, dtype=self.precision if enabled else torch.bfloat16, enabled=enabled)

    def generator(self, *at: int) -> torch.Generator:
        """Return a CPU generator of this run's seed and a place in it, such as epoch and step.

        The draws of a step then need nothing from the steps before it.
        """
        return torch.Generator().manual_seed(self.seed(*at))

    def seed(self, *at: int) -> int:
        """Return a seed for a place in this run."""
        digest = hashlib.sha256(repr((self.config.seed, at)).encode()).digest()
        return int.from_bytes(digest[:7], "little")


def prepare(
    model: nn.Module,
    task: Task,
    config: TrainConfig,
    *,
    folder: Path | None,
    progress: Callable[[Progress], None] | None,
    loss: Loss | None,
    hook: EpochHook | None,
) -> Run:
    """Check all that can be checked before anything changes."""
    check_model(model)
    check_instance("config", config, TrainConfig, "write TrainConfig(epochs=10)")
    if not isinstance(getattr(task, "train", None), Split):
        raise ArgumentError(
            f"task must be a task with images to train on, but got task={type_name(task)}; write "
            "clusterprune.tasks.Classification(train, validation, mean=mean, std=std)"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ArgumentError("model has no parameter to train; set requires_grad on some")
    if (why := why_untrainable(model)) is not None:
        raise ModelError(f"model={type(model).__name__} cannot be trained after its cut: {why}")
    _check_together(config, loss, hook)
    loss = TaskLoss(task, config.label_smoothing) if loss is None else loss
    processes, device = join(config)
    precision = resolve_precision(config.precision, device)
    common: dict[str, Any] = {"channels": len(task.mean), "device": device, "limit": config.memory_limit_gib * 2**30}
    crops = task.crops_files(config.augment)
    trained = source(task.train, task.targets(task.train), name="train", crops=crops, **common)
    validated = None
    if task.validation is not None:
        validated = source(task.validation, task.targets(task.validation), name="validation", **common)
    # Batch norm has no variance of a single image: a last batch of one in any process is left out.
    full, rest = divmod(trained.count, config.batch_size)
    steps = full + (rest >= 2 * processes.count or full == 0)
    if full == 0 and not processes.alone and rest < 2 * processes.count:
        raise ArgumentError(f"train has {rest} images, too few for {processes.count} processes; start fewer")
    recorder = Recorder(
        folder,
        config={
            **config.model_dump(mode="json"),
            "loss": name_of(loss),
            "hook": None if hook is None else type(hook).__qualname__,
        },
        data={
            "mean": list(task.mean),
            "std": list(task.std),
            "train": _fingerprint(trained),
            "validation": _fingerprint(validated),
        },
        environment={
            "torch": str(torch.__version__),
            "device": device.type,
            "precision": str(precision).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "processes": processes.count,
            **({"capture": config.capture} if device.type == "cuda" else {}),
        },
        writes=processes.is_main,
    )
    interrupts = Interrupts(hold=folder is not None and processes.alone)
    return Run(
        task, config, device, precision, processes, loss, hook, trained, validated, steps, recorder, interrupts,
        progress, task.guess,
    )  # fmt: skip


def _check_together(config: TrainConfig, loss: Loss | None, hook: EpochHook | None) -> None:
    if loss is not None and config.label_smoothing > 0:
        raise ArgumentError(
            f"label_smoothing={config.label_smoothing:g} belongs to the loss that fit makes itself; leave it 0 with a "
            "loss of your own"
        )
    if hook is not None and config.ema_decay is not None:
        raise ArgumentError(
            f"ema_decay={config.ema_decay:g} would average away what hook makes of the weights; leave out one of them"
        )


def _fingerprint(images: Source | None) -> str | None:
    """Return a text that tells sets of images apart by their number, shape and targets."""
    if images is None:
        return None
    digest = hashlib.sha256()
    for leaf in pytree.tree_leaves(images.targets(torch.arange(images.count))):
        digest.update(leaf.cpu().contiguous().numpy().tobytes() if isinstance(leaf, Tensor) else repr(leaf).encode())
    shape = "x".join(str(length) for length in images.shape)
    return f"{images.count} images of {shape}, targets {digest.hexdigest()[:16]}"


@contextlib.contextmanager
def machine(run: Run, model: nn.Module) -> Iterator[None]:
    """Set the model and PyTorch up for training; undo what the caller would stumble over."""
    modes = [(module, module.training) for module in model.modules()]
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    devices = [run.device] if run.device.type == "cuda" else []
    try:
        model.to(run.device)
        _set_format(model, torch.channels_last)
        cudnn.deterministic = run.config.deterministic
        cudnn.benchmark = not run.config.deterministic
        with torch.random.fork_rng(devices):
            seed_everything(run.config.seed, run.device)
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = flags
        # safetensors refuses to save any other format.
        _set_format(model, torch.contiguous_format)
        model.zero_grad()
        for module, training in modes:
            module.training = training


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed PyTorch's own generators of the CPU and of `device`."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _set_format(model: nn.Module, memory_format: torch.memory_format) -> None:
    # Not model.to: it would refuse a parameter of five dimensions.
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


@contextlib.contextmanager
def compiled(run: Run, model: nn.Module) -> Iterator[None]:
    """Compile the model's forward for a while, if asked for. The model's names and weights stay where they are."""
    before, wanted = model._compiled_call_impl, run.config.compile
    if wanted == "auto":
        # By numbers known beforehand, not by a clock: the same seed is to give the same weights.
        long = run.device.type == "cuda" and run.config.epochs * run.steps >= COMPILING_PAYS
        wanted = long and getattr(run.loss, "reads_outputs_alone", False)
    try:
        if wanted:
            model.compile()
        yield
    finally:
        model._compiled_call_impl = before


def begin(run: Run, model: nn.Module, momentum: Mapping[str, Tensor] | None, *, resume: bool) -> TrainState:
    """Return the state to go on from: that of the checkpoint, or a new one."""
    config = run.config
    _check_outputs(run, model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = run.device.type == "cuda" and all(parameter.is_floating_point() for parameter in trained)
    optimizer = torch.optim.SGD(
        trained,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=fused or None,
    )
    if momentum:
        if config.momentum == 0:
            raise ArgumentError("momentum buffers were given, but config has momentum=0; leave one of them out")
        set_momentum(optimizer, model, momentum)
    run.processes.copy_from_main_([*model.parameters(), *model.buffers()])
    state = TrainState(
        model,
        optimizer,
        run.device,
        hook=run.hook,
        average=None if config.ema_decay is None else WeightAverage(model, config.ema_decay),
        scaler=torch.amp.GradScaler(run.device.type, enabled=run.precision == torch.float16),
    )
    resuming = resume and run.recorder.has_checkpoint
    run.processes.wait()  # whoever looks later would find the checkpoint that the main process starts with
    if resuming:
        notes = run.recorder.resume(state)
    else:
        run.recorder.start(state)
        found = f"no checkpoint in {run.recorder.folder}: starting from the beginning"
        notes = [found] if resume else []
    if fused and config.momentum:
        start_momentum(optimizer)
    epoch = min(state.epoch + 1, config.epochs)
    for note in notes:
        run.report(Progress("note", epoch, config.epochs, state.step, run.steps, message=note))
    return state


@torch.no_grad()
def _check_outputs(run: Run, model: nn.Module) -> None:
    """Find a model that does not fit the images or the task before the first step."""
    model.eval()
    shape = run.train.shape
    try:
        images = run.inputs(torch.zeros(1, *shape, dtype=torch.uint8, device=run.device))
        outputs = model(images)
    except RuntimeError as error:
        raise ModelError(
            f"the model cannot take images of shape {shape} ({error}); pass images of the size that it was built for"
        ) from error
    run.task.check(outputs, images)

"""The training loop: epochs of steps, with a checkpoint after each epoch."""

import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from clusterprune.data import normalize
from clusterprune.errors import ArgumentError, ModelError, TrainingError
from clusterprune.train.augment import augment
from clusterprune.train.checkpoint import Tally
from clusterprune.train.config import TrainConfig, resolve_device, resolve_precision
from clusterprune.train.images import Images, Source, source
from clusterprune.train.losses import CrossEntropy, Loss, logits_of
from clusterprune.train.record import Recorder, check_folder
from clusterprune.train.result import Progress, TrainResult
from clusterprune.train.schedules import learning_rate
from clusterprune.train.state import TrainState

logger = logging.getLogger(__name__)


def fit(
    model: nn.Module,
    train: Images,
    validation: Images | None = None,
    *,
    config: TrainConfig,
    mean: Sequence[float],
    std: Sequence[float],
    out: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Train `model` in place. It ends with the last epoch's weights, on the training device.

    The same arguments on the same machine give the same weights, also when the run was killed and
    resumed. What a model draws from other generators than PyTorch's is outside this promise.
    PyTorch's own generators are left as they were before the call.

    Parameters
    ----------
    train, validation
        A split, or a pair of uint8 images (n, c, h, w) and integer labels (n,).
    mean, std
        Per channel, of images in [0, 1].
    out
        Folder for the checkpoint and ``log.jsonl``, one line per epoch. Nothing is written when
        None.
    resume
        Continue from the checkpoint in `out`; start from the beginning when there is none.
    progress
        Called with a `Progress`.

    Raises
    ------
    ArgumentError
        An argument does not fit, or differs from that of the run being resumed.
    ModelError
        The model does not return logits.
    OutputError
        `out` cannot be written, or holds a checkpoint and `resume` is False.
    WeightsError
        The checkpoint to resume from is damaged.
    TrainingError
        The loss or a weight stopped being finite, or a checkpoint could not be written. The last
        checkpoint stays; in the first case the model is put back to it.
    KeyboardInterrupt
        Training was interrupted. The last checkpoint stays.
    """
    folder = check_folder(out, resume)
    run = _prepare(model, train, validation, config, mean=mean, std=std, folder=folder, progress=progress)
    with _machine(run, model):
        state = _begin(run, model, resume)
        while state.epoch < config.epochs:
            _run_epoch(run, state)
    seconds = sum(record["seconds"] for record in state.history)
    return TrainResult(state.history, len(state.history), seconds)


@dataclass(frozen=True)
class _Run:
    """What stays as it is through a run."""

    config: TrainConfig
    device: torch.device
    precision: torch.dtype
    loss: Loss
    train: Source
    validation: Source | None
    steps: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recorder: Recorder
    progress: Callable[[Progress], None] | None

    def report(self, progress: Progress) -> None:
        if progress.kind == "note":
            logger.info(progress.message)
        if self.progress is not None:
            self.progress(progress)

    def inputs(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 images, in the memory format that convolutions are fastest in."""
        images = normalize(pixels, self.mean, self.std)
        return images.contiguous(memory_format=torch.channels_last)

    def autocast(self) -> torch.autocast:
        enabled = self.precision != torch.float32
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def generator(self, *at: int) -> torch.Generator:
        """Return a CPU generator of this run's seed and a place in it, such as epoch and step.

        The draws of a step then need nothing from the steps before it.
        """
        digest = hashlib.sha256(repr((self.config.seed, at)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def _prepare(
    model: nn.Module,
    train: Images,
    validation: Images | None,
    config: TrainConfig,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    folder: Path | None,
    progress: Callable[[Progress], None] | None,
) -> _Run:
    """Check all that can be checked before anything changes."""
    mean, std = tuple(mean), tuple(std)
    if not mean or len(mean) != len(std) or min(std) <= 0:
        raise ArgumentError(
            f"mean and std must have one value per channel, those of std above 0, but got mean={mean}, std={std}"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ArgumentError("model has no parameter to train; set requires_grad on some")
    device = resolve_device(config)
    precision = resolve_precision(config.precision, device)
    limit = config.memory_limit_gib * 2**30
    trained = source(train, name="train", channels=len(mean), device=device, limit=limit)
    validated = None
    if validation is not None:
        validated = source(validation, name="validation", channels=len(mean), device=device, limit=limit)
    # Batch norm has no variance of a single image: a last batch of one is left out.
    full, rest = divmod(len(trained.labels), config.batch_size)
    steps = full + (rest > 1 or full == 0)
    recorder = Recorder(
        folder,
        config=config.model_dump(mode="json"),
        data={
            "mean": list(mean),
            "std": list(std),
            "train": _fingerprint(trained),
            "validation": _fingerprint(validated),
        },
        environment={
            "torch": str(torch.__version__),
            "device": device.type,
            "precision": str(precision).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        },
    )
    loss = CrossEntropy(config.label_smoothing)
    return _Run(config, device, precision, loss, trained, validated, steps, mean, std, recorder, progress)


def _fingerprint(images: Source | None) -> str | None:
    """Return a text that tells sets of images apart by their number, shape and labels."""
    if images is None:
        return None
    digest = hashlib.sha256(images.labels.cpu().long().numpy().tobytes()).hexdigest()
    shape = "x".join(str(length) for length in images.shape)
    return f"{len(images.labels)} images of {shape}, labels {digest[:16]}"


@contextlib.contextmanager
def _machine(run: _Run, model: nn.Module) -> Iterator[None]:
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
            torch.default_generator.manual_seed(run.config.seed)
            if devices:
                torch.cuda.manual_seed(run.config.seed)
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = flags
        # safetensors refuses to save any other format.
        _set_format(model, torch.contiguous_format)
        model.zero_grad()
        for module, training in modes:
            module.training = training


def _set_format(model: nn.Module, memory_format: torch.memory_format) -> None:
    # Not model.to: it would refuse a parameter of five dimensions.
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def _begin(run: _Run, model: nn.Module, resume: bool) -> TrainState:
    config = run.config
    _check_outputs(run, model)
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )
    state = TrainState(model, optimizer, run.device)
    if resume and run.recorder.has_checkpoint:
        notes = run.recorder.resume(state)
    else:
        run.recorder.start(state)
        found = f"no checkpoint in {run.recorder.folder}: starting from the beginning"
        notes = [found] if resume else []
    epoch = min(state.epoch + 1, config.epochs)
    for note in notes:
        run.report(Progress("note", epoch, config.epochs, state.step, run.steps, message=note))
    return state


@torch.no_grad()
def _check_outputs(run: _Run, model: nn.Module) -> None:
    """Find a model that cannot take the images or labels before the first step."""
    model.eval()
    shape = run.train.shape
    try:
        outputs = model(run.inputs(torch.zeros(1, *shape, dtype=torch.uint8, device=run.device)))
    except RuntimeError as error:
        raise ModelError(
            f"the model cannot take images of shape {shape} ({error}); pass images of the size that it was built for"
        ) from error
    classes = logits_of(outputs)[0].shape[1]
    for name, images in (("train", run.train), ("validation", run.validation)):
        if images is not None and int(images.labels.max()) >= classes:
            raise ArgumentError(
                f"{name} has labels up to {int(images.labels.max())}, but the model has {classes} "
                f"outputs; build it with num_classes={int(images.labels.max()) + 1}"
            )


def _run_epoch(run: _Run, state: TrainState) -> None:
    """Take the steps of one epoch that are left, then validate and save."""
    config, model, size = run.config, state.model, run.config.batch_size
    model.train()
    began = time.perf_counter() - state.tally.seconds
    every = _steps_between_reads(run.device)
    unread: list[tuple[Tensor, Tensor, int]] = []
    order = torch.randperm(len(run.train.labels), generator=run.generator(state.epoch))
    left = order[state.step * size : run.steps * size]
    for pixels, labels in run.train.batches(left, size):
        where = (state.epoch + state.step / run.steps) / config.epochs
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(config, where)
        draws = run.generator(state.epoch, state.step)
        inputs = run.inputs(augment(pixels, config.augment, draws))
        state.optimizer.zero_grad()
        with run.autocast():
            loss, logits = run.loss(model, inputs, labels)
        state.step += 1
        unread.append((loss.detach(), (logits.argmax(1) == labels).sum(), len(labels)))
        if len(unread) == every:
            _read(run, state, unread)
        loss.backward()
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        state.optimizer.step()
        if run.recorder.age() > 60 * config.checkpoint_minutes and state.step < run.steps:
            _read(run, state, unread)
            _check_finite(run, state)
            state.tally.seconds = time.perf_counter() - began
            run.recorder.save(state)
    _read(run, state, unread)
    _check_finite(run, state)
    _finish_epoch(run, state, began)


def _steps_between_reads(device: torch.device) -> int:
    # Reading a loss waits for the device, which would leave an accelerator idle after every step.
    return 1 if device.type == "cpu" else 20


def _finish_epoch(run: _Run, state: TrainState, began: float) -> None:
    tally = state.tally
    last = state.optimizer.param_groups[0]["lr"]
    accuracy = None if run.validation is None else _accuracy(run, state.model, run.validation)
    state.epoch += 1
    state.step = 0
    state.tally = Tally()
    record = {
        "epoch": state.epoch,
        "loss": tally.loss / tally.images,
        "train_accuracy": 100 * tally.correct / tally.images,
        "validation_accuracy": accuracy,
        "learning_rate": last,
        "seconds": round(time.perf_counter() - began, 3),
    }
    state.history.append(record)
    run.recorder.save(state)
    run.report(
        Progress(
            "epoch",
            state.epoch,
            run.config.epochs,
            run.steps,
            run.steps,
            record["loss"],
            record["learning_rate"],
            record,
        )
    )


@torch.no_grad()
def _accuracy(run: _Run, model: nn.Module, images: Source) -> float:
    """Return the percentage of `images` that the model classifies correctly."""
    model.eval()
    correct, total = torch.zeros((), dtype=torch.long, device=run.device), 0
    for pixels, labels in images.batches(torch.arange(len(images.labels)), run.config.batch_size):
        with run.autocast():
            logits = logits_of(model(run.inputs(pixels)))[0]
        correct += (logits.argmax(1) == labels).sum()
        total += len(labels)
    return 100 * correct.item() / total


def _read(run: _Run, state: TrainState, unread: list[tuple[Tensor, Tensor, int]]) -> None:
    """Add the steps in `unread` to the tally, and empty it.

    Raises
    ------
    TrainingError
        One of their losses is not finite.
    """
    if not unread:
        return
    losses = torch.stack([loss for loss, _, _ in unread]).tolist()
    correct = torch.stack([right for _, right, _ in unread]).tolist()
    first = state.step - len(unread) + 1
    for step, (loss, right, (_, _, count)) in enumerate(zip(losses, correct, unread, strict=True), first):
        if not math.isfinite(loss):
            raise _diverged(run, state, f"the loss was {loss} at step {step}")
        state.tally.loss += loss * count
        state.tally.correct += right
        state.tally.images += count
    unread.clear()
    rate = state.optimizer.param_groups[0]["lr"]
    report = Progress("step", state.epoch + 1, run.config.epochs, state.step, run.steps, losses[-1], rate)
    run.report(report)


def _check_finite(run: _Run, state: TrainState) -> None:
    """Keep weights that overflowed in the last step out of the checkpoint."""
    if not state.is_finite():
        raise _diverged(run, state, f"a weight was no longer finite after step {state.step}")


def _diverged(run: _Run, state: TrainState, what: str) -> TrainingError:
    """Put the model back to the last good state, and return the error that says what happened."""
    epoch, rate = state.epoch + 1, state.optimizer.param_groups[0]["lr"]
    run.recorder.rewind(state)
    return TrainingError(
        f"training diverged in epoch {epoch}: {what}, at a learning rate of {rate:.4g}; lower "
        f"lr={run.config.lr:g}, lengthen warmup_epochs or set clip_norm, and train into another "
        f"folder; {run.recorder.last_good()}"
    )

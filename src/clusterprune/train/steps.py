"""Steps of an epoch, one by one: a batch, its loss and gradients, and the update."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from clusterprune.data.crops import DRAWS
from clusterprune.train.prepare import Run, seed_everything
from clusterprune.train.processes import averaged_buffers
from clusterprune.train.schedules import learning_rate
from clusterprune.train.state import TrainState


class Taken(NamedTuple):
    """What is known of a step: scalars on the device, which are not read before they must be."""

    loss: Tensor
    right: Tensor
    images: int


class Steps(Protocol):
    """How the steps of an epoch are taken: each by :meth:`of_epoch`, and then :meth:`update`."""

    def of_epoch(self, run: Run, state: TrainState, order: Tensor) -> Iterator[Taken]:
        """Go through the steps that are left of an epoch, and count each in `state.step`.

        Parameters
        ----------
        order
            Positions of the epoch's images, int64, on the CPU; those of steps that were taken before included.
        """
        ...

    def update(self, run: Run, state: TrainState) -> None:
        """Change the weights by the step's gradients, where that is still to be done."""
        ...


class Plain:
    """Steps that PyTorch's own calls make up."""

    def of_epoch(self, run: Run, state: TrainState, order: Tensor) -> Iterator[Taken]:
        """Take the steps that are left of an epoch; see :class:`Steps`."""
        size = run.config.batch_size
        mine, own_size = run.processes.shares(order[state.step * size :], size)
        crops = _crops(run, state, len(order)) if run.task.crops_files(run.config.augment) else None
        for pixels, targets in run.train.batches(mine, own_size, crops):
            for group in state.optimizer.param_groups:
                group["lr"] = rate(run, state, state.step)
            planned = min(size, len(order) - state.step * size)
            state.step += 1
            yield _gradients(run, state, pixels, targets, planned)

    def update(self, run: Run, state: TrainState) -> None:
        """Take the step that the gradients ask for."""
        if run.config.clip_norm is not None:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), run.config.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.average is not None:
            state.average.update(state.model)


def rate(run: Run, state: TrainState, step: int) -> float:
    """Return the learning rate of a step of the epoch, counted from 0."""
    return learning_rate(run.config, (state.epoch + step / run.steps) / run.config.epochs)


def forward(run: Run, state: TrainState, pixels: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
    """Return the mean loss of a batch, with its graph, and how many of its images are right."""
    inputs = run.inputs(pixels)
    state.optimizer.zero_grad()
    with run.autocast():
        loss, outputs = run.loss(state.model, inputs, targets)
    right = torch.zeros((), device=loss.device) if run.guess is None else run.task.right(outputs, targets)
    return loss, right


def _crops(run: Run, state: TrainState, images: int) -> Tensor:
    """Draw the crops of this process's images in the steps that are left, as `augment` would in each step."""
    size, drawn = run.config.batch_size, []
    for step in range(state.step, -(-images // size)):
        planned = min(size, images - step * size)
        draws = torch.rand(planned, DRAWS, generator=run.generator(state.epoch, step))
        drawn.append(draws if run.processes.alone else draws[run.processes.share(planned)])
    return torch.cat([torch.empty(0, DRAWS), *drawn])


def _gradients(run: Run, state: TrainState, pixels: Tensor, targets: Any, planned: int) -> Taken:
    """Run the model forward and backward on this process's part of a batch of `planned` images."""
    model, processes, task = state.model, run.processes, run.task
    draws = run.generator(state.epoch, state.step - 1)
    kind = "none" if task.crops_files(run.config.augment) else run.config.augment  # cropped where it comes from
    pixels, targets = task.augment(pixels, targets, kind, draws, planned, processes.share(planned))
    if not processes.alone:
        # One generator for all would drop the same units in every process, and only one is saved.
        seed_everything(run.seed(state.epoch, state.step - 1, processes.rank), run.device)
    loss, right = forward(run, state, pixels, targets)
    if processes.alone:
        state.scaler.scale(loss).backward()
        return Taken(loss.detach(), right, len(pixels))
    # The mean over the batch is the mean over the processes of losses weighted by their shares.
    loss = loss * (len(pixels) * processes.count / planned)
    state.scaler.scale(loss).backward()
    loss, right = loss.detach(), right.to(loss.dtype)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    processes.average_([*gradients, *averaged_buffers(model), loss, right])
    return Taken(loss, right * processes.count, planned)

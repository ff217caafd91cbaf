"""Several processes that train one network together, each on its share of every batch.

The network is not wrapped: every process calls it as a lone one would, and what must be the same
everywhere is averaged after the backward pass, in a single message. Losses and hooks therefore see
the same module names, however many processes there are.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from clusterprune.errors import ArgumentError
from clusterprune.train.config import TrainConfig, resolve_device


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as seen from one of them.

    Attributes
    ----------
    rank
        Number of this process, from 0. Process 0 writes and reports.
    count
        How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.count == 1

    def share(self, size: int) -> slice:
        """Return which of `size` images are this process's: every `count`-th one."""
        return slice(self.rank, size, self.count)

    def shares(self, order: Tensor, batch_size: int) -> tuple[Tensor, int]:
        """Return this process's part of an order of images, and how many of them make up its batch.

        Batch for batch it is this process's share of the whole order's batches.
        """
        if self.alone:
            return order, batch_size
        mine = [batch[self.share(len(batch))] for batch in order.split(batch_size)]
        return torch.cat(mine) if mine else order, len(range(batch_size)[self.share(batch_size)])

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in one message."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.count
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view(tensor.shape))

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows (r, k) of all processes one below the other; each has any number r, also none, of them."""
        if self.alone:
            return rows
        shapes = [torch.zeros(2, dtype=torch.long, device=rows.device) for _ in range(self.count)]
        distributed.all_gather(shapes, torch.tensor(rows.shape, device=rows.device))
        counts = [int(count) for count, _ in shapes]
        padded = rows.new_zeros(max(counts), max(int(width) for _, width in shapes))
        padded[: len(rows), : rows.shape[1]] = rows
        found = [torch.empty_like(padded) for _ in range(self.count)]
        distributed.all_gather(found, padded)
        return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])

    def copy_from_main_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by the main process's."""
        if not self.alone:
            for tensor in tensors:
                value = tensor.detach().contiguous()
                distributed.broadcast(value, src=0)
                tensor.detach().copy_(value)

    def wait(self) -> None:
        """Return when every process has come here."""
        if not self.alone:
            distributed.barrier()


def join(config: TrainConfig) -> tuple[Processes, torch.device]:
    """Return this process's place among those that ``accelerate launch`` started, and its device.

    Raises
    ------
    ArgumentError
        The device cannot be used here, or the batch has fewer images than there are processes.
    """
    device = resolve_device(config)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(), device
    from accelerate import PartialState

    if device.index is not None:
        raise ArgumentError(
            f"device={config.device!r} is one device for several processes; pass {device.type!r}, or leave it out, and "
            "each takes one of its own"
        )
    state = PartialState(cpu=device.type == "cpu")
    if config.batch_size < 2 * state.num_processes:
        raise ArgumentError(
            f"batch_size={config.batch_size} leaves fewer than two images for each of {state.num_processes} processes; "
            "pass a larger one, or start fewer processes"
        )
    return Processes(state.process_index, state.num_processes), torch.device(state.device or device)


def averaged_buffers(model: nn.Module) -> list[Tensor]:
    """Return the buffers that differ between processes after a step: running statistics."""
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]

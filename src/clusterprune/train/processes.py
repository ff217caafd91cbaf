"""Several processes that work on one network together, each on its share of every batch.

All run the same code. What is to be decided or written once, the main process does, while the others wait for what
comes of it (:meth:`Processes.once`), so that no two of them can decide otherwise.

The network is not wrapped: every process calls it as a lone one would, and what must be the same
everywhere is averaged after the backward pass, in a single message. Losses and hooks therefore see
the same module names, however many processes there are.
"""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from clusterprune import errors
from clusterprune.errors import ArgumentError, ClusterpruneError
from clusterprune.train.config import TrainConfig, resolve_device

FROM_MAIN = "It was the main process that met with this."
"""Note of an error that is raised here because the main process, which reports it, has raised it."""
_LONG = timedelta(days=30)
"""For which others wait while the main process works: a process that ends is noticed at once in any case."""
_SAME_MOMENT = timedelta(minutes=1)
"""In which all processes meet with an error that is of what they do together."""
_leads: ContextVar[bool] = ContextVar("leads", default=False)
"""Whether this is the main process, at what the others wait for."""


class _OutOfStep(BaseException):
    """The main process has failed where the others may not have: nobody may catch its cause and go on."""


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
            distributed.barrier(_words())

    def once(self, function: Callable[[], Any]) -> Any:
        """Return what a function returns, having called it in the main process alone.

        Where there are several processes, that is as JSON has it. Within the function the main process is alone.

        Raises
        ------
        ClusterpruneError
            In every process, of the kind that the function has raised.
        """
        return self.led(lambda _: function(), lambda _: None)

    def led(self, run: Callable[[Callable[[Any], Any]], Any], act: Callable[[Any], Any]) -> Any:
        """Let the main process decide what all do together, such as which network they train next.

        Parameters
        ----------
        run
            Called in the main process alone, with a function in place of `act` that has all processes call it.
        act
            Called by all alike, with what the main process has given it, as JSON has that. An error of ours is one
            that all meet with, so that `run` may catch it; after any other the run is over.

        Returns
        -------
        In every process, what `run` returns, as JSON has it where there are several.

        Raises
        ------
        ClusterpruneError
            In every process, of the kind that `run` has raised.
        """
        if self.alone or _leads.get():
            return run(act)
        if not self.is_main:
            return self._follow(act)

        def together(given: Any) -> Any:
            self._tell("act", given)
            led = _leads.set(False)
            try:
                return act(given)
            except ClusterpruneError:
                self._tell("failed")
                raise
            except Exception as error:
                raise _OutOfStep from error
            finally:
                _leads.reset(led)

        leads = _leads.set(True)
        try:
            made = run(together)
        except _OutOfStep as error:
            raise error.__cause__ or error from None  # without a word: others may still be at it
        except Exception as error:
            self._tell("error", type(error).__name__, str(error))
            raise
        finally:
            _leads.reset(leads)
        return self._tell("made", made)[0]

    @contextmanager
    def held(self, kept: AbstractContextManager[object]) -> Iterator[str]:
        """Keep something in the main process, such as a folder, until all are done; yield its text in all."""
        with contextlib.ExitStack() as stack:
            yield self.once(lambda: str(stack.enter_context(kept)))
            self.wait()

    def _follow(self, act: Callable[[Any], Any]) -> Any:
        """Do what the main process says until it says what came of it."""
        while True:
            kind, *said = self._hear()
            if kind == "made":
                return said[0]
            if kind == "error":
                raise _error_of(*said)
            try:
                act(said[0])
            except ClusterpruneError:
                if self._hear(_SAME_MOMENT) != ["failed"]:
                    raise

    def _tell(self, *said: Any) -> list[Any]:
        """Say something to the processes that follow; return what they hear of it, without its kind."""
        text = json.dumps(said)
        content = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        distributed.broadcast(torch.tensor(len(content)), src=0, group=_words())
        distributed.broadcast(content, src=0, group=_words())
        return json.loads(text)[1:]

    def _hear(self, patience: timedelta = _LONG) -> list[Any]:
        """Return what the main process says next; nothing if it has not said anything for that long."""
        length = torch.tensor(0)
        try:
            distributed.broadcast(length, src=0, group=_words(), async_op=True).wait(patience)  # type: ignore[union-attr]
        except RuntimeError:
            if patience == _LONG:
                raise
            return []
        content = torch.empty(int(length), dtype=torch.uint8)
        distributed.broadcast(content, src=0, group=_words())
        return json.loads(content.numpy().tobytes())


def here() -> Processes:
    """Return this process's place among those that have joined; alone in what the main process does alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _leads.get() or not distributed.is_initialized():
        return Processes()
    return Processes(distributed.get_rank(), distributed.get_world_size())


def join(config: TrainConfig) -> tuple[Processes, torch.device]:
    """Return this process's place among those that ``accelerate launch`` started, and its device.

    Raises
    ------
    ArgumentError
        The device cannot be used here, or the batch has fewer images than there are processes.
    """
    device = resolve_device(config)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _leads.get():
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
    _words()
    return Processes(state.process_index, state.num_processes), torch.device(state.device or device)


@functools.cache
def _words() -> Any:
    """Return the group in which processes speak; made when all join. Whoever waits in it keeps no device busy."""
    return distributed.new_group(backend="gloo", timeout=_LONG)


def _error_of(kind: str, text: str) -> ClusterpruneError:
    """Return an error of the main process as one of ours, with a note of where it is from."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, ClusterpruneError):
        error = found(text)
    else:
        error = ClusterpruneError(f"{kind}: {text}")
    error.add_note(FROM_MAIN)
    return error


def averaged_buffers(model: nn.Module) -> list[Tensor]:
    """Return the buffers that differ between processes after a step: running statistics."""
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]

"""Whole training steps as one CUDA graph.

A small network's step is some hundreds of kernels of a few microseconds each, and Python takes longer to launch them
than the card to run them. Recorded once, they are launched by a single call. A recorded step always reads and writes
the same memory. So everything that differs from step to step lies there beforehand for the whole epoch: which images,
what augmentation drew for them, the learning rate; and a counter on the device says whose turn it is. The draws are
those that steps taken one by one would make, from the same generators on the CPU, so that the result is the same up to
rounding.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from clusterprune.graph.export import first_line
from clusterprune.train.images import InMemory
from clusterprune.train.prepare import Run
from clusterprune.train.result import Progress
from clusterprune.train.state import TrainState
from clusterprune.train.steps import Plain, Steps, Taken, forward, rate

REHEARSALS = 3
"""Steps that are taken before the next is recorded: libraries set themselves up in them, and choose their kernels."""
WORTH = 40
"""A run of fewer steps is over before recording one has paid."""


class Recorder(Protocol):
    """A device that can record what it is asked to do."""

    def rehearse(self, step: Callable[[], None]) -> list[str]:
        """Run `step` as it will be recorded; return what in it waits for the device, which cannot be."""
        ...

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Record what `step` asks of the device, without doing it, and return what does it.

        Raises
        ------
        RuntimeError
            It cannot be recorded. Nothing has changed then.
        """
        ...


class CudaRecorder:
    """Records CUDA graphs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # PyTorch refuses to record on the default stream, and libraries set themselves up for each.
        self._stream = torch.cuda.Stream(device)

    def rehearse(self, step: Callable[[], None]) -> list[str]:
        """Run `step`; see :class:`Recorder`."""
        before = torch.cuda.get_sync_debug_mode()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with warnings.catch_warnings(record=True) as caught, torch.cuda.stream(self._stream):
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        waits = [str(warning.message).splitlines()[0] for warning in caught if "synchroniz" in str(warning.message)]
        for warning in caught:
            if "synchroniz" not in str(warning.message):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return waits

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Record `step`; see :class:`Recorder`."""
        graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[self._device.index or 0]
        before = generator.clone_state()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                step()
        except RuntimeError:
            generator.graphsafe_set_state(before)  # it still takes itself for being recorded
            raise
        return graph.replay


def recorder_for(device: torch.device) -> Recorder | None:
    """Return what records on `device`; None where nothing does."""
    return CudaRecorder(device) if device.type == "cuda" else None


def captured(run: Run, state: TrainState) -> Steps:
    """Return steps that are recorded where that can be done, and otherwise taken one by one; say why, once."""
    recorder = recorder_for(run.device)
    if recorder is None or (run.config.epochs - state.epoch) * run.steps - state.step < WORTH:
        return Plain()
    why = _why_not(run)
    if why is None and isinstance(run.train, InMemory):
        return Captured(run, run.train, recorder)
    _say(run, state, why or "its images are read from disk; raise memory_limit_gib to keep them on the device")
    return Plain()


class Captured:
    """Steps recorded once and replayed: batches by index from images on the device, all of an epoch's draws there too.

    Parameters
    ----------
    run
        Of one process, with an augmentation that is a function of draws.
    train
        The run's images.
    recorder
        Of the run's device.
    """

    def __init__(self, run: Run, train: InMemory, recorder: Recorder) -> None:
        self._recorder, self._plain = recorder, Plain()
        self._images = train.images
        targets = train.targets(torch.arange(train.count))
        self._targets = pytree.tree_map(lambda leaf: leaf.to(run.device), targets)
        size, device = run.config.batch_size, run.device
        self._full = min(run.steps, train.count // size)
        self._order = torch.zeros(self._full, size, dtype=torch.int64, device=device)
        self._rates, self._losses, self._right = (torch.zeros(self._full, device=device) for _ in range(3))
        self._turn = torch.zeros(1, dtype=torch.int64, device=device)
        self._rate = torch.zeros((), device=device)
        self._draws: tuple[Tensor, ...] | None = None
        self._replay: Callable[[], None] | None = None
        self._rehearsed = 0
        self._waits: list[str] = []
        self._places: tuple[int, ...] = ()
        self._by_hand = False

    def of_epoch(self, run: Run, state: TrainState, order: Tensor) -> Iterator[Taken]:
        """Go through the steps that are left of an epoch; see :class:`clusterprune.train.steps.Steps`.

        A last batch that is smaller than the others, and all that follows when recording has failed, is taken by hand.
        """
        if not self._by_hand and state.step < self._full:
            self._lay_out(run, state, order)
        while not self._by_hand and state.step < self._full:
            if self._take(run, state):
                state.step += 1
                yield Taken(self._losses[state.step - 1], self._right[state.step - 1], run.config.batch_size)
        if state.step * run.config.batch_size < len(order):
            before, self._by_hand = self._by_hand, True
            yield from self._plain.of_epoch(run, state, order)
            self._by_hand = before

    def update(self, run: Run, state: TrainState) -> None:
        """Change the weights after a step by hand; a recorded one has done so itself."""
        if self._by_hand:
            self._plain.update(run, state)

    def _lay_out(self, run: Run, state: TrainState, order: Tensor) -> None:
        """Put all that an epoch's steps differ in where the recorded step reads it."""
        size = run.config.batch_size
        self._order.copy_(order[: self._full * size].view(self._full, size))
        rates = [rate(run, state, step) for step in range(self._full)]
        self._rates.copy_(torch.tensor(rates))
        config, shape = run.config, run.train.shape[1:]
        drawn = [
            run.task.draws(config.augment, size, shape, run.generator(state.epoch, step)) or ()
            for step in range(self._full)
        ]
        draws = [torch.stack(steps) for steps in zip(*drawn, strict=True)]
        if self._draws is None:
            self._draws = tuple(one.to(run.device) for one in draws)
        else:
            for buffer, one in zip(self._draws, draws, strict=True):
                buffer.copy_(one)
        self._turn.fill_(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = self._rate
        places = tuple(tensor.data_ptr() for tensor in (*state.model.parameters(), *state.model.buffers()))
        if places != self._places:  # what is recorded would change weights that are no longer the network's
            self._places, self._replay, self._rehearsed = places, None, 0

    def _take(self, run: Run, state: TrainState) -> bool:
        """Take a step; False where it could not be recorded, and none was taken."""
        if self._replay is not None:
            self._replay()
            return True
        if self._rehearsed < REHEARSALS:
            self._waits = self._recorder.rehearse(lambda: self._step(run, state))
            self._rehearsed += 1
            return True
        why = f"the step waits for the device ({self._waits[0]})" if self._waits else None
        if why is None:
            try:
                self._replay = self._recorder.record(lambda: self._step(run, state))
            except RuntimeError as error:
                why = first_line(error)
        if why is not None:
            self._by_hand = True
            _say(run, state, why)
        return False

    def _step(self, run: Run, state: TrainState) -> None:
        """Take the step whose turn it is. Nothing here may wait for the device."""
        turn = self._turn
        rows = self._order.index_select(0, turn)[0]
        pixels = self._images.index_select(0, rows)
        targets = pytree.tree_map(lambda leaf: leaf.index_select(0, rows), self._targets)
        draws = tuple(one.index_select(0, turn)[0] for one in self._draws or ())
        pixels, targets = run.task.augmented(pixels, targets, run.config.augment, draws)
        self._rate.copy_(self._rates.index_select(0, turn)[0])
        loss, right = forward(run, state, pixels, targets)
        loss.backward()
        self._plain.update(run, state)
        self._losses.index_copy_(0, turn, loss.detach()[None].to(self._losses.dtype))
        self._right.index_copy_(0, turn, right[None].to(self._right.dtype))
        turn += 1


def _why_not(run: Run) -> str | None:
    """Say why steps of this run cannot be recorded, wherever its images are; None where they can."""
    if not run.processes.alone:
        return "several processes work on it"
    if run.precision == torch.float16:
        return "float16 scales its losses by what it finds in the gradients; bfloat16 does not"
    if run.train.count < run.config.batch_size:
        return "there is no full batch"
    if run.task.draws(run.config.augment, 1, run.train.shape[1:], torch.Generator()) is None:
        return f"the task's augmentation {run.config.augment!r} is no function of draws made beforehand"
    targets: list[Any] = pytree.tree_leaves(run.train.targets(torch.arange(run.train.count)))
    if any(not isinstance(leaf, Tensor) or leaf.shape[:1] != (run.train.count,) for leaf in targets):
        return "its targets differ in size from image to image"
    return None


_said: set[str] = set()


def _say(run: Run, state: TrainState, why: str) -> None:
    if why not in _said:
        _said.add(why)
        text = f"steps are taken one by one, and not recorded as a whole: {why}"
        run.report(Progress("note", state.epoch + 1, run.config.epochs, state.step, run.steps, message=text))

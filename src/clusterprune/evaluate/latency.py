"""Time of one forward pass."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils import _pytree as pytree

from clusterprune.arguments import shown
from clusterprune.errors import ArgumentError, ModelError
from clusterprune.evaluate.mode import Example, check_example, on_device, shapes_of
from clusterprune.graph.arguments import check_model
from clusterprune.graph.throwaway import evaluating


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass.

    Attributes
    ----------
    median_ms, iqr_ms
        Median and interquartile range over the runs, in milliseconds.
    runs
        How many passes were timed.
    batch
        Images per pass.
    """

    median_ms: float
    iqr_ms: float
    runs: int
    batch: int


def latency(
    model: nn.Module,
    example: Example,
    *,
    warmup: int = 5,
    runs: int = 20,
    device: torch.device | str | None = None,
) -> Latency:
    """Time forward passes in evaluation mode, without gradients, one after another.

    On a GPU each pass is timed by events from an idle device to the end of its last kernel, so that
    the time Python takes to launch kernels counts, as it does in use.

    Parameters
    ----------
    model
        Left as it was; a copy is used when ``device`` is not where it is.
    example
        One input, a tuple of them, or a mapping of keyword inputs; the first tensor's first dimension is the batch.
    warmup
        Passes before the first timed one.
    runs
        Timed passes.
    device
        Where to run; None for where the model is.

    Raises
    ------
    ArgumentError
        When ``runs`` is below 1, ``warmup`` below 0 or there is no tensor in the example.
    ModelError
        When the model cannot take the example.
    """
    check_model(model)
    for name, value in (("runs", runs), ("warmup", warmup)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise ArgumentError(f"{name} must be a whole number, but got {name}={shown(value)}.")
    if runs < 1:
        raise ArgumentError(f"runs must be at least 1, but got runs={runs}.")
    if warmup < 0:
        raise ArgumentError(f"warmup must be at least 0, but got warmup={warmup}.")
    runner, place = on_device(model, device)
    args, kwargs = check_example(example, place)
    time_one = _timer(lambda: runner(*args, **kwargs), place)
    with evaluating(runner), torch.inference_mode():
        try:
            times = [time_one() for _ in range(warmup + runs)][warmup:]
        except (RuntimeError, ValueError, TypeError) as error:
            raise ModelError(
                f"the model failed on an example of shape {shapes_of(args, kwargs)}: {error}. Give an input it accepts."
            ) from error
    quarter, median, three_quarters = torch.quantile(
        torch.tensor(times, dtype=torch.float64),
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64),
    ).tolist()
    first = next(leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
    batch = first.shape[0] if first.dim() else 1
    return Latency(median, three_quarters - quarter, runs, batch)


def _timer(run: Callable[[], object], place: torch.device) -> Callable[[], float]:
    """Return a function that runs once and returns milliseconds."""

    def on_cuda() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(place):
            torch.cuda.synchronize()
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
        return start.elapsed_time(end)

    def by_clock() -> float:
        wait = place.type != "cpu"
        if wait:
            torch.accelerator.synchronize(place)
        begin = time.perf_counter()
        run()
        if wait:
            torch.accelerator.synchronize(place)
        return 1000 * (time.perf_counter() - begin)

    return on_cuda if place.type == "cuda" else by_clock

"""What a model costs and what it is worth, as a run's ``result.json`` has it."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema
from torch import Tensor, nn

from clusterprune import evaluate
from clusterprune.data import Split
from clusterprune.errors import ArgumentError
from clusterprune.evaluate import Latency, Metrics
from clusterprune.evaluate.metrics import Each
from clusterprune.runtimes.racing import race
from clusterprune.runtimes.running import clock_of, create_runtime
from clusterprune.tasks import Classification, Task


@dataclass(frozen=True)
class Measurement:
    """What a model costs and what it is worth, measured on the model itself.

    Attributes
    ----------
    params
        Parameters.
    macs
        Multiply-adds of one image.
    metrics
        What the task measures on the test images, by name; where there was nothing to test on, None for what a
        classification measures.
    images
        Number of test images.
    latency_ms, latency_iqr_ms
        Median time of one forward pass, and its interquartile range.
    latency_batch
        Images in that pass.
    """

    params: int
    macs: int
    metrics: Mapping[str, float | None]
    images: int
    latency_ms: float
    latency_iqr_ms: float
    latency_batch: int

    @property
    def figures(self) -> dict[str, Any]:
        """The fields by name, each metric as one."""
        before, after = ("params", "macs"), ("images", "latency_ms", "latency_iqr_ms", "latency_batch")
        own = {name: getattr(self, name) for name in (*before, *after)}
        return {name: own[name] for name in before} | dict(self.metrics) | {name: own[name] for name in after}

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, rounded to what a measurement can tell."""
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in self.figures.items()}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Read what :meth:`to_dict` returned: whatever is no field is a metric."""
        own = {field.name for field in fields(cls)}

        def gathered(given: Any) -> Any:
            if not isinstance(given, dict) or "metrics" in given:
                return given
            known = cast(dict[str, Any], given)
            metrics = {name: value for name, value in known.items() if name not in own}
            return {name: value for name, value in known.items() if name in own} | {"metrics": metrics}

        return core_schema.no_info_before_validator_function(gathered, handler(source))


def measure(
    model: nn.Module,
    example: Tensor,
    test: Split | None = None,
    task: Task | None = None,
    *,
    latency: Latency | None = None,
    latency_batch: int = 1,
    runtime: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    each: Each | None = None,
) -> Measurement:
    """Count parameters and multiply-adds, time a pass, and measure what the task does on the test images.

    Parameters
    ----------
    example
        One input, shape (1, c, h, w), on the model's device.
    test
        Images of the task, at their own size; None skips what it measures.
    task
        What the network is for; needed with test images.
    latency
        The time of a pass, where it was taken before, as :func:`time_in_turns` does.
    latency_batch, runtime
        Images per timed pass, and what runs it, as :func:`time_in_turns` has them.
    each
        Called with the outputs and targets of every batch of test images.
    """
    if latency is None:
        (latency,) = time_in_turns([model], example, batch=latency_batch, runtime=runtime)
    worth = Metrics(dict.fromkeys(Classification.metrics), 0)
    if test is not None:
        if task is None:
            raise ArgumentError("test images tell nothing without a task; give task=Classification(…) or another")
        worth = evaluate.metrics(model, task, test, progress=progress, each=each)
    return Measurement(
        params=evaluate.params(model),
        macs=evaluate.macs(model, example),
        metrics=worth.values,
        images=worth.images,
        latency_ms=latency.median_ms,
        latency_iqr_ms=latency.iqr_ms,
        latency_batch=latency.batch,
    )


def time_in_turns(
    models: Sequence[nn.Module], example: Tensor, *, batch: int = 1, rounds: int = 5, runtime: str | None = None
) -> list[Latency]:
    """Time a pass of each model, one after the other in several rounds.

    A machine gets slower and faster while others use it; in turns, that favours none of the models. The
    median over the rounds is returned.

    Parameters
    ----------
    example
        One input, shape (1, c, h, w), on the models' device.
    batch
        Images per pass.
    runtime
        What runs them, as :func:`clusterprune.runtimes.running.create_runtime` takes it; None is PyTorch as it is.

    Raises
    ------
    ArgumentError
        If there is no such runtime, or it is not installed.
    ExportError
        If it cannot run a model.
    """
    images = example.expand(batch, *example.shape[1:]).contiguous()
    if runtime is not None:
        on = create_runtime(runtime)
        clock = clock_of(on, images)
        raced = race([on.prepare(model, images) for model in models], rounds=2 * rounds + 1, clock=clock)
        return [_of_rounds(times, batch) for times in raced.rounds_ms]
    timed: list[list[Latency]] = [[] for _ in models]
    for _ in range(rounds):
        for model, times in zip(models, timed, strict=True):
            times.append(evaluate.latency(model, images, warmup=3, runs=10))
    return [
        Latency(
            median_ms=statistics.median(one.median_ms for one in times),
            iqr_ms=statistics.median(one.iqr_ms for one in times),
            runs=sum(one.runs for one in times),
            batch=batch,
        )
        for times in timed
    ]


def _of_rounds(times: Sequence[float], batch: int) -> Latency:
    """Return what rounds of a race say of one model."""
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(middle, high - low, len(times), batch)

"""What a model costs and what it is worth, as a run's ``result.json`` has it."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from clusterprune import evaluate
from clusterprune.data import Split
from clusterprune.evaluate import Latency


@dataclass(frozen=True)
class Measurement:
    """What a model costs and what it is worth, measured on the model itself.

    Attributes
    ----------
    params
        Parameters.
    macs
        Multiply-adds of one image.
    accuracy, accuracy_top5
        Percent of the test images; None where there was nothing to test on.
    images
        Number of test images.
    latency_ms, latency_iqr_ms
        Median time of one forward pass, and its interquartile range.
    latency_batch
        Images in that pass.
    """

    params: int
    macs: int
    accuracy: float | None
    accuracy_top5: float | None
    images: int
    latency_ms: float
    latency_iqr_ms: float
    latency_batch: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, rounded to what a measurement can tell."""
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}


def measure(
    model: nn.Module,
    example: Tensor,
    test: Split | None = None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    latency: Latency | None = None,
    latency_batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Measurement:
    """Count parameters and multiply-adds, time a pass, and classify the test images.

    Parameters
    ----------
    example
        One input, shape (1, c, h, w), on the model's device.
    test
        Images to classify at their own size; None skips the accuracy.
    mean, std
        Normalisation, as in :func:`clusterprune.data.normalize`.
    latency
        The time of a pass, where it was taken before, as :func:`time_in_turns` does.
    latency_batch
        Images per timed pass.
    """
    if latency is None:
        (latency,) = time_in_turns([model], example, batch=latency_batch)
    accuracy = None
    if test is not None:
        accuracy = evaluate.accuracy(model, test, mean=mean, std=std, progress=progress)
    return Measurement(
        params=evaluate.params(model),
        macs=evaluate.macs(model, example),
        accuracy=accuracy.top1 if accuracy else None,
        accuracy_top5=accuracy.top5 if accuracy else None,
        images=accuracy.images if accuracy else 0,
        latency_ms=latency.median_ms,
        latency_iqr_ms=latency.iqr_ms,
        latency_batch=latency.batch,
    )


def time_in_turns(models: Sequence[nn.Module], example: Tensor, *, batch: int = 1, rounds: int = 5) -> list[Latency]:
    """Time a pass of each model, one after the other in several rounds.

    A machine gets slower and faster while others use it; in turns, that favours none of the models. The
    median over the rounds is returned.

    Parameters
    ----------
    example
        One input, shape (1, c, h, w), on the models' device.
    batch
        Images per pass.
    """
    images = example.expand(batch, *example.shape[1:]).contiguous()
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

"""What a similarity is, and the distances that all of them share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.graph.images import Images, Progress

Metric = Literal["cosine", "abs_cosine", "euclidean", "manhattan", "chebyshev"]
METRICS: tuple[Metric, ...] = get_args(Metric)

# A cosine of float64 unit vectors is off by a few of these, by more when the vectors are long.
_EPS = torch.finfo(torch.float64).eps
_MINKOWSKI_ORDER = {"euclidean": 2.0, "manhattan": 1.0, "chebyshev": float("inf")}


@dataclass(frozen=True, eq=False)
class ChannelPoints:
    """The channels of a group as points; on the CPU, where plans are made.

    Attributes
    ----------
    vectors
        (c, d) float64, one row per channel; None where there are distances alone.
    distances
        (c, c) float64: symmetric, non-negative, zero on the diagonal.
    """

    vectors: Tensor | None
    distances: Tensor


@runtime_checkable
class Similarity(Protocol):
    """How alike the channels of one group are.

    An implementation is a frozen dataclass whose fields are its options; it gathers what it compares. What every
    implementation promises:

    - channels that are the same to it are at distance zero;
    - reordering the channels of a group reorders its points and changes nothing else;
    - the same input gives the same result, and the network is left as it is.
    """

    name: ClassVar[str]

    def points(
        self,
        graph: ChannelGraph,
        groups: Sequence[Group],
        images: Images | None,
        progress: Progress | None = None,
    ) -> Mapping[str, ChannelPoints]:
        """Return the points of every group by its name.

        Parameters
        ----------
        graph
            The traced network.
        groups
            The groups whose channels are compared, each with its own.
        images
            Normalised inputs that fit the network, in whole batches; None if there are none.

        Raises
        ------
        ArgumentError
            It looks at images and there are none, or a value is not finite.
        """
        ...


def pairwise_distances(vectors: Tensor, metric: Metric = "cosine") -> Tensor:
    """Return the distance between every two rows.

    Cosine is 1 − cos, in [0, 2]; abs_cosine is 1 − |cos|, in [0, 1]. The direction of a zero vector
    is undefined, so for both its distance is set to 0 to another zero vector and to 1 to anything
    else.

    Parameters
    ----------
    vectors
        (c, d), one row per channel, c ≥ 1 and d ≥ 1, finite.
    metric
        One of :data:`METRICS`.

    Returns
    -------
    Tensor
        (c, c) float64, exactly symmetric, non-negative, zero on the diagonal and between equal
        rows.

    Raises
    ------
    ArgumentError
        The metric is unknown, the shape is wrong, or a value or a distance is not finite.
    """
    check_choice("metric", metric, METRICS)
    if vectors.ndim != 2:
        raise ArgumentError(
            f"vectors must have shape (channels, coordinates), but got {tuple(vectors.shape)}; "
            "flatten each channel to one row."
        )
    rows = as_rows("vectors", vectors)
    if metric in ("cosine", "abs_cosine"):
        distances = _cosine(rows, absolute=metric == "abs_cosine")
    else:
        distances = _minkowski(rows, _MINKOWSKI_ORDER[metric])
    if not torch.isfinite(distances).all():
        raise ArgumentError(
            f"vectors are too large for metric={metric!r}: the largest magnitude is "
            f"{rows.abs().max().item():.3g} and a distance overflows; rescale them."
        )
    distances = (distances + distances.T) / 2
    return distances.fill_diagonal_(0.0)


def as_rows(name: str, values: Tensor) -> Tensor:
    """Return ``values`` (c, ...) as finite, detached float64 rows (c, d); or ArgumentError."""
    if values.ndim < 1 or values.numel() == 0:
        raise ArgumentError(
            f"{name} must hold at least one channel and one value, but got shape {tuple(values.shape)}."
        )
    rows = to_float64(values).reshape(values.shape[0], -1)
    check_finite(name, rows)
    return rows


def to_float64(values: Tensor) -> Tensor:
    """Return ``values`` detached, in float64, on their device unless it has no float64 (MPS)."""
    values = values.detach()
    return (values.cpu() if values.device.type == "mps" else values).to(torch.float64)


def check_finite(name: str, values: Tensor) -> None:
    """Raise ArgumentError when a value is NaN or infinite."""
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise ArgumentError(
            f"{name} must be finite, but got NaN or Inf in {bad} of {values.numel()} values; "
            "look for a diverged layer or for images that are not normalised."
        )


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ArgumentError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ArgumentError(f"{name} must be one of {', '.join(choices)}, but got {name}={value!r}.")


def _cosine(rows: Tensor, *, absolute: bool) -> Tensor:
    # Dividing by the largest magnitude first keeps the squares inside float64's range.
    largest = rows.abs().amax(dim=1, keepdim=True)
    zero = largest == 0
    scaled = rows / torch.where(zero, 1.0, largest)
    unit = scaled / torch.where(zero, 1.0, torch.linalg.vector_norm(scaled, dim=1, keepdim=True))
    cosine = unit @ unit.T
    distances = 1 - (cosine.abs() if absolute else cosine)
    rounding = _EPS * max(8.0, rows.shape[1] ** 0.5)
    distances = torch.where(distances < rounding, 0.0, distances)
    return torch.where(zero & zero.T, 0.0, distances)


def _minkowski(rows: Tensor, order: float) -> Tensor:
    # Coordinate by coordinate: the shortcut through a matrix product loses half the digits of
    # small distances. `pdist` computes each pair once.
    count = rows.shape[0]
    distances = rows.new_zeros(count, count)
    first, second = torch.triu_indices(count, count, offset=1, device=rows.device)
    pairs = torch.nn.functional.pdist(rows.contiguous(), p=order)
    distances[first, second] = pairs
    distances[second, first] = pairs
    return distances

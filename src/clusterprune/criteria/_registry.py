"""Criteria by name, for the command line and recipes."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor

from clusterprune.arguments import make_by_name, shown, type_name
from clusterprune.criteria._base import Criterion, ScoreInputs
from clusterprune.criteria.batch_norm import BatchNormScale
from clusterprune.criteria.chance import Random
from clusterprune.criteria.fpgm import FPGM
from clusterprune.criteria.hrank import HRank
from clusterprune.criteria.norms import L1, L2
from clusterprune.criteria.taylor import Taylor
from clusterprune.errors import ArgumentError

CriterionName = Literal["l1", "l2", "fpgm", "bn_scale", "hrank", "taylor", "random"]
"""Names of all criteria."""
ScoreFunction = Callable[[ScoreInputs], Mapping[str, Tensor]]
"""All that a criterion of one's own has to be."""
_CRITERIA: dict[str, type[Any]] = {
    kind.name: kind for kind in (L1, L2, FPGM, BatchNormScale, HRank, Taylor, Random)
}  # fmt: skip


def names() -> tuple[str, ...]:
    """Return the names that :func:`create` knows."""
    return tuple(_CRITERIA)


def create(name: str, **options: Any) -> Criterion:
    """Return the criterion called ``name`` with the given options.

    Raises
    ------
    ArgumentError
        The name or an option does not exist; the message lists what does.
    """
    return make_by_name("criterion", _CRITERIA, name, options)


def read_criterion(value: ScoreFunction | str) -> ScoreFunction:
    """Return a criterion by its name; whatever can be called passes.

    Raises
    ------
    ArgumentError
        There is no criterion of that name, or it cannot be called.
    """
    if isinstance(value, str) and value in _CRITERIA:
        return create(value)
    # A class can be called too, but makes a criterion and gives no scores.
    if not callable(value) or isinstance(value, type):
        raise ArgumentError(
            f"criterion must be one of {', '.join(_CRITERIA)}, or a function from ScoreInputs to the scores of each "
            f"group, such as L1(), but got criterion={shown(value)}"
        )
    return value


def name_of(criterion: ScoreFunction) -> str:
    """Return what a criterion is called: its own name, or that of its function or class."""
    for name in (getattr(criterion, "name", None), getattr(criterion, "__name__", None)):
        if isinstance(name, str):
            return name
    return type_name(criterion)

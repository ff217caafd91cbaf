"""Plans at several budgets side by side: what each would leave and cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from clusterprune.arguments import shown
from clusterprune.errors import ArgumentError
from clusterprune.graph.nest import is_mapping
from clusterprune.methods.budget import Budget
from clusterprune.plan import Plan
from clusterprune.tables import count, html_table

Fit = Literal["merge", "quick", "full"]
"""How kernels are solved for: as mixing matrices alone, by a short refit on few images, or as :meth:`Planner.plan`."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """What a budget leads to.

    Attributes
    ----------
    budget
        As it was asked for, such as ``{"keep_macs": 0.5}``.
    plan
        Its plan; kernels as the sweep was told to fit them.
    macs, params
        Multiply-adds of an image, and parameters, of the compact network.
    predicted_loss
        What the cuts cost by themselves, in nats, before a refit makes some of it good; None where it was not priced.
    score
        What the sweep's function said of the compact network; None without one.
    """

    budget: Mapping[str, Any]
    plan: Plan = field(repr=False)
    macs: int
    params: int
    predicted_loss: float | None
    score: float | None


class Candidates(list[Candidate]):
    """The candidates of a sweep: a list, and a table in a notebook."""

    def _repr_html_(self) -> str:
        rows = [
            (
                ", ".join(f"{name}={value}" for name, value in one.budget.items()), count(one.macs), count(one.params),
                *("-" if value is None else f"{value:.4g}" for value in (one.predicted_loss, one.score)),
            )
            for one in self
        ]  # fmt: skip
        return html_table(("budget", "MACs", "parameters", "predicted loss", "score"), rows)


def as_budget(given: object) -> Budget:
    """Return a budget out of a share of the multiply-adds, as a number or a text, or of a mapping.

    Raises
    ------
    ArgumentError
        If it is none of them.
    """
    if is_mapping(given):
        return Budget(**given)
    if isinstance(given, (int, float, str)) and not isinstance(given, bool):
        return {"keep_macs": given}
    raise ArgumentError(
        "budgets must be shares such as 0.5 or '50%', or mappings such as {'max_params': 1e6}, but got "
        f"{shown(given)}"
    )

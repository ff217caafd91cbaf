"""What was done to a compact model: the record that lets `save` and `load` rebuild it without its plan."""

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import fx, nn

_KEY = "clusterprune_stages"


@dataclass(frozen=True)
class Stage:
    """One application of a plan, or what came before it.

    Attributes
    ----------
    rewired
        Whether the result is a graph module, because the model's own code did not fit the cut.
    attributes
        Attributes set on submodules, by module path.
    kept
        Kept channels by group.
    example
        Description of the example input of the trace.
    added
        Parameters that the original does not have (biases that took up an offset, or a batch norm).
    folded
        Batch norms that are gone, because the layers before them took them up.
    approximate
        Whether the model was traced with `approximate=True`.
    buffers
        Buffers that were cut and that a state dictionary does not hold (registered with `persistent=False`).
    untrainable
        Why the result computes something else in training mode than the masked original, or None.
    """

    rewired: bool
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept: dict[str, list[int]] = field(default_factory=dict)
    example: list[dict[str, Any]] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)
    approximate: bool = False
    buffers: list[str] = field(default_factory=list)
    untrainable: str | None = None


def stages(model: nn.Module) -> tuple[Stage, ...]:
    """Return what was done to a model, oldest first (nothing for a model that was never cut)."""
    noted = getattr(model, _KEY, ())
    if isinstance(model, fx.GraphModule):
        noted = model.meta.get(_KEY, noted)
    return tuple(Stage(**fields) for fields in noted)


def add_stage(small: nn.Module, parent: nn.Module, stage: Stage) -> nn.Module:
    """Note on `small` that it came from `parent` by `stage`."""
    return set_stages(small, (*stages(parent), stage))


def set_stages(model: nn.Module, history: tuple[Stage, ...]) -> nn.Module:
    """Note a history on a model, in plain dictionaries: a pickled model is then read where this package is not."""
    plain = tuple(asdict(stage) for stage in history)
    # A copy of a graph module has what is in its `meta`; one that was pickled has everything else.
    if isinstance(model, fx.GraphModule):
        model.meta[_KEY] = plain
    setattr(model, _KEY, plain)
    return model


def describe(model: nn.Module) -> list[dict[str, Any]]:
    """Return the stages of a model as plain dictionaries."""
    return [asdict(stage) for stage in stages(model)]


def why_untrainable(model: nn.Module) -> str | None:
    """Return why a compact model must not be trained (None if it may be, or was never cut)."""
    return next((stage.untrainable for stage in reversed(stages(model)) if stage.untrainable is not None), None)

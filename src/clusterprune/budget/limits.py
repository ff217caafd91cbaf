"""Which widths a group may have: multiples of something, or such as run fast.

Kernels work on blocks of channels. ONNX Runtime's convolutions take eight at a time (sixteen with AVX-512), so that
nine cost what sixteen do, and leave their fast path altogether where a width is no multiple of four: a depthwise layer
of 90 channels takes there five times as long as one of 96.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from clusterprune.errors import ArgumentError
from clusterprune.graph import ChannelGraph, Group
from clusterprune.tables import plural

RoundTo = int | Literal["auto"]
AUTO: Literal["auto"] = "auto"
STEPS = (8, 4, 2, 1)
"""What "auto" rounds to, the first of which a group is wide enough for."""
FINER = STEPS[1:]
COARSE = 4
"""A group is wide enough for a step if it has so many of it: fewer would leave too little to choose from."""
FAST = 4
"""The least that depthwise layers are rounded to: everything finer takes longer than it saves."""


@dataclass(frozen=True)
class Limits:
    """What widths are allowed.

    Attributes
    ----------
    round_to
        Kept widths are multiples of this (a group that stays whole is exempt). "auto": of 8 where a group is at least
        32 wide, of 4, 2 and 1 in narrower ones, and below the least multiple, where a budget asks for it, finer ones.
        Groups that depthwise layers carry keep to multiples of 4, or stay whole.
    min_width
        Least channels in any group, or the group's own width if that is smaller.
    finest
        What "auto" rounds wide groups to: less than 8 for the last few steps towards a budget.
    """

    round_to: RoundTo = 1
    min_width: int = 1
    finest: int = STEPS[0]

    def __post_init__(self) -> None:
        """Check both."""
        for name in ("round_to", "min_width"):
            value = getattr(self, name)
            if name == "round_to" and isinstance(value, str) and value == AUTO:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                also = ' or "auto"' if name == "round_to" else ""
                raise ArgumentError(f"{name} must be a whole number of at least 1{also}, but got {name}={value!r}")

    @property
    def aligned(self) -> bool:
        """Whether widths shall be such as run fast."""
        return self.round_to == AUTO

    def choices_of(self, graph: ChannelGraph, *groups: Group) -> list[int]:
        """Return the allowed kept widths of a group, or of several that keep equally many, widest first."""
        n_blocks = int(np.lcm.reduce([group.n_blocks for group in groups]))
        tied = int(np.gcd.reduce([_side_by_side(group) for group in groups]))
        depthwise = {call.weight for call in graph.calls if call.depthwise}
        carried = any(use.path in depthwise for group in groups for use in group.carriers)
        return self.choices(groups[0].width, n_blocks, tied, carried=carried)

    def choices(self, width: int, n_blocks: int, tied: int = 1, *, carried: bool = False) -> list[int]:
        """Return the allowed kept widths of a group, widest first.

        Parameters
        ----------
        tied
            Channels that lie side by side and stay or go together.
        carried
            Whether depthwise layers carry the channels.
        """
        least = max(min(self.min_width, width), n_blocks)
        steps = self._steps(width, n_blocks, tied, carried=carried)
        kept = {width} | {k for k in range(1, width) if steps and k % steps[0] == 0}
        kept |= {k for coarse, step in pairwise(steps) for k in range(step, coarse, step)}
        return sorted((k for k in kept if k == width or k >= least), reverse=True)

    def _steps(self, width: int, n_blocks: int, tied: int, *, carried: bool) -> list[int]:
        """Return the step of the widths, and finer ones for what is below it."""
        if not self.aligned:
            return [int(np.lcm(self.round_to, n_blocks))]
        fast = [s for s in STEPS if s <= self.finest and not (carried and s < FAST)]
        every = list(dict.fromkeys(int(np.lcm(s // np.gcd(s, tied), n_blocks)) for s in fast))
        return [step for step in every if COARSE * step <= width] or every[-1:]

    def facts(self, graph: ChannelGraph, widths: Mapping[str, int]) -> dict[str, str]:
        """Return what a plan notes of "auto": how many of the groups that it cuts keep multiples of what, and why.

        Parameters
        ----------
        widths
            Kept width of every group that is cut, by name.
        """
        if not self.aligned or not widths:
            return {}
        found: Counter[tuple[int, str]] = Counter()
        for name, kept in widths.items():
            group = graph.by_name[name]
            step = max(s for s in STEPS if kept * _side_by_side(group) % s == 0)
            narrow = group.width < COARSE * STEPS[0]
            found[step, "" if step == STEPS[0] else " narrower than 32" if narrow else " for the budget"] += 1
        told = [f"{step} in {plural(found[step, why], 'group')}{why}" for step, why in sorted(found, reverse=True)]
        return {"widths": f"multiples of {', of '.join(told)}"}


def _side_by_side(group: Group) -> int:
    """Return how many channels lie next to one another in each set that stays or goes, such as a head's."""
    positions = group.producers[0].positions
    return positions.shape[1] if (np.diff(positions, axis=1) == 1).all() else 1

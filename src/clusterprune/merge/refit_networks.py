# pyright: reportUnknownMemberType=false
"""The original and the compressed network, layer after layer on the same images, as a refit looks at them."""

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clusterprune.graph import ChannelGraph
from clusterprune.graph.images import Images, as_inputs, batches
from clusterprune.graph.program import Program, named_tensors
from clusterprune.graph.rewrite import ChannelMask, rewrite
from clusterprune.merge.patches import PatchExtractor
from clusterprune.merge.refit_targets import Rows, Target, aimed
from clusterprune.plan import Plan
from clusterprune.surgery.bias_homes import bias_home, with_new_biases
from clusterprune.surgery.cutting import removed_labels


class Pair:
    """The original and the compressed network, both part-way through the same images."""

    def __init__(
        self,
        graph: ChannelGraph,
        plan: Plan,
        state: dict[str, Tensor],
        images: Images,
        batch_size: int,
        order: Sequence[str],
    ) -> None:
        self.graph, self.state = graph, state
        removed = removed_labels(graph, plan)
        self.original = Program(graph, order=order)
        self.compact = Program(graph, with_new_biases(graph, state, rewrite(graph, removed)), order=order)
        before = self.original.weights(named_tensors(graph))
        self.after = self.compact.weights(state)
        self.values = [
            (ChainMap(self.original.bind(batch), before), ChainMap(self.compact.bind(batch), self.after))
            for batch in batches(images, batch_size)
        ]
        self.images = len(as_inputs(images)[0])
        self._done = (0, 0)
        self._held: list[list[Tensor]] = []
        self._again: Target | None = None
        self._rows: dict[str, Tensor] = {}
        mask = ChannelMask(graph, removed)
        for call in graph.calls:
            kept = mask.kept(call.node)[call.channel_dim]
            if kept is not None:
                self._rows[call.node] = torch.from_numpy(kept)

    def observe(self, target: Target, limit: int, generator: torch.Generator) -> Iterator[Rows]:
        """Run both networks up to a layer; yield, batch by batch and call by call, what it reads and should make.

        At most `limit` positions are taken of each image, before anything else is done with them.
        """
        index = self.original.index[target.call.node]
        stop = index + len(target.calls) - 1 if target.addition is None else self.original.index[target.addition.name]
        rows = self._rows.get(target.call.node)
        affine = None if target.norm is None else target.norm.folding(self.state)
        moved = self._moved(target)
        looks = [
            (call, PatchExtractor.of(self.graph, call), most)
            for call, most in zip(target.calls, self._shares(target, limit), strict=True)
        ]
        finished, self._again = self._again, None
        before, self._held = self._held[::-1], []
        with torch.no_grad():
            for original, compact in self.values:
                if finished is not None:
                    self._run_again(finished, compact, before.pop())
                self.original.advance(original, self._done[0], stop + 1)
                self.compact.advance(compact, self._done[1], index)
                self._held.append([compact[call.input] for call in target.calls])
                for (call, reader, most), x in zip(looks, self._held[-1], strict=True):
                    made = original[call.node if target.addition is None else target.addition.name]
                    where = reader.positions(made, most, generator)
                    wanted = reader.outputs(made, where)
                    wanted = wanted if rows is None else wanted[:, rows]
                    wanted = wanted if moved is None else wanted + moved
                    other: Tensor | None = None
                    if target.addition is not None:
                        # The other side of the sum is needed, not what the old kernel makes.
                        old = {call.node, target.norm.name if target.norm is not None else ""}
                        self.compact.advance(compact, index, stop, skip=old)
                        other = reader.outputs(compact[target.other], where)
                    yield aimed(reader.inputs(x, where), wanted, other, affine, target)
        self._done = (stop + 1, stop)

    def _moved(self, target: Target) -> Tensor | None:
        """Return by how much the norm behind a layer already expects more of each output than the original's does.

        A merge's offset is taken up by the running mean. What a layer should make is what its norm then makes the same
        of; where the error is looked at behind an addition, the norm that stands between says so itself.
        """
        home = bias_home(self.graph, target.call.weight)
        if target.addition is not None or home is None or home[0] != "subtract":
            return None
        mean, rows = named_tensors(self.graph)[home[1]].detach(), self._rows.get(target.call.node)
        return self.state[home[1]] - (mean if rows is None else mean[rows.to(mean.device)])

    def rows(self, target: Target, limit: int) -> int:
        """Return how many rows :meth:`observe` yields altogether."""
        return self.images * sum(self._shares(target, limit))

    def _shares(self, target: Target, limit: int) -> list[int]:
        """Return how many positions of an image each call shows: the same number, as far as they have so many."""
        places = [call.places(self.graph.nodes[call.node].meta["val"].shape) for call in target.calls]
        shares = [0] * len(places)
        for rank, at in enumerate(sorted(range(len(places)), key=places.__getitem__)):
            even = -(-(limit - sum(shares)) // (len(places) - rank))
            shares[at] = min(places[at], max(1, even))
        return shares

    def replace(self, fresh: Mapping[str, Tensor]) -> None:
        """Put refitted tensors into the compressed network."""
        self.state.update(fresh)
        self.after.update(self.compact.weights(self.state))

    def finish(self, target: Target) -> None:
        """Let what follows see the refitted call's new output; the call is run again when a batch is next looked at.

        Of all batches at once, what the call reads and what the next one reads is all that is held.
        """
        self._again = target
        if target.addition is None:
            self._done = (self._done[0], self.compact.index[target.call.node] + len(target.calls))

    def _run_again(self, target: Target, compact: ChainMap[str, Any], read: list[Tensor]) -> None:
        """Run a refitted layer (and its norm) on what it read."""
        index = self.compact.index[target.call.node]
        local = compact.maps[0]
        present = target.call.input in local
        local.update({call.input: x for call, x in zip(target.calls, read, strict=True)})
        self.compact.advance(compact, index, index + len(target.calls))
        if target.addition is not None:
            if target.norm is not None:
                again = self.compact.index[target.norm.name]
                self.compact.advance(compact, again, again + 1)
            # What stands between the call and the addition ran already; keep what was still needed then.
            if present:
                local[target.call.input] = read[0]
            else:
                local.pop(target.call.input, None)

"""Something to run in a model's place: whatever its forward changes is thrown away with it.

A forward may assign attributes, fill lists, write buffers and draw random numbers; so may its hooks, and an
overridden `train`. To export such a model means to run all of that with tensors that hold no numbers. Nothing of it
may reach the user's model, so that what runs is a copy of the module tree, down to the lists in its attributes.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from clusterprune.graph.copying import Copier
from clusterprune.graph.put_back import Contents, randomness_kept, surroundings_kept


@dataclass(frozen=True, eq=False)
class Throwaway:
    """A copy of a module tree, and whose copies its tensors are."""

    module: nn.Module
    originals: dict[int, Tensor] = field(repr=False)

    def original(self, tensor: Tensor) -> Tensor:
        """Return the tensor whose copy was given (or the given one, if it is no copy)."""
        return self.originals.get(id(tensor), tensor)


def duplicate(model: nn.Module, tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return a copy of a model that shares no state with it, closures of hooks and of a replaced forward included.

    Unlike `copy.deepcopy` it does not fail: what cannot be copied (locks, open files) is shared, and tensors lose the
    history of how they were computed.

    Parameters
    ----------
    tensors
        What the copy's parameters and buffers hold, by path, where it is not a copy of the model's own: the given
        tensors themselves, of any shape. Tensors that the model shares stay shared.
    """
    copier = Copier()
    for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensors is not None and path in tensors:
            given = tensors[path].detach()
            copier.put(tensor, nn.Parameter(given, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else given)
    return copier.copy(model)


@contextmanager
def throwaway(model: nn.Module) -> Generator[Throwaway, None, None]:
    """Give a copy of a model that may be run, in any mode, without the model's noticing.

    Parameters, buffers, attributes, hooks and the containers in them are copies; classes are the model's own. What
    cannot be copied (locks, open files) is shared. Afterwards the random number generators, the attributes of the
    modules' classes, and the global variables that their methods name are as they were.
    """
    copier = Copier()
    with randomness_kept(), surroundings_kept(model):
        yield Throwaway(copier.copy(model), copier.originals)


@contextmanager
def evaluating(model: nn.Module) -> Generator[nn.Module, None, None]:
    """Put the model itself into evaluation mode; afterwards it is what it was before, whatever its forward does.

    That is the mode of every module (one by one, because models are used with parts, often batch norm, frozen in
    evaluation mode), its buffers, and what its attributes are. A list to which a forward appends grows.
    """
    modes = [(module, module.training) for module in model.modules()]
    attributes = Contents()
    for module, _ in modes:
        attributes.keep(vars(module)["_buffers"], depth=1)
        attributes.keep(vars(module), depth=1)
    model.eval()
    try:
        yield model
    finally:
        attributes.put_back()
        for module, mode in modes:
            module.training = mode

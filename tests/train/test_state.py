import pytest
import torch
from torch import Tensor, nn

from clusterprune.errors import ArgumentError, ModelError
from clusterprune.train.state import TrainState, compare

CPU = torch.device("cpu")


def state_of(model: nn.Module) -> TrainState:
    return TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), CPU)


def conv() -> nn.Conv2d:
    return nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def test_restore_puts_back_what_was_taken() -> None:
    state = state_of(conv())
    state.model(torch.ones(1, 3, 5, 5)).sum().backward()
    state.optimizer.step()
    taken = state.tensors()
    assert all(value.is_contiguous() for value in taken.values())
    drawn = torch.rand(3)
    other = state_of(conv())
    other.restore(taken)
    assert torch.equal(torch.rand(3), drawn)
    again = other.tensors()
    assert again.keys() == taken.keys()
    assert all(torch.equal(again[name], taken[name]) for name in taken if name != "rng.cpu")
    assert "optimizer.momentum_buffer.weight" in taken
    weight = other.model.get_parameter("weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert other.optimizer.state[weight]["momentum_buffer"].stride() == weight.stride()


def test_another_model_is_refused_and_left_alone() -> None:
    taken = state_of(conv()).tensors()
    model = nn.Conv2d(3, 5, 3, bias=False)
    before = model.weight.clone()
    with pytest.raises(ArgumentError) as caught:
        state_of(model).restore(taken)
    assert "bias is only in the checkpoint" in str(caught.value)
    shapes = "weight is (4, 3, 3, 3) torch.float32 in the checkpoint, (5, 3, 3, 3) torch.float32"
    assert shapes in str(caught.value)
    assert torch.equal(model.weight, before)


def test_compare_names_both_sides() -> None:
    one, two = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    assert compare({"a": one, "b": one}, {"b": one, "c": one}) == [
        "a is only in the checkpoint",
        "c is only in the model",
    ]
    assert "torch.float64 in the model" in compare({"a": one}, {"a": two})[0]


def test_a_long_list_of_differences_is_cut() -> None:
    taken = state_of(nn.Sequential(*[nn.Linear(1, 1) for _ in range(8)])).tensors()
    with pytest.raises(ArgumentError, match="and 13 more"):
        state_of(nn.Linear(1, 1)).restore(taken)


def test_state_that_only_pickle_could_save_is_refused() -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> object:
            return {"step": 1}

        def set_extra_state(self, state: object) -> None: ...

    with pytest.raises(ModelError, match=r"'_extra_state' is a dict.*buffer"):
        state_of(Odd(1, 1)).tensors()


def test_is_finite() -> None:
    model = nn.Linear(2, 2)
    state = state_of(model)
    assert state.is_finite()
    with torch.no_grad():
        model.bias[0] = float("inf")
    assert not state.is_finite()
    frozen: Tensor = model.bias.requires_grad_(False)
    assert not frozen.isfinite().all()
    assert state.is_finite()

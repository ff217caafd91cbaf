import pytest
import torch
from torch import nn

from clusterprune.errors import ArgumentError, ModelError
from clusterprune.models import ModelSpec


def small(num_classes: int = 2) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, num_classes))


def fixed() -> nn.Module:
    return small(5)


SHAPE = (3, 8, 8)


def test_build_gives_eval_mode_and_the_number_of_classes():
    spec = ModelSpec("small", small, SHAPE)
    assert not spec.build().training
    assert spec.build()(spec.example()).shape == (1, 2)
    assert spec.build(num_classes=9)(spec.example()).shape == (1, 9)


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone():
    spec = ModelSpec("small", small, SHAPE)
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    first, again, other = spec.build(seed=1), spec.build(seed=1), spec.build(seed=2)
    assert torch.equal(torch.randn(4), expected)
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    pairs = zip(first.parameters(), other.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_without_a_seed_the_global_generator_draws():
    spec = ModelSpec("small", small, SHAPE)
    assert not torch.equal(next(spec.build().parameters()), next(spec.build().parameters()))


def test_example_is_always_the_same():
    spec = ModelSpec("small", small, SHAPE)
    assert spec.example(3).shape == (3, 3, 8, 8)
    assert spec.example().dtype is torch.float32
    assert torch.equal(spec.example(), spec.example())


@pytest.mark.parametrize("argument", [{"num_classes": 0}, {"num_classes": 2.5}, {"seed": -1}])
def test_numbers_out_of_range_are_named(argument):
    ((name, value),) = argument.items()
    with pytest.raises(ArgumentError, match=f"but got {name}={value}"):
        ModelSpec("small", small, SHAPE).build(**argument)
    with pytest.raises(ArgumentError, match="but got batch=0"):
        ModelSpec("small", small, SHAPE).example(0)


def test_a_factory_without_num_classes_is_accepted_when_its_outputs_fit():
    spec = ModelSpec("fixed", fixed, SHAPE)
    assert spec.build(num_classes=5)(spec.example()).shape == (1, 5)
    with pytest.raises(ModelError, match=r"'fixed' has 5 outputs, but num_classes=3 .*parameter"):
        spec.build(num_classes=3)


def test_a_factory_without_num_classes_may_return_anything_else():
    assert isinstance(ModelSpec("maps", nn.Identity, SHAPE).build(num_classes=3), nn.Identity)
    # It does not run on the declared input; who needs it to run will say so.
    assert ModelSpec("fixed", fixed, (3, 9, 9)).build(num_classes=3) is not None


def test_an_error_of_the_factory_is_named_with_its_line():
    def broken() -> nn.Module:
        message = "no such depth"
        raise LookupError(message)

    with pytest.raises(ModelError, match=r"called with \(\), raised LookupError: no such depth") as e:
        ModelSpec("broken", broken).build()
    assert "test_spec.py:" in str(e.value)
    assert isinstance(e.value.__cause__, LookupError)


def test_a_factory_that_wants_more_arguments_says_which():
    def wants(num_classes: int, depth: int) -> nn.Module:
        return small(num_classes + depth)

    with pytest.raises(ModelError, match=r"called with \(num_classes=4\).*'depth'"):
        ModelSpec("wants", wants).build(num_classes=4)


def test_a_factory_must_return_a_module():
    with pytest.raises(ModelError, match=r"returned dict, but must return a torch\.nn\.Module"):
        ModelSpec("dict", dict).build()  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_shape": (3, 8)}, r"input_shape must be .* but got \(3, 8\)"),
        ({"input_shape": (3, 8, 0)}, "input_shape must be"),
        ({"input_shape": ()}, "input_shape must be"),
        ({"input_shape": (1, 8, 8)}, "one number for each of the 1 input channels"),
        ({"std": (1.0, 0.0, 1.0)}, "std be above 0"),
        ({"num_classes": -1}, "num_classes must be an integer of 0 or more, but got -1"),
    ],
)
def test_impossible_inputs_are_refused(options, message):
    with pytest.raises(ModelError, match=message):
        ModelSpec("small", small, **options)

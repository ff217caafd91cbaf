"""The laws of surgery on wild random networks; `benchmarks/random_networks.py` runs thousands of the same kind."""

import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import wild_laws
from examples import every, first
from network_blocks import CHAIN
from torch import nn
from wild_base import WILD, options_of, simplest
from wild_laws import Result, check, general, minimal, snapshot, worst
from wild_networks import HEADS, STEMS, Scored, WildNetwork, WildRecipe, draw, smaller

import clusterprune as cp
from clusterprune.errors import ModelError

LAYER = simplest("Layer")
AWAY = simplest("WrittenHalf", at=4, form="cat")


def complain(results: list[Result]) -> None:
    """Fail with a recipe that can be pasted for every network that failed, the first one as small as it gets."""
    failed = [result for result in results if result.failed]
    if failed:
        told = [f"{result.kind}\n    check({result.recipe!r})" for result in failed]
        pytest.fail(f"{len(failed)} of {len(results)}:\n" + "\n".join([*told, f"smaller: {minimal(failed[0])!r}"]))


def check_share(results: list[Result]) -> None:
    """Refusing everything is no success: nearly all networks have something to cut, and are cut."""
    outcomes = Counter(result.outcome for result in results)
    assert outcomes["cut"] >= 0.75 * len(results), outcomes
    assert outcomes["refused"] <= 0.1 * len(results), [r.kind for r in results if r.outcome == "refused"]
    notes = Counter(note for result in results for note in result.notes)
    for what in ("batch", "size", "training"):
        assert notes[f"{what}: the same"] >= 0.5 * outcomes["cut"], notes


@pytest.mark.parametrize("start", first(1, range(0, 30, 10)))
def test_laws_hold_on_thirty_wild_networks(start: int) -> None:
    complain([check(draw(seed)) for seed in range(start, start + 10)])


FOUND = {
    "a height in the place of a width": WildRecipe(
        chain=(
            ("Again", {"inner": (("Views", {"form": "transposed"}), ("Order", {"form": "strided"})), "form": "thrice"}),
            (
                "CrossStage",
                {"layers": 2, "form": "slices", "shortcut": True, "inner": (("Idiom", {"form": "mean_removed"}),)},
            ),
            ("Borrowed", {"key": "conv", "out": 6, "form": "names"}),
        ),
        dims=2,
        stem="conv",
        head="training_extra",
        width=5,
        keywords=True,
        warm=True,
        seed=63122,
    ),
    "a channel that is dead in one draw": WildRecipe(
        chain=(
            ("ShuffleUnit", {"groups": 2, "stride": 1, "form": "v1"}),
            ("WrittenHalf", {"at": 4, "factor": 0.5, "form": "half_act"}),
            ("Again", {"inner": (("Views", {"form": "unflatten"}),), "form": "other_input"}),
        ),
        dims=2,
        stem="siamese",
        head="linear",
        width=6,
        keywords=False,
        warm=False,
        seed=59144,
    ),
    "constants of a graph that was used before": WildRecipe(
        chain=(
            ("Densely", {"growth": 4, "layers": 3, "form": "dense"}),
            ("Remember", {"form": "grid"}),
            ("OddGroups", {"groups": 3, "into": 1, "out": 1, "form": "twice"}),
        ),
        dims=3,
        stem="both",
        head="detector",
        width=8,
        keywords=False,
        warm=True,
        seed=56809,
    ),
    "a bias beside a borrowed weight": WildRecipe(
        chain=(("Einsum", {"form": "gram", "out": 8}), ("ImageIdiom", {"form": "deformed"})),
        dims=2,
        stem="small_image",
        head="flatten",
        width=6,
        keywords=False,
        warm=False,
        seed=14933,
    ),
    "classes alone hide wrong halves": WildRecipe(
        (AWAY, simplest("Fusion", form="fast"), simplest("Resize", form="unshuffle")), head="integers", seed=52886
    ),
    "classes alone hide that stochastic depth is lost": WildRecipe(
        (simplest("Skip", depth=True), simplest("Transposed", norm="batch"), simplest("Views", form="fold_groups")),
        head="integers",
        width=12,
        keywords=True,
        seed=7255,
    ),
    "stochastic depth in a rebuilt model": WildRecipe((AWAY, simplest("Chance", form="depth")), seed=3),
    "a region of another precision in a rebuilt model": WildRecipe(
        (simplest("Regions", form="autocast"), AWAY), dims=3, seed=24533
    ),
    "depthwise with a multiplier, in training alone": WildRecipe(
        (simplest("TrainingOnly", inner=(simplest("Depthwise", multiplier=3),), form="counted"),), dims=3, seed=4
    ),
    "a kernel that is a buffer, and offsets": WildRecipe((simplest("Buffers", form="blur"),), seed=10958),
    "a write that exists at batch 1 alone": WildRecipe(
        (simplest("FixedParts", inner=(simplest("Writes", form="index_put"),)),), dims=3, seed=33578
    ),
    "a constant that is a plain attribute": WildRecipe((simplest("Buffers", form="constant"),), seed=22540),
    "biases that a cut adds to a rebuilt model": WildRecipe((AWAY, simplest("Chunks", form="reverse")), seed=4),
}


@pytest.mark.parametrize("name", every(4, FOUND))
def test_what_was_found_once_holds(name: str) -> None:
    result = check(FOUND[name])
    assert result.outcome == "cut", result.detail


@pytest.mark.slow
def test_laws_hold_on_wild_networks_drawn_anew_in_every_run() -> None:
    start = secrets.randbelow(2**30)
    results = [check(draw(seed)) for seed in range(start, start + 300)]
    complain(results)
    check_share(results)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_laws_hold_on_every_wild_construct(dims: int) -> None:
    """Every value of every option alone, between a convolution that closes it off and the head."""
    recipes = [
        WildRecipe((simplest(name, **{key: value}), LAYER), dims, "both", seed=7)
        for name, (_, known, options) in WILD.items()
        if dims in known
        for key, choices in options.items()
        if choices != CHAIN
        for value in (choices if key == "form" else choices[1:])
    ]
    ends = [WildRecipe((LAYER,), dims, stem, head, seed=8) for stem in STEMS for head in HEADS]
    results = [check(recipe) for recipe in (*recipes, *ends)]
    complain(results)
    check_share(results)


def test_every_construct_is_drawn() -> None:
    drawn = {block for seed in range(4000) for block in draw(seed).blocks()}
    wanted = {
        f"{name}:{form}" if form else name for name in WILD for form in options_of(name).get("form", (None,))
    }  # fmt: skip
    assert wanted <= drawn


def test_recipes_can_be_pasted() -> None:
    names = {"WildRecipe": WildRecipe}
    assert all(eval(repr(draw(seed)), names) == draw(seed) for seed in range(50))
    deep = [draw(seed) for seed in range(200)]
    assert max(repr(recipe).count("(('") for recipe in deep) > 4  # chains that hold chains that hold chains


def test_a_network_is_the_same_every_time() -> None:
    first, second = (WildNetwork(draw(3)).eval() for _ in range(2))
    inputs = WildNetwork.inputs(draw(3), 2)
    with torch.no_grad():
        assert worst(first(**inputs), second(**inputs)) == 0


class TestTheHarnessItself:
    """What would be a wrong answer is called one."""

    def broken(self, monkeypatch: pytest.MonkeyPatch, change: Callable[[nn.Module], Any]) -> Result:
        def apply(model: nn.Module, plan: cp.Plan, **options: Any) -> nn.Module:
            small = original(model, plan, **options)
            with torch.no_grad():
                return change(small) or small

        original = cp.apply
        monkeypatch.setattr(wild_laws.cp, "apply", apply)
        return check(WildRecipe((LAYER, LAYER), seed=3))

    def test_a_weight_that_is_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def change(small: nn.Module) -> None:
            small.get_parameter("head.weight").mul_(1 + 1e-7)

        result = self.broken(monkeypatch, change)
        assert result.kind.startswith("wrong: evaluation")

    def test_a_branch_that_runs_in_training_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def change(small: nn.Module) -> None:
            small.register_forward_hook(lambda module, _, output: output * 1.01 if module.training else output)

        assert self.broken(monkeypatch, change).kind.startswith("wrong: training")

    def test_code_that_is_wrong_behind_a_closed_branch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def change(small: nn.Module) -> None:
            def after(module: nn.Module, _: Any, output: Any) -> Any:
                return output + 0.01 * (module.get_parameter("head.bias") - closed)

            closed = small.get_parameter("head.bias").clone()
            small.register_forward_hook(after)

        assert self.broken(monkeypatch, change).kind.startswith("wrong: evaluation with opened branches")

    def test_another_image_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def change(small: nn.Module) -> None:
            def after(_: nn.Module, inputs: Any, options: dict[str, Any], output: Any) -> Any:
                x = options["x"] if "x" in options else inputs[0]
                return output * x.shape[2] / 8

            small.register_forward_hook(after, with_kwargs=True)

        result = self.broken(monkeypatch, change)
        assert result.kind.startswith("wrong: evaluation at another size")

    def test_foreign_errors_and_our_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def foreign(*_: Any, **__: Any) -> Any:
            raise RuntimeError("mat1 and mat2")

        def own(*_: Any, **__: Any) -> Any:
            raise ModelError("no")

        with monkeypatch.context() as patch:
            patch.setattr(wild_laws.cp, "apply", foreign)
            assert check(WildRecipe((LAYER,))).outcome == "crash"
        with monkeypatch.context() as patch:
            patch.setattr(wild_laws.cp, "trace", own)
            assert check(WildRecipe((LAYER,))).kind == "refused: ModelError: no"
        monkeypatch.setattr(wild_laws.cp, "load", own)  # what was saved must load
        assert check(WildRecipe((LAYER,))).outcome == "crash"

    def test_a_model_that_is_touched(self) -> None:
        network = WildNetwork(WildRecipe((LAYER, simplest("Remember", form="grid"))))
        before = snapshot(network)
        wild_laws._same_model(network, before, "nothing")
        changes: tuple[Callable[[], Any], ...] = (
            lambda: setattr(network.chain.blocks[1], "grid", torch.zeros(3)),
            lambda: setattr(network.chain, "more", 1),
            lambda: network.chain.blocks[1].memory.add_(1),
            lambda: network.train(not network.training),
            lambda: network.register_forward_hook(lambda *_: None),
        )
        for change in changes:
            before = snapshot(network)
            change()
            with pytest.raises(wild_laws.LawError):
                wild_laws._same_model(network, before, "it")

    def test_differences_are_relative_to_their_own_slice(self) -> None:
        expected = torch.cat([torch.full((2, 4, 3), 640.0), torch.full((2, 3, 3), 0.5)], 1).double()
        wrong = expected.clone()
        wrong[:, 5] += 0.1
        assert worst(wrong, expected) == pytest.approx(0.2)
        masked = expected.clone()
        masked[0, 0, 0] = -torch.inf
        assert worst(masked, masked.clone()) == 0
        assert worst(expected, masked) == torch.inf
        assert worst(torch.tensor([1, 2]), torch.tensor([1, 3])) == torch.inf
        assert worst((expected, None), (expected,)) == torch.inf
        assert worst(Scored(expected, expected, 3), Scored(expected, expected, 4)) == torch.inf

    def test_failures_become_small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(recipe: WildRecipe, device: str = "cpu") -> Result:
            guilty = "Chunks:weave" in recipe.blocks()
            return Result(recipe, "wrong" if guilty else "cut", "evaluation: 3e-2" if guilty else "")

        monkeypatch.setattr(wild_laws, "check", fails)
        buried = (LAYER, simplest("Skip", inner=(LAYER, simplest("Chunks", form="weave", parts=4)), scale="zero"))
        found = minimal(fails(WildRecipe(buried, 2, "both", "scales", 12, keywords=True, seed=5)))
        assert found == WildRecipe((simplest("Chunks", form="weave"),), seed=5)

    def test_every_simpler_recipe_runs(self) -> None:
        for recipe in (*smaller(replace(draw(12), dims=2)),):
            with torch.no_grad():
                WildNetwork(recipe).eval()(**WildNetwork.inputs(recipe, 2))

    def test_messages_are_counted_without_names(self) -> None:
        assert general("layer1.conv2 has shape [3, 4], not 'x'") == "… has shape … not …"

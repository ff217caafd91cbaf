"""``compare`` as a user runs it."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli

from clusterprune.methods import Method


def arguments(tiny: str, trained: Path, methods: str, *more: object) -> list[object]:
    return [
        "compare", "--model", tiny, "--weights", trained, "--data", "digits", "--out", "run",
        "--methods", methods, "--epochs", 1, "--keep-macs", 0.6, *more,
    ]  # fmt: skip


def test_methods_are_ranked(tiny: str, trained: Path, cli: Cli):
    done = cli(*arguments(tiny, trained, "l1,l1:merging=refit,random", "--seeds", "0,1"))

    assert done.exit_code == 0, done.output
    written = json.loads(Path("run/result.json").read_text())
    assert [entry["seed"] for entry in written["entries"]] == [0, 0, 0, 1, 1, 1]
    assert written["whole"]["accuracy"] > 90
    table = done.stdout
    assert "at 60 % of its MACs" in " ".join(table.split())
    places = {name: table.index(f"\n {name} ") for name in ("l1", "l1:merging=refit", "random")}
    means = {
        name: sum(e["accuracy"] for e in written["entries"] if e["contender"] == name) / 2 for name in places
    }  # fmt: skip
    assert sorted(places, key=lambda name: places[name]) == sorted(means, key=lambda name: -means[name])
    assert "±" in table
    assert Path("run/l1:merging=refit/seed-1/compact").is_dir()


@pytest.mark.parametrize("more", [(), pytest.param(("--published",), marks=pytest.mark.slow)])
def test_the_table_says_whose_settings_a_method_has(tiny: str, trained: Path, cli: Cli, more: tuple[str, ...]):
    done = cli(*arguments(tiny, trained, "cp,cp:preset=published,l1", *more))

    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    assert f" cp {'(published)' if more else '(ours)'} " in text
    assert " cp:preset=published (published) " in text
    entries = {e["contender"]: e for e in json.loads(Path("run/result.json").read_text())["entries"]}
    assert list(entries) == ["cp", "cp:preset=published", "l1"]
    same = entries["cp"]["accuracy"] == entries["cp:preset=published"]["accuracy"]
    assert same == bool(more)


def test_a_stopped_comparison_goes_on(
    trust: tuple[str, str], tiny: str, trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    genuine = Method.run

    def stop_at_second(method: Method, *given: Any) -> object:
        if method.name == "l2":
            raise KeyboardInterrupt
        return genuine(method, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Method, "run", stop_at_second)
        stopped = cli(*arguments(tiny, trained, "l1,l2"))
    assert stopped.exit_code == 130
    assert f"1 of 2 runs are done. Go on with: clusterprune compare --out run --resume {shlex.join(trust)}" in " ".join(
        stopped.stderr.split()
    )
    assert not Path("run/result.json").exists()

    done = cli("compare", "--out", "run", "--resume", *trust)
    assert done.exit_code == 0, done.output
    assert [e["contender"] for e in json.loads(Path("run/result.json").read_text())["entries"]] == ["l1", "l2"]


@pytest.mark.parametrize(
    ("methods", "more", "expected"),
    [
        ("l1,magic", (), "methods='magic' names no method"),
        ("icp", (), "epochs=1 are too few for icp"),
        ("l1", ("--keep-macs", 5), "keep_macs must be a fraction in (0, 1]"),
        ("l1", ("--seeds", "a"), "such as 0,1,2, but got seeds='a'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tiny: str, trained: Path, cli: Cli, methods: str, more: tuple[object, ...], expected: str
):
    assert expected in cli.fails(*arguments(tiny, trained, methods, *more))
    assert list(Path().iterdir()) == []

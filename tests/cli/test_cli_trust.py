"""Whose code runs: a network's own file is run only if the command names it, and only as it was when the run began."""

import hashlib
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from command_line import MODEL_FILE, Cli

ACP = (
    "acp", "--keep-macs", 0.6, "--epochs", 1, "--augment", "none", "--storage", "search.db", "--study", "mine",
    "--set", "fitness=merge", "--set", "samples=64", "--set", "min_samples=2", "--set", "particles=2",
    "--set", "cycles=1",
)  # fmt: skip
RECIPE = """
model: net.py:build
data: digits
method: l1
settings: {keep_macs: 0.7}
training: {epochs: 1, batch_size: 128, lr: 0.05, augment: none}
baseline: {epochs: 1, batch_size: 128, lr: 0.1, augment: none}
"""


class Folder:
    """A network whose file leaves a trace of having been run, and a file that it imports."""

    def __init__(self, folder: Path, cli: Cli) -> None:
        self.cli, self.file, self.blocks, self.trace = (
            cli,
            folder / "net.py",
            folder / "blocks_beside.py",
            folder / "ran",
        )
        self.blocks.write_text("CHANNELS = 16\n")
        self.file.write_text(
            f"from pathlib import Path\nPath({str(self.trace)!r}).write_text('ran')\n"
            f"from blocks_beside import CHANNELS\n{MODEL_FILE.replace('16', 'CHANNELS')}"
        )
        self.trust = ("--trust", self.file)

    def ran(self) -> bool:
        """Tell whether the file was run since this was last asked."""
        there = self.trace.exists()
        self.trace.unlink(missing_ok=True)
        return there

    def fails(self, *arguments: object) -> str:
        """Call what must fail without running the file."""
        message = self.cli.fails(*arguments)
        assert not self.ran()
        return message

    def works(self, *arguments: object) -> None:
        """Call what must succeed."""
        result = self.cli(*arguments)
        assert result.exit_code == 0, result.output
        assert self.ran()


@pytest.fixture
def own(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Folder:
    # A process imports a name once; each test has a file of that name in a folder of its own.
    monkeypatch.delitem(sys.modules, "blocks_beside", raising=False)
    folder = Folder(tmp_path, cli)
    options = ("--data", "digits", "--epochs", 1, "--batch-size", 128, "--augment", "none", "--out", "base")
    folder.works("train", "--model", "net.py:build", *options)
    return folder


def unfinished(folder: str) -> None:
    (Path(folder) / "result.json").unlink()


def begin_training(_: Folder) -> tuple[object, ...]:
    unfinished("base")
    return "train", "--out", "base", "--resume"


def begin_compression(own: Folder) -> tuple[object, ...]:
    cut = ("--method", "l1", "--keep-macs", 0.6, "--data", "digits")
    own.works("compress", "--model", "net.py:build", "--weights", "base", *cut, "--out", "run")
    unfinished("run")
    return "compress", "--out", "run", "--resume"


def begin_comparison(own: Folder) -> tuple[object, ...]:
    some = ("--methods", "l1", "--epochs", 1, "--data", "digits")
    own.works("compare", "--model", "net.py:build", "--weights", "base", *some, "--out", "run")
    unfinished("run")
    return "compare", "--out", "run", "--resume"


def begin_reproduction(own: Folder) -> tuple[object, ...]:
    Path("own.yaml").write_text(RECIPE)
    command = ("reproduce", "own.yaml", "--data", "digits", "--limit", 100, "--out", "run")
    assert f"the recipe own names model='{own.file}:build'" in own.fails(*command)
    own.works(*command, *own.trust)
    unfinished("run")
    return "reproduce", "--out", "run", "--resume"


def begin_search(own: Folder) -> tuple[object, ...]:
    own.works(
        *("compress", "--model", "net.py:build", "--weights", "base", "--data", "digits", "--out", "run", "--method"),
        *ACP,
    )
    return "worker", "--storage", "search.db", "--study", "mine"


@pytest.mark.parametrize(
    "begin",
    [
        lambda _: ("evaluate", "base"),
        lambda _: ("train", "--config", "base/config.yaml", "--out", "again"),
        begin_training, begin_compression, begin_comparison, begin_reproduction, begin_search,
    ],
    ids=["evaluate", "config", "train", "compress", "compare", "reproduce", "worker"],
)  # fmt: skip
def test_a_file_that_something_else_names_is_run_only_if_the_command_names_it_too(
    own: Folder, begin: Callable[[Folder], tuple[object, ...]]
):
    command = begin(own)
    own.ran()
    digest = hashlib.sha256(own.file.read_bytes()).hexdigest()

    message = own.fails(*command)
    assert f"would run the code in {own.file} (sha256 {digest}), which this command does not name" in message
    option = message[message.index("add --trust") :].removeprefix("add ").removesuffix(".")
    assert shlex.split(option) == ["--trust", str(own.file)]

    Path("other.py").write_text(own.file.read_text())
    assert "would run the code in" in own.fails(*command, "--trust", "other.py")
    assert "it is not the file that you mean" in own.fails(*command, "--trust", f"{own.file}@{'0' * 64}")

    # A file that was changed in the meantime, or one that it imports.
    for file, what in ((own.file, "# and more"), (own.blocks, "import os")):
        if file == own.blocks and command[:2] == ("reproduce", "--out"):
            continue  # nothing was imported when its options were written
        before = file.read_text()
        file.write_text(f"{before}\n{what}\n")
        message = own.fails(*command, *own.trust)
        assert f"{file} was changed since" in message
        assert hashlib.sha256(before.encode()).hexdigest() in message
        assert hashlib.sha256(file.read_bytes()).hexdigest() in message
        assert "Nothing of it was run. " in message
        file.write_text(before)

    own.works(*command, "--trust", f"net.py@{digest[:16]}")


def test_the_command_itself_may_name_the_model(own: Folder):
    own.works("evaluate", "base", "--model", "net.py:build")
    own.file.write_text(f"{own.file.read_text()}\n# a remark\n")
    assert "or, to take it as it is now, name it: --model" in own.fails("evaluate", "base", *own.trust)
    own.works("evaluate", "base", "--model", "net.py:build")
    # A run that goes on goes on with the file that it began with.
    unfinished("base")
    assert "was changed since" in own.fails("train", "--out", "base", "--resume", "--model", "net.py:build")


def test_a_config_file_cannot_trust_for_the_user(own: Folder):
    config = yaml.safe_load(Path("base/config.yaml").read_text())
    for trust in (str(own.file), [str(own.file)]):
        Path("base/config.yaml").write_text(yaml.safe_dump({**config, "trust": trust}))
        Path("base/result.json").unlink(missing_ok=True)
        result = own.cli("train", "--out", "base", "--resume")
        assert result.exit_code == 2
        assert "unknown options: trust" in " ".join(result.stderr.replace("│", " ").split())
        assert "would run the code in" in own.fails("evaluate", "base")
    assert not own.ran()


@pytest.mark.parametrize(
    "code", ["yes", {"sha256": 5}, {"sha256": "0" * 63}, {"sha256": "0" * 64, "beside": ["x"]}, []]
)
def test_a_digest_that_is_none_is_refused(own: Folder, code: object):
    config = yaml.safe_load(Path("base/config.yaml").read_text())
    Path("base/config.yaml").write_text(yaml.safe_dump({**config, "code": code}))
    assert "which is no digest of a model's file" in own.fails("evaluate", "base", *own.trust)


def test_a_digest_does_not_lead_out_of_the_folder(own: Folder):
    config = yaml.safe_load(Path("base/config.yaml").read_text())
    elsewhere = own.file.parent.parent / "elsewhere.py"
    elsewhere.write_text("1\n")
    config["code"]["beside"] = {"../elsewhere.py": hashlib.sha256(b"1\n").hexdigest()}
    Path("base/config.yaml").write_text(yaml.safe_dump(config))
    assert "was changed since" in own.fails("evaluate", "base", *own.trust)


def test_a_compiled_file_in_its_place_is_not_run(own: Folder):
    """The digest is that of the source, so the source is what runs: a forged cache would pass any digest."""
    import importlib.util
    import py_compile

    evil = own.file.parent / "evil.py"
    evil.write_text(f"from pathlib import Path\nPath({str(own.file.parent / 'pwned')!r}).write_text('x')\n")
    cache = Path(importlib.util.cache_from_source(str(own.file)))
    py_compile.compile(
        str(evil), cfile=str(cache), dfile=str(own.file),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH, doraise=True,
    )  # fmt: skip
    own.works("evaluate", "base", *own.trust)
    assert not (own.file.parent / "pwned").exists()


def test_other_models_need_no_trust(cli: Cli):
    options = ("--data", "digits", "--image-size", 8, "--epochs", 1, "--batch-size", 256, "--augment", "none")
    assert cli("train", "--model", "resnet20", *options, "--out", "run").exit_code == 0
    assert "code" not in yaml.safe_load(Path("run/config.yaml").read_text())
    result = cli("evaluate", "run", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == 359


def test_what_an_unfinished_training_says_to_do_works(own: Folder):
    unfinished("base")
    Path("base/model.safetensors").unlink()
    message = own.fails("evaluate", "base")
    go_on = shlex.split(message.partition("finish it with ")[2].removesuffix("."))[0]
    own.works(*shlex.split(go_on)[1:])


MINE = """
from dataclasses import dataclass
from pathlib import Path

import clusterprune as cp
from clusterprune.methods import Keep

Path({trace!r}).write_text("ran")


@dataclass(frozen=True)
class Mine(cp.Method):
    keep_macs: float = 0.5
    scope: str = "local"

    def compress(self, network, task, work):
        graph = network.graph()
        cut = cp.CriterionCut("l2", scope=self.scope)
        plan = work.plan(lambda: cut.plan(graph, None, Keep(self.keep_macs), seed=work.seed))
        small = cp.apply(network.model, plan, graph=graph).eval()
        return cp.Outcome(small, small, plan, {{}})
"""


def test_a_method_of_ones_own_works_in_both_commands_under_the_same_rules(own: Folder):
    file, ran = Path("mine.py").absolute(), Path("mine_ran").absolute()
    file.write_text(MINE.format(trace=str(ran)))
    common = ("--model", "net.py:build", "--weights", "base", "--data", "digits", "--keep-macs", 0.6)
    own.works("compress", *common, "--method", "mine.py:Mine", "--set", "scope=global", "--out", "run")
    assert json.loads(Path("run/result.json").read_text())["settings"] == {"keep_macs": 0.6, "scope": "global"}
    own.works("compare", *common, "--methods", "mine.py:Mine,mine.py:Mine:scope=global", "--out", "both")
    both = json.loads(Path("both/result.json").read_text())
    assert [entry["macs"] <= 0.6 * both["whole"]["macs"] for entry in both["entries"]] == [True, True]
    for command in ("compress", "compare"):
        folder = "run" if command == "compress" else "both"
        unfinished(folder)
        go_on = (command, "--out", folder, "--resume")
        ran.unlink(missing_ok=True)
        assert f"would run the code in {file}" in own.fails(*go_on, *own.trust)
        before = file.read_text()
        file.write_text(f"{before}\n# a remark\n")
        assert f"{file} was changed since" in own.fails(*go_on, *own.trust, "--trust", file)
        assert not ran.exists()
        file.write_text(before)
        own.works(*go_on, *own.trust, "--trust", file)
    assert "names no subclass of clusterprune.Method" in own.fails(
        "compress", *common, "--method", "mine.py:Keep", "--out", "other"
    )

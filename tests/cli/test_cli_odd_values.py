"""Odd names, odd numbers, full disks and closed folders: one clear error, before any work where that can be."""

import json
import os
import resource
import stat
from pathlib import Path

import pytest
import torch
from command_line import MODEL_FILE, Cli
from examples import first
from safetensors.torch import load_file, save_file

from clusterprune import models
from clusterprune.errors import OutputError
from clusterprune.files.writing import atomic_folder, write_json
from clusterprune.runs import check_out, write_config, write_log, write_result, write_weights
from clusterprune.surgery import compact

COMMON = ("--no-data", "--keep-macs", 0.6)


def compress(tiny: str, trained: Path, out: str) -> list[object]:
    return ["compress", "--model", tiny, "--weights", trained, *COMMON, "--out", out]


@pytest.mark.parametrize("name", first(3, ["x[/b]", "a'b\"c", "é 名", "[red]x", ":smile:", "%s {x}", "[/]"]))
def test_any_name_of_a_folder_will_do(name: str | bytes, tiny: str, trained: Path, trust: tuple[str, str], cli: Cli):
    out = os.fsdecode(name)
    done = cli(*compress(tiny, trained, out))
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert f"Written to {out.encode('utf-8', 'backslashreplace').decode()}:" in said
    assert json.loads((Path(out) / "result.json").read_text())["settings"]["keep_macs"] == 0.6
    measured = cli("evaluate", out, *trust)
    assert measured.exit_code == 0, measured.output
    # Trained too, and stopped before it is measured.
    short = ("--data", "digits", "--epochs", 1, "--batch-size", 256, "--augment", "none")
    done = cli("train", "--model", tiny, *short, "--out", f"{out}2")
    assert done.exit_code == 0, done.output
    assert "was finished before" in cli("train", "--out", f"{out}2", "--resume", *trust).stdout


def test_names_that_no_file_can_keep_are_refused_at_once(cli: Cli):
    bad = os.fsdecode(b"folder:\xff")
    message = cli.fails("train", "--model", "resnet20", "--data", bad, "--out", "run")
    assert r"data='folder:\udcff' is not UTF-8" in message
    out = os.fsdecode(b"bad-\xff\xfe-name")
    assert "is not UTF-8, so that nothing could be read from there" in cli.fails(
        "train", "--model", "resnet20", "--data", "digits", "--out", out
    )
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("out", ["/dev/null", "x" * 300, "x" * 300 + "/y", "file/below", "/proc/1/x/y"])
@pytest.mark.parametrize("command", ["compress", "train", "demo"])
def test_places_that_cannot_be_a_folder(out: str, command: str, tiny: str, trained: Path, cli: Cli):
    Path("file").write_text("")
    arguments = {
        "compress": compress(tiny, trained, out),
        "train": ["train", "--model", tiny, "--data", "digits", "--out", out],
        "demo": ["demo", "--epochs", 1, "--out", out],
    }[command]
    if command == "demo" and out == "/dev/null":
        pytest.skip("it would take the free /dev/null-2")
    assert "out=" in cli.fails(*arguments)
    assert [path.name for path in Path().iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--seed", 10**20, "--seed must be at most 9223372036854775807"),
        ("--epochs", 10**20, "--epochs must be at most 2147483647"),
        ("--batch-size", 10**20, "--batch-size must be at most"),
        ("--image-size", 100000, "--image-size must be at most 16384 and at least -16384, but got --image-size 100000"),
        ("--num-classes", 10**20, "--num-classes must be at most"),
        ("--latency-batch", 10**20, "--latency-batch must be at most 65536"),
        ("--lr", "nan", "--lr must be a finite number, but got --lr nan"),
        ("--lr", -1, "lr: input should be greater than 0, but got lr=-1.0"),
        ("--weight-decay", "inf", "--weight-decay must be a finite number"),
        ("--checkpoint-minutes", "-inf", "--checkpoint-minutes must be a finite number"),
    ],
)
def test_numbers_that_no_computer_has_room_for(option: str, value: object, expected: str, tiny: str, cli: Cli):
    message = cli.fails("train", "--model", tiny, "--data", "digits", "--out", "run", f"{option}={value}")
    assert expected in message
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--keep-macs", "nan"), "keep_macs must be a fraction in (0, 1], but got keep_macs=nan"),
        (("--keep-macs", 0.5, "--images", 10**20), "--images must be at most"),
        (("--keep-macs", 0.5, "--round-to", 10**20), "--round-to must be at most"),
        (("--method", "icp", "--eps", "nan"), "--eps must be a finite number"),
        (("--method", "icp", "--eps", 0.1, "--steps", 10**20), "--steps must be at most"),
        (("--method", "icp", "--eps", 0.1, "--set", "alpha=.nan"), "alpha must be between 0 and 1, but got alpha=nan"),
        (("--method", "icp", "--eps", 0.1, "--set", f"samples={10**20}"), "samples=100000000000000000000"),
    ],
)
def test_numbers_of_methods_too(arguments: tuple[object, ...], expected: str, tiny: str, trained: Path, cli: Cli):
    command = ("compress", "--model", tiny, "--weights", trained, "--data", "digits", "--out", "run")
    assert expected in cli.fails(*command, *arguments)
    assert list(Path().iterdir()) == []


def test_seeds_and_minutes_too(tiny: str, trained: Path, cli: Cli):
    command = ("compare", "--model", tiny, "--weights", trained, "--data", "digits", "--out", "run")
    assert "seeds must be below 2**63" in cli.fails(*command, "--seeds", f"0,{10**20}")
    assert "--timeout must be a finite number" in cli.fails("worker", "--storage", "x.db", "--timeout", "inf")
    assert list(Path().iterdir()) == []


def test_a_path_that_does_not_exist_is_named_as_such(cli: Cli):
    message = cli.fails("evaluate", "no_such_dir")
    assert "RUN_OR_WEIGHTS='no_such_dir' does not exist (looked in" in message


@pytest.mark.parametrize(("name", "value"), [("image_size", "abc"), ("image_size", 10**9), ("num_classes", [1])])
def test_numbers_in_a_config_file_are_checked(
    name: str, value: object, tiny: str, trained: Path, trust: tuple[str, str], cli: Cli
):
    Path("run").mkdir()
    save_file(load_file(trained / "model.safetensors"), "run/model.safetensors")
    write_config(Path("run"), "train", {"model": tiny, name: value})
    assert f"config.yaml says {name}={value!r}, which is no whole number" in cli.fails("evaluate", "run", *trust)


class TestClasses:
    """The number of classes of a trained model is its own, whatever the data have."""

    @pytest.fixture
    def wide(self, tmp_path: Path) -> str:
        (tmp_path / "wide.py").write_text(MODEL_FILE.replace("num_classes=10", "num_classes=1000"))
        return f"{tmp_path / 'wide.py'}:build"

    def test_data_of_other_classes_calibrate(self, wide: str, cli: Cli):
        model = models.build(wide, seed=0)
        save_file(model.state_dict(), "wide.safetensors")
        options = ("compress", "--model", wide, "--weights", "wide.safetensors", "--data", "digits", "--keep-macs", 0.6)
        message = cli.fails(*options, "--out", "run")
        assert "has 1000 outputs, but data='digits' has 10 classes" in message
        assert "leave the test images out with --no-evaluate" in message
        assert "num_classes" not in message
        done = cli(*options, "--no-evaluate", "--out", "run")
        assert done.exit_code == 0, done.output
        done = cli("evaluate", "run/compact", "--model", wide, "--data", "digits", "--image-size", 8)
        assert done.exit_code == 2
        assert "has 1000 outputs" in " ".join(done.stderr.split())

    def test_the_weights_say_how_many(self, wide: str, cli: Cli):
        save_file(models.build(wide, num_classes=37, seed=0).state_dict(), "some.safetensors")
        torch.save({"state_dict": models.build(wide, num_classes=10, seed=0).state_dict()}, "ten.pt")
        counted = [
            json.loads(cli("evaluate", file, "--model", wide, "--json").stdout)["params"]
            for file in ("some.safetensors", "ten.pt")
        ]
        assert counted[0] - counted[1] == 27 * 65
        command = ("compress", "--model", wide, "--weights", "ten.pt", "--data", "digits", "--keep-macs", 0.6)
        assert cli(*command, "--out", "run").exit_code == 0
        # A compact model that a program saved, without a word about its run.
        small = compact.load("run/compact", lambda: models.build(wide, num_classes=10))
        compact.save(small, "alone")
        measured = cli("evaluate", "alone", "--model", wide, "--data", "digits", "--image-size", 8, "--json")
        assert measured.exit_code == 0, measured.output

    def test_what_is_to_be_trained_has_those_of_the_data(self, wide: str, cli: Cli):
        short = ("--epochs", 1, "--batch-size", 256, "--augment", "none")
        assert cli("train", "--model", wide, "--data", "digits", *short, "--out", "run").exit_code == 0
        assert load_file("run/model.safetensors")["8.bias"].shape == (10,)


class TestWriters:
    """What the system refuses is one error of ours, for the library as for the commands."""

    def write(self, folder: Path) -> dict[str, object]:
        model = models.build("resnet20", seed=0)
        graph_free = {"a": torch.zeros(200_000)}
        return {
            "save": lambda: compact.save(model, folder / "compact"),
            "weights": lambda: write_weights(folder, model),
            "json": lambda: write_json(folder / "big.json", {"a": "x" * 400_000}),
            "config": lambda: write_config(folder, "train", {"model": "x" * 400_000}),
            "result": lambda: write_result(folder, {"a": "x" * 400_000}),
            "log": lambda: write_log(folder, [{"a": "x" * 400_000}]),
            "folder": lambda: self._folder(folder / "new", graph_free),
        }

    def _folder(self, target: Path, tensors: dict[str, torch.Tensor]) -> None:
        with atomic_folder(target) as temporary:
            save_file(tensors, temporary / "some.safetensors")

    @pytest.mark.parametrize("what", ["save", "weights", "json", "config", "result", "log", "folder"])
    def test_a_full_disk(self, what: str, tmp_path: Path):
        """As near as a process can come to it alone: no file may grow beyond 100 KB."""
        write = self.write(tmp_path)[what]
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            with pytest.raises(OutputError, match=r"(?i)file too large"):
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list(tmp_path.rglob("*")) == []

    @pytest.mark.parametrize("what", ["save", "weights", "json", "config", "result", "log", "folder"])
    def test_a_closed_folder(self, what: str, plain_folder: Path):
        write = self.write(plain_folder)[what]
        plain_folder.chmod(0o500)
        with pytest.raises(OutputError, match="Permission denied"):
            write()
        plain_folder.chmod(0o000)
        with pytest.raises(OutputError, match="Permission denied"):
            write()
        with pytest.raises(OutputError, match="Permission denied"):
            check_out(plain_folder / "x")
        plain_folder.chmod(0o700)

    def test_files_are_for_whom_the_user_lets_read_them(self, tmp_path: Path):
        before = os.umask(0o027)
        try:
            self.write(tmp_path)["save"]()
            self.write(tmp_path)["weights"]()
            self.write(tmp_path)["json"]()
        finally:
            os.umask(before)
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
        assert len(modes) == 5
        assert {mode for path, mode in modes.items() if path.is_file()} == {0o640}
        assert modes[tmp_path / "compact"] == 0o750


def test_a_closed_folder_ends_a_command_with_one_error(cli: Cli, plain_folder: Path):
    plain_folder.chmod(0o500)
    out = plain_folder / "run"
    assert f"out={str(out)!r} may not be written, for" in cli.fails("demo", "--epochs", 1, "--out", out)
    assert "may not be written" in cli.fails("train", "--model", "resnet20", "--data", "digits", "--out", out)
    plain_folder.chmod(0o000)
    assert "Permission denied" in cli.fails("train", "--model", "resnet20", "--data", "digits", "--out", out)
    plain_folder.chmod(0o700)

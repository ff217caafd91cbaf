"""``compress`` with methods that train: what a run leaves, how it stops and goes on, what it refuses."""

import json
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from command_line import Cli
from examples import first
from safetensors.torch import load_file

from clusterprune.cli.watching import Watch
from clusterprune.errors import TrainingError
from clusterprune.train import Progress

ICP = "icp --keep-macs 0.5 --steps 2 --set epochs_between=1 --set samples=64 --set min_samples=2 --epochs 2"
ACP = "acp --keep-macs 0.6 --set fitness=merge --set samples=64 --set min_samples=2 --set particles=2 --set cycles=1"


def arguments(tiny: str, trained: Path, more: str, out: str = "run") -> list[object]:
    return [
        "compress", "--model", tiny, "--weights", trained, "--data", "digits", "--out", out,
        "--method", *shlex.split(more),
    ]  # fmt: skip


def result_of(folder: str) -> dict:
    return json.loads((Path(folder) / "result.json").read_text())


def compact_of(folder: str) -> dict:
    (file,) = (Path(folder) / "compact").glob("*.safetensors")
    return load_file(file)


def assert_same(one: str, other: str) -> None:
    first, second = compact_of(one), compact_of(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.equal(second[name]), name


def test_icp_leaves_its_files_and_a_table(trust: tuple[str, str], tiny: str, trained: Path, cli: Cli):
    done = cli(*arguments(tiny, trained, f"{ICP} --augment none"))

    assert done.exit_code == 0, done.output
    written = result_of("run")
    assert 0.3 < written["compressed"]["macs"] / written["baseline"]["macs"] <= 0.5
    assert written["baseline"]["accuracy"] > 90
    assert written["compressed"]["accuracy"] > 50
    assert written["compressed"]["images"] == 359
    assert [step["epochs"] for step in written["record"]["steps"]] == [0, 1, 2]
    assert written["settings"]["keep_macs"] == 0.5
    assert {"compress", "time both"} <= written["seconds"].keys()
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (config["method"], config["epochs"], config["augment"]) == ("icp", 2, "none")
    assert config["set"] == ["epochs_between=1", "samples=64", "min_samples=2"]
    assert {path.name for path in Path("run").iterdir()} == {
        "asked.json", "config.yaml", "log.jsonl", "result.json", "compact", "step-1", "step-2", "cut-record",
        "details.json", "report.html",
    }  # fmt: skip
    assert "compressed by icp in" in done.stdout
    assert "% kept" in done.stdout
    assert "epoch 2/2" in done.stderr
    assert "starting from the beginning" not in done.stderr

    # The folder is enough for other commands.
    again = cli("evaluate", "run", "--data", "digits", "--json", *trust)
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["accuracy"] == written["compressed"]["accuracy"]


@pytest.mark.parametrize(
    ("more", "epochs"),
    [
        ("cp --keep-macs 0.6 --epochs 2", 2),
        ("sfp --keep-macs 0.6 --epochs 2", 2),
        ("oneshot --keep-macs 0.6 --epochs 1", 1),
        ("taylor --keep-params 0.6 --images 100 --set merging=refit --epochs 1", 1),
        ("l1 --keep-params 0.7", None),
    ],
)
def test_the_other_methods_too(tiny: str, trained: Path, cli: Cli, more: str, epochs: int | None):
    done = cli(*arguments(tiny, trained, more))

    assert done.exit_code == 0, done.output
    written = result_of("run")
    assert written["method"] == more.partition(" ")[0]
    assert written["compressed"]["params"] < written["baseline"]["params"]
    assert written["record"].get("epochs") == epochs
    assert Path("run/plan").exists() == (written["method"] not in ("cp", "sfp"))


def test_acp_keeps_its_search_in_the_folder(tiny: str, trained: Path, cli: Cli):
    done = cli(*arguments(tiny, trained, f"{ACP} --epochs 1"))

    assert done.exit_code == 0, done.output
    record = result_of("run")["record"]
    assert record["evaluations"] == 4
    assert record["best"].keys() == record["start"].keys() == {"0", "3"}
    # As many multiply-adds as the original would take in one epoch.
    assert record["epochs"] == 2
    assert Path("run/search.db").exists()


def test_the_config_repeats_the_run(trust: tuple[str, str], tiny: str, trained: Path, cli: Cli):
    assert cli(*arguments(tiny, trained, "cp --keep-macs 0.6 --epochs 2")).exit_code == 0
    again = cli("compress", "--config", "run/config.yaml", "--out", "again", *trust)

    assert again.exit_code == 0, again.output
    assert_same("run", "again")


@pytest.mark.parametrize(
    ("more", "phase"), first(1, [("l1 --keep-macs 0.5", "train"), (ICP, "training after cut 2 of 2")])
)
def test_control_c_says_how_to_go_on(
    tiny: str, trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, more: str, phase: str
):
    more = f"{more} --epochs 3 --lr 0.02"
    assert cli(*arguments(tiny, trained, more, out="whole")).exit_code == 0

    class Impatient(Watch):
        def __call__(self, phase_now: str, event: Progress) -> None:
            super().__call__(phase_now, event)
            if phase_now == phase and event.record is not None and event.epoch == 2:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("clusterprune.cli.compress.Watch", Impatient)
        stopped = cli(*arguments(tiny, trained, more, out="stopped"))
    assert stopped.exit_code == 130
    said = " ".join(stopped.stderr.split())
    assert f"Stopped. 2 of 3 epochs of this phase ({phase}) are done and on disk." in said
    assert not Path("stopped/result.json").exists()

    go_on = shlex.split(said.rpartition("Go on with:")[2])
    done = cli(*go_on[1:])
    assert done.exit_code == 0, done.output
    assert "resumed from" in done.stderr
    assert_same("whole", "stopped")
    assert result_of("stopped")["resumed"] is True
    events = [json.loads(line)["event"] for line in Path("stopped/log.jsonl").read_text().splitlines()]
    assert events.index("stopped") < events.index("phase", events.index("stopped"))

    done = cli(*go_on[1:])
    assert done.exit_code == 0
    assert "stopped was finished before" in done.stdout
    assert "lr=0.5 (the run has 0.02)" in cli.fails(*go_on[1:], "--lr", 0.5)


@pytest.mark.parametrize("more", first(1, ["cp --set scratch=true --keep-macs 0.6 --epochs 1", f"{ACP} --epochs 1"]))
def test_a_compact_network_is_compressed_further(trust: tuple[str, str], tiny: str, trained: Path, cli: Cli, more: str):
    assert cli(*arguments(tiny, trained, "l1 --keep-macs 0.7", out="first")).exit_code == 0
    done = cli(*arguments(tiny, Path("first"), more, out="second"))

    assert done.exit_code == 0, done.output
    first, second = result_of("first"), result_of("second")
    assert second["baseline"]["macs"] == first["compressed"]["macs"]
    # New weights are those of the compact network, not of the one that it came from.
    assert second["compressed"]["macs"] <= 0.6 * first["compressed"]["macs"]
    measured = cli("evaluate", "second", "--data", "digits", "--json", *trust)
    assert json.loads(measured.stdout)["accuracy"] == second["compressed"]["accuracy"]


def wait_for_epochs(process: subprocess.Popen[str], log: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= count:
            return
        time.sleep(0.01)
    pytest.fail(f"no {count} epochs came: {process.communicate()}")


@pytest.mark.slow
def test_killed_and_interrupted_runs_resume_to_the_same_model(
    trust: tuple[str, str], tiny: str, trained: Path, cli: Cli
):
    more = "oneshot --keep-macs 0.5 --epochs 120 --lr 0.02"  # long enough to be stopped twice
    assert cli(*arguments(tiny, trained, more, out="whole")).exit_code == 0
    log = Path("stopped/training/log.jsonl")

    killed = cli.start(*arguments(tiny, trained, more, out="stopped"))
    wait_for_epochs(killed, log, 2)
    killed.kill()
    killed.communicate()
    assert not Path("stopped/result.json").exists()

    interrupted = cli.start("compress", "--out", "stopped", "--resume", *trust)
    wait_for_epochs(interrupted, log, 4)
    interrupted.send_signal(signal.SIGINT)
    _, said = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130, said
    assert "Traceback" not in said
    assert "of 120 epochs of this phase (train) are done and on disk" in said

    go_on = shlex.split(said.rpartition("Go on with:")[2])
    result = cli(*go_on[1:])
    assert result.exit_code == 0, result.output
    assert "resumed from" in result.stderr
    assert_same("whole", "stopped")
    assert result_of("stopped")["compressed"]["accuracy"] == result_of("whole")["compressed"]["accuracy"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("magic --keep-macs 0.5", "method='magic' is not known; choose from oneshot, icp"),
        ("icp", "give either eps or keep_macs"),
        ("icp --eps 0.1 --keep-macs 0.5", "give either eps or keep_macs"),
        ("icp --eps 0.1 --set speed=3", "speed=3 is no setting of method='icp', which has alpha, beta, carry_momentum"),
        ("icp --eps 0.1 --set steps", "set='steps' is not of the form NAME=VALUE"),
        ("icp --eps 0.1 --steps 2 --set steps=3", "steps is given twice, as 2 and in --set steps=3"),
        ("icp --eps 0.1 --set stages=[a", "set='stages=[a' has a value that is not YAML"),
        ("icp --eps 0.1 --schedule linear", "schedule: input should be 'cosine'"),
        ("cp --eps 0.1", "eps=0.1 is no setting of method='cp'"),
        ("cp --keep-macs 0.5 --round-to 8", "round_to=8 is no setting of method='cp'"),
        ("acp --eps 0.1 --validation 0", "method='acp' compares structures on held-out images"),
        ("l1 --keep-macs 0.5 --lr 0.1", "lr=0.1 is of a training, but method='l1' does not train by itself"),
        ("oneshot --keep-macs 0.5 --lr 0.1", "lr=0.1 is of a training, but method='oneshot' does not train"),
        ("oneshot --keep-macs 0.5 --eps 0.1", "eps=0.1 is no setting of method='oneshot'"),
        ("oneshot --epochs 3", "give at least one of keep_macs, keep_params, keep_latency"),
        ("icp --eps 0.1 --data-free", "data_free=True is no setting of method='icp'"),
        ("icp --eps 0.1 --calibration x", "--calibration is for cuts that look at images before any training"),
        ("cp --keep-macs 0.0001", "keep_macs=0.0001 cannot be reached"),
    ],
)
def test_what_makes_no_sense_is_refused(tiny: str, trained: Path, cli: Cli, more: str, expected: str):
    assert expected in cli.fails(*arguments(tiny, trained, more))
    assert list(Path().iterdir()) == []


def test_methods_that_train_need_data_and_weights(tiny: str, cli: Cli):
    common = ("--method", "icp", "--eps", 0.1, "--out", "run")
    assert "data is missing: method='icp' trains on images" in cli.fails("compress", "--model", tiny, *common)
    named = cli.fails("compress", "--model", "resnet20", "--data", "digits", *common)
    assert "weights is missing: model='resnet20'" in named


def test_a_run_that_never_began_leaves_no_folder(tiny: str, trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise TrainingError("no training today")

    monkeypatch.setattr("clusterprune.train.fit", refuse)
    assert "no training today" in cli.fails(*arguments(tiny, trained, "cp --keep-macs 0.5"))
    assert list(Path().iterdir()) == []

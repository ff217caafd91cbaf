"""Runs end with a page, which a browser shows as it should; and the pages, figures and tables of `report`."""

import json
from pathlib import Path

import pytest
from command_line import Cli

from clusterprune.report.browser import Page, installed, page

SHOWN = {
    "oneshot": {"headline", "checks", "widths", "classes", "loss-curves", "merged-channels", "frozen", "command"},
    "icp": {"headline", "checks", "widths", "classes", "training", "frozen", "command"},
    "acp": {"headline", "checks", "widths", "classes", "training", "search", "frozen", "command"},
    "cp": {"headline", "checks", "widths", "classes", "training", "frozen", "command"},
}
"""What the page of a run by each method has at least."""
TRAINED = ("--epochs", 2, "--lr", 0.01, "--augment", "none")
OPTIONS = {
    "oneshot": ("--images", 64),
    "icp": (*TRAINED, "--set", "steps=2", "--set", "epochs_between=1", "--set", "samples=64", "--set", "layers=all"),
    "acp": (
        *TRAINED, "--set", "preset=ours", "--set", "samples=64", "--set", "particles=2", "--set", "cycles=1",
        "--set", "equal_macs=false",
    ),
    "cp": TRAINED,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(shared: Path, tiny: str, trained: Path) -> dict[str, Path]:
    """Return the folder of a finished run by each method."""
    found = {}
    for method, options in OPTIONS.items():
        out = found[method] = shared / f"report-{method}"
        budget = ("--keep-macs", 0.6)
        given = ("--model", tiny, "--weights", trained, "--data", "digits", "--method", method, *budget, "--out", out)
        done = Cli(shared)("compress", *given, *options)
        assert done.exit_code == 0, done.output
    return found


@pytest.fixture(scope="module")
def browser() -> str:
    """Return a browser; tests that use one are skipped where there is none."""
    found = installed()
    if found is None:
        pytest.skip("there is no Chromium here; apt-get install chromium has one")
    return found


def drawn(opened: Page) -> int:
    """Wait until the charts are drawn; return how many there are."""
    script = "new Promise(done => { const look = () => document.documentElement.dataset.drawn ? done(Number("
    script += "document.documentElement.dataset.drawn)) : setTimeout(look, 20); look(); })"
    return opened.evaluate(script)


@pytest.mark.parametrize("method", OPTIONS)
def test_the_page_of_a_run_is_drawn_without_a_complaint_or_a_request_and_says_in_words_what_it_shows(
    runs: dict[str, Path], browser: str, method: str
):
    file = runs[method] / "report.html"
    with page(browser) as opened:
        opened.open(file)
        assert drawn(opened) == opened.evaluate("document.querySelectorAll('.chart').length")
        ids = opened.evaluate("[...document.querySelectorAll('main > section')].map(one => one.id)")
        assert set(ids) >= SHOWN[method], ids
        for chart in opened.evaluate("[...document.querySelectorAll('.chart')].map(one => one.id)"):
            place = f"document.getElementById('{chart}')"
            assert opened.evaluate(f"{place}.querySelectorAll('svg .trace, svg .layer-above image').length"), chart
            assert len(opened.evaluate(f"{place}.getAttribute('aria-label')")) > 40
            assert opened.evaluate(f"{place}.getAttribute('role')") == "img"
        # Whoever has no mouse gets to everything, in the order of the page: links, buttons, tables, numbers.
        focusable = "[...document.querySelectorAll('a[href], button:not([hidden]), summary, [tabindex=\"0\"]')]"
        assert opened.evaluate(f"{focusable}.every(one => (one.textContent + one.getAttribute('aria-label')).trim())")
        assert opened.evaluate("document.querySelectorAll('table').length") == opened.evaluate(
            "document.querySelectorAll('thead th[scope=col]:first-child').length"
        )
        for width in (1100, 380):
            for dark in (False, True):
                assert len(opened.look(width, 900, dark=dark)) > 10_000
                assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        assert opened.complaints == []
        assert [one for one in opened.requests if not one.startswith("data:")] == [file.resolve().as_uri()]


def test_single_figures_and_tables_are_written(runs: dict[str, Path], browser: str, cli: Cli):
    more = ("--only", "widths,classes,checks", "--svg", "figures", "--png", "figures", "--csv", "tables")
    done = cli("report", runs["oneshot"], "--out", "page.html", *more)
    assert done.exit_code == 0, done.output
    written = {f"{name}.{kind}" for name in ("widths", "classes") for kind in ("svg", "png")}
    assert {file.name for file in Path("figures").iterdir()} == written
    assert Path("figures/widths.svg").read_text().startswith("<svg")
    assert Path("figures/widths.png").read_bytes().startswith(b"\x89PNG")
    assert Path("tables/widths.csv").read_text().startswith("layer,original,compact,kept\n")


def test_several_runs_are_compared_on_one_page(runs: dict[str, Path], cli: Cli):
    done = cli("report", *runs.values())
    assert done.exit_code == 0, done.output
    text = Path("report.html").read_text()
    for name in ("over-macs", "over-latency", "runs"):
        assert f'<section id="{name}"' in text
    assert all(folder.name in text for folder in runs.values())


def test_what_a_run_notes_for_its_page_is_what_was_measured(runs: dict[str, Path]):
    details = json.loads((runs["oneshot"] / "details.json").read_text())
    result = json.loads((runs["oneshot"] / "result.json").read_text())
    plan = json.loads((runs["oneshot"] / "plan" / "plan.json").read_text())
    classes = details["classes"]
    for name in ("baseline", "compressed"):
        accuracy = 100 * sum(classes["hits"][name]) / sum(classes["images"])
        assert accuracy == pytest.approx(result[name]["accuracy"], abs=1e-3)
    kept = {merge["group"]: len(merge["kept"]) for merge in plan["merges"]}
    assert {layer: pair[1] for layer, pair in details["widths"].items() if layer in kept} == kept
    assert set(plan["notes"]["curves"]) == {"0", "3"}


def test_a_page_that_cannot_be_written_does_not_fail_its_run(
    tiny: str, trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: object) -> str:
        raise RuntimeError("no ink")

    monkeypatch.setattr("clusterprune.report.page.render", fails)
    budget = ("--keep-macs", 0.7, "--images", 32, "--no-evaluate")
    done = cli("compress", "--model", tiny, "--weights", trained, "--data", "digits", *budget, "--out", "run")
    assert done.exit_code == 0, done.output
    said = " ".join(done.stderr.split())
    assert "report.html was not written (no ink). 'clusterprune report run' tries again." in said
    assert not Path("run/report.html").exists()


def test_what_is_no_run_or_no_display_is_refused(runs: dict[str, Path], cli: Cli):
    assert "is no folder of a run" in cli.fails("report", "nowhere")
    assert "only='width' is no display" in cli.fails("report", runs["oneshot"], "--only", "width")

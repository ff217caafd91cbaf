import io

import pytest
from rich.console import Console

from clusterprune.cli import progress
from clusterprune.cli.console import duration, milliseconds, size
from clusterprune.cli.progress import Display
from clusterprune.tables import count


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_pipe_gets_one_line_per_phase_and_few_in_between(clock: list[float]):
    out = io.StringIO()
    with Display(Console(file=out, width=100)) as display:
        display("trace", 0, 0)
        clock[0] = 2
        display("trace", 1, 1)
        for done in range(101):
            clock[0] = 2 + done / 4
            display("fit", done, 100)
        display("fit", 1, 1)
        display("apply", 0, 0)

    assert out.getvalue().splitlines() == [
        "trace: 2.0 s",
        "fit: 41 % after 10 s, about 15 s left",
        "fit: 82 % after 20 s, about 4.5 s left",
        "fit: 25 s",
        "apply: 0.0 s",
    ]


def test_what_was_done_before_a_resume_does_not_count_as_speed(clock: list[float]):
    out = io.StringIO()
    with Display(Console(file=out, width=100)) as display:
        display("train", 500, 1000)
        clock[0] = 20
        display("train", 600, 1000)
        display("train", 1000, 1000)

    assert out.getvalue().splitlines() == ["train: 60 % after 20 s, about 1 min 20 s left", "train: 20 s"]


def test_the_next_phase_ends_the_one_before(clock: list[float]):
    out = io.StringIO()
    with Display(Console(file=out, width=100)) as display:
        display("one", 1, 3)
        clock[0] = 1
        display("two", 0, 3)
        display.line("by the way")

    assert out.getvalue().splitlines() == ["one: 1.0 s", "by the way", "two: 0.0 s"]


def test_a_phase_that_is_cut_short_is_not_called_done():
    out = io.StringIO()

    def interrupted() -> None:
        with Display(Console(file=out, width=100)) as display:
            display("fit", 1, 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert out.getvalue() == ""


def test_a_terminal_gets_bars_with_the_time_left():
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system=None)
    with Display(console) as display:
        display("trace", 0, 0)
        display("fit", 1, 4, "layer1.conv")
        display("fit", 2, 4, "layer2.conv")
        display.line("a note")

    shown = out.getvalue()
    assert "trace" in shown
    assert "a note" in shown
    assert "━" * 28 in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (8.44, "8.4 s"),
        (9.99, "10 s"),
        (59.4, "59 s"),
        (59.7, "60 s"),
        (125, "2 min 05 s"),
        (4800, "1 h 20 min"),
    ],
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1234, "1.23 k"), (125_490_000, "125.49 M"), (4.1e9, "4.10 G")]
)
def test_counts(value: float, text: str):
    assert count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(8.0, "8.00 ms"), (22.34, "22.3 ms"), (0.5, "0.500 ms"), (99.97, "100 ms"), (1634.2, "1634 ms")],
)
def test_times_show_three_digits(value: float, text: str):
    assert milliseconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(11_000_000, "11.0 MB"), (1_634_000_000, "1634 MB"), (512, "0.512 kB")])
def test_sizes_show_three_digits(value: int, text: str):
    assert size(value) == text

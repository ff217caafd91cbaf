"""What is worth knowing of a run beyond its numbers: checks with a code, a state, and what to do about it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from clusterprune.report._base import Display, Rows, single
from clusterprune.report.classes import Classes, spread
from clusterprune.report.headline import metric_name
from clusterprune.report.run import Run, worth
from clusterprune.report.training import Training
from clusterprune.tables import few, plural

State = Literal["good", "note", "warning"]


@dataclass(frozen=True)
class Check:
    """What one check has found.

    Attributes
    ----------
    state
        "good"; "note" for what one should know; "warning" for what one should do something about.
    finding
        What was found.
    advice
        What to do about it; empty where nothing needs to be done.
    """

    state: State
    finding: str
    advice: str = ""


def _budget(run: Run) -> Check | None:
    """C01: the budget is met."""
    asked = {name: run.config.get(f"keep_{name}") for name in ("macs", "params", "latency")}
    found = []
    for name, key in (("macs", "macs"), ("params", "params"), ("latency", "latency_ms")):
        share = asked[name]
        if isinstance(share, float) and 0 < share <= 1:
            found.append((name, share, _left(run, key)))
    if not found:
        return None
    over = [one for one in found if one[2] > one[1] * 1.01]
    under = [one for one in found if one[2] < one[1] * 0.97]
    text = "; ".join(f"{left:.1%} of the {name} are left, {share:.1%} were asked for" for name, share, left in found)
    if over:
        name = over[0][0]
        advice = "Ask for a little less: time is measured anew after the cut, and varies." if name == "latency" else (
            f"Ask for a smaller --keep-{name}, or let more layers be cut: see what is frozen below."
        )  # fmt: skip
        return Check("warning", f"The budget is missed: {text}.", advice)
    if under and len(found) == 1:
        return Check(
            "note", f"More is gone than was asked for: {text}.", "A smaller round_to or more groups cut finer."
        )
    return Check("good", f"The budget is met: {text}.")


def _worth(run: Run) -> Check | None:
    """C02: what the cut has cost."""
    pair = _worths(run)
    if pair is None:
        return None
    name, before, after = pair
    images = run.networks["compact"].get("images", 0)
    hits = [round(value * images / 100) for value in (before, after)]
    chance = spread(hits[0], hits[1], images) if max(hits) <= images else 0.0
    lost = before - after
    text = f"{metric_name(name)} goes from {before:.2f} to {after:.2f} on {images:,} test images"
    if lost <= chance:
        return Check("good", f"{text}: no more than chance explains (up to {chance:.2f}).")
    advice = (
        "Train after the cut (--epochs 40), or without labels (--distil 120)."
        if not run.trainings and "distil" not in run.notes
        else "Train for longer (--epochs), keep more, or compare methods: clusterprune compare."
    )
    return Check("warning" if lost > 1 else "note", f"{text}.", advice)


def _images(run: Run) -> Check | None:
    """C03: there are enough test images to tell."""
    compact = run.networks.get("compact") or run.networks.get("trained")
    if compact is None:
        return None
    images = compact.get("images", 0)
    if not images:
        return Check(
            "warning", "Nothing was tested, so that nobody knows what the cut has cost.",
            "Give --data with a test split, or measure later: clusterprune evaluate.",
        )  # fmt: skip
    value = worth(compact)
    hits = round((value[1] if value else 50) * images / 100)
    error = spread(hits, hits, images)
    if images < 1000:
        finding = f"{images:,} test images tell differences of about {error:.1f} points and more."
        return Check("note", finding, "Test on more images before you choose by a smaller difference.")
    return Check("good", f"{images:,} test images tell differences of about {error:.1f} points.")


def _frozen(run: Run) -> Check | None:
    """C04: little is frozen."""
    if "frozen" not in run.cut:
        return None
    cut = sum(run.cut.get("groups", {}).values())
    stays = sum(one["channels"] for one in run.cut["frozen"])
    share = stays / max(1, cut + stays)
    text = f"{stays:,} of {cut + stays:,} channels are frozen"
    if share <= 0.5:
        return Check("good", f"{text}.")
    return Check(
        "note", f"{text}: {share:.0%}.",
        "See below what freezes them; operations without a rule can be given one (register_op), outputs must stay.",
    )  # fmt: skip


def _narrow(run: Run) -> Check | None:
    """C05: no layer is a bottleneck."""
    pairs = {name: pair for name, pair in run.details.get("widths", {}).items() if len(pair) == 2 and all(pair)}
    if not pairs:
        return None
    thin = [f"{name} ({after} of {before})" for name, (before, after) in pairs.items() if after < 0.1 * before]
    if not thin:
        return Check("good", "Every layer keeps a tenth of its channels or more.")
    return Check(
        "note", f"Less than a tenth is left of {few(thin, 3)}.",
        "What passes through them is little: if the network got worse, try --set min_width=8 (one-shot), or keep more.",
    )  # fmt: skip


def _classes(run: Run) -> Check | None:
    """C06: no class pays for the others."""
    found = Classes.of([run])
    if found is None or "change, points" not in found.rows[0]:
        return None
    rows = found.rows
    mean = sum(row["change, points"] for row in rows) / len(rows)
    paid = [row for row in rows if row["change, points"] < mean - max(5.0, row["two standard errors"])]
    if not paid:
        return Check("good", f"No class lost much more than the others, {mean:+.2f} points on average.")
    named = [f"{row['class']} ({row['change, points']:+.1f})" for row in paid]
    who = "One class" if len(paid) == 1 else f"{len(paid)} classes"
    return Check(
        "warning", f"{who} lost more than the others: {few(named)}.",
        "Look whether these matter to you; train after the cut on images in which they are not rare.",
    )  # fmt: skip


def _time(run: Run) -> Check | None:
    """C07: time falls with the multiply-adds."""
    if "compact" not in run.networks or "original" not in run.networks:
        return None
    macs, time = _left(run, "macs"), _left(run, "latency_ms")
    batch = run.networks["compact"].get("latency_batch", 1)
    text = f"MACs are at {macs:.0%}, time for {plural(batch, 'image')} at {time:.0%}"
    if time <= macs + 0.1 or time <= 1.15 * macs:
        return Check("good", f"Time falls with the MACs: {text}.")
    remedies = ["--set round_to=8 (widths that processors like)", "--keep-latency, which asks the machine itself"]
    if batch == 1:
        remedies.append("--latency-batch 64, if you run batches: one small image takes longer to start than to compute")
    advice = f"Try {'; or '.join(remedies)}."
    if time > 0.95:
        return Check(
            "warning", f"MACs fell, time did not: {text}. Its layers wait for memory, or for their start.", advice
        )
    return Check("note", f"Time fell less than the MACs: {text}.", advice)


def _noise(run: Run) -> Check | None:
    """C08: times can be relied on."""
    found = {name: one for name, one in run.networks.items() if "latency_iqr_ms" in one}
    if not found:
        return None
    noise = max(one["latency_iqr_ms"] / one["latency_ms"] for one in found.values())
    if noise <= 0.1:
        return Check("good", f"Times vary by {noise:.0%} (interquartile range).")
    return Check(
        "note", f"Times vary by {noise:.0%} (interquartile range): the machine was busy.",
        "Take them again when nothing else runs: clusterprune evaluate.",
    )  # fmt: skip


def _rows_seen(run: Run) -> Check | None:
    """C09: enough images to judge channels by."""
    if "few_rows" not in run.notes:
        return None
    wanted = run.notes["few_rows"]
    if not wanted:
        return Check("good", "There were enough images to judge every group of channels by.")
    names = sorted(wanted)
    return Check(
        "note", f"Too few images to judge {few(names)} by; they were cut with care for that.",
        f"Give more: --images {max(wanted.values())}.",
    )  # fmt: skip


def _learnt(run: Run) -> Check | None:
    """C10: the training was long enough, and not too long."""
    found = Training.of([run])
    if found is None:
        return None
    last = found.rows[-1]["training"]
    rows = [row for row in found.rows if row["training"] == last]
    held_out = next((name for name in rows[-1] if name.startswith("validation_")), None)
    if held_out is not None:
        best = max(row.get(held_out) or 0.0 for row in rows)
        if best - rows[-1][held_out] > 1:
            return Check(
                "note", f"On held-out images the last epoch ({rows[-1][held_out]:.2f}) is worse than the best "
                f"({best:.2f}).", "Train for fewer epochs, or with a schedule that ends at 0: --schedule cosine.",
            )  # fmt: skip
    tenth = max(1, len(rows) // 10)
    if len(rows) >= 4 and rows[-1]["loss"] < 0.9 * rows[-1 - tenth]["loss"] and rows[-1]["loss"] > 0.05:
        return Check("note", "The loss was still falling when the training ended.", "Train for longer: --epochs.")
    return Check("good", f"The last training, of {plural(len(rows), 'epoch')}, went to its end.")


def _searched(run: Run) -> Check | None:
    """C11: the search had come to rest."""
    values = [value for value in run.notes.get("history", []) if value is not None]
    if not values:
        return None
    at = values.index(max(values)) + 1
    if at > 0.8 * len(values):
        return Check(
            "note", f"The best structure came late in the search: {at} of {len(values)}.",
            "It may find better ones in more cycles: --set cycles=10.",
        )  # fmt: skip
    return Check("good", f"The best structure was number {at} of {len(values)}; nothing later was better.")


CHECKS: tuple[Callable[[Run], Check | None], ...] = (
    _budget, _worth, _images, _frozen, _narrow, _classes, _time, _noise, _rows_seen, _learnt, _searched,
)  # fmt: skip
"""In the order of their codes, which are theirs for good: a new one comes last."""


class Checks(Display):
    """What was checked of a run, what was found, and what to do about it."""

    name: ClassVar[str] = "checks"
    title: ClassVar[str] = "Checks"
    folded: ClassVar[bool] = False

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Self | None:
        """Ask every check what it has to say of the run's files."""
        run = single(runs)
        if run is None:
            return None
        rows: Rows = []
        for number, check in enumerate(CHECKS, 1):
            found = _asked(check, run)
            if found is not None:
                rows.append(
                    {"code": f"C{number:02d}", "state": found.state, "finding": found.finding, "advice": found.advice}
                )
        if not rows:
            return None
        bad = [row["code"] for row in rows if row["state"] == "warning"]
        noted = [row["code"] for row in rows if row["state"] == "note"]
        told = [
            f"{plural(len(some), name)} ({', '.join(some)})"
            for some, name in ((bad, "warning"), (noted, "note"))
            if some
        ]
        return cls(rows, f"{plural(len(rows), 'check')}: {' and '.join(told) or 'all are good'}.")


def _asked(check: Callable[[Run], Check | None], run: Run) -> Check | None:
    """Return what a check says; files of another release, or of somebody else, may hold anything."""
    try:
        return check(run)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None


def _left(run: Run, key: str) -> float:
    """Return the share that is left of a quantity."""
    return run.networks["compact"][key] / run.networks["original"][key]


def _worths(run: Run) -> tuple[str, float, float] | None:
    """Return what decides about both networks, and its name."""
    found: list[Any] = [worth(run.networks.get(name, {})) for name in ("original", "compact")]
    return None if None in found else (found[0][0], found[0][1], found[1][1])

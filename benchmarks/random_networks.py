"""The laws of surgery on random networks wilder than anybody would write.

Claim under test: in float64, no network gives a wrong answer. Every one is either cut (and then equals the masked
original in evaluation, at another batch and image size, in training with all its parameters drawn anew, and after
being saved and loaded), has nothing to cut, or is refused with one of the library's own errors.

    python benchmarks/random_networks.py --count 2000

The networks are those of tests/wild: blocks in blocks, modules used several times, odd groups, computed weights,
attention, recurrent layers, one to three spatial dimensions, several inputs and outputs. Network number N is the same
in every run. Every finished one is in results/random_networks.jsonl at once, and the same command goes on where it was
stopped; results/random_networks.json is the summary, with a paste-able recipe of every failure (`--shrink` makes each
as small as it can). `--again` repeats those alone that failed.

A network that takes longer than `--seconds` counts as a failure.
"""

import argparse
import json
import math
import multiprocessing
import platform
import shlex
import signal
import sys
import time
import warnings
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "wild")]

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402
from rich.table import Table  # noqa: E402

from clusterprune.files.writing import write_json  # noqa: E402

RESULTS = HERE / "results" / "random_networks.json"


def measure(task: tuple[int, int, str]) -> dict[str, Any]:
    """Check one network and return what came of it as plain data."""
    from wild_laws import Result, check, general
    from wild_networks import draw

    seed, seconds, device = task
    recipe = draw(seed)
    start = time.process_time()
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = check(recipe, device)
    except _Late:
        result = Result(recipe, "crash", f"not done after {seconds} seconds")
    finally:
        signal.alarm(0)
    return {
        "seed": seed,
        "outcome": result.outcome,
        "kind": result.kind,
        "detail": result.detail[:400],
        "notes": result.notes,
        "blocks": sorted(set(recipe.blocks())),
        "dims": recipe.dims,
        "stem": recipe.stem,
        "head": recipe.head,
        "frozen": sorted({general(reason) for reason in result.frozen.values()}),
        "seconds": round(time.process_time() - start, 3),
        **({"recipe": repr(recipe)} if result.failed else {}),
    }


class _Late(BaseException):
    """Passes through whatever catches exceptions."""


def _late(*_: Any) -> None:
    raise _Late


def _start() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def summary(records: list[dict[str, Any]], device: str) -> dict[str, Any]:
    """Count what came of all networks."""
    blocks: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for block in [*record["blocks"], f"stem {record['stem']}", f"head {record['head']}", f"{record['dims']}-D"]:
            blocks[block][record["outcome"]] += 1
    return {
        "benchmark": "random_networks",
        "command": shlex.join(["python", "benchmarks/random_networks.py", *sys.argv[1:]]),
        "versions": {name: version(name) for name in ("clusterprune", "torch")} | {"python": platform.python_version()},
        "device": device,
        "networks": len(records),
        "outcomes": dict(Counter(record["outcome"] for record in records).most_common()),
        "notes": dict(Counter(note for record in records for note in record["notes"]).most_common()),
        "refusals": dict(Counter(r["kind"] for r in records if r["outcome"] == "refused").most_common()),
        "frozen": dict(Counter(reason for r in records for reason in r["frozen"]).most_common(60)),
        "cpu_seconds": round(sum(record["seconds"] for record in records), 1),
        "blocks": {name: dict(counts) for name, counts in sorted(blocks.items())},
        "failures": [r for r in records if "recipe" in r],
    }


def shrink_failures(records: list[dict[str, Any]], tries: int) -> None:
    """Make one failure of each kind as small as it can be, and note it beside the others of its kind."""
    from wild_laws import check, minimal
    from wild_networks import draw

    found: dict[str, str] = {}
    for record in records:
        if "recipe" in record and "minimal" not in record:
            if record["kind"] not in found:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    result = check(draw(record["seed"]))
                    if result.failed:
                        found[record["kind"]] = repr(minimal(result, tries))
            record["minimal"] = found.get(record["kind"], "it does not fail twice")


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="how many networks")
    parser.add_argument("--seed", type=int, default=0, help="number of the first")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seconds", type=int, default=120, help="longest time for one network")
    parser.add_argument("--device", default="cpu", help="where the networks run")
    parser.add_argument("--within", type=float, default=math.inf, help="stop after so many seconds in all")
    parser.add_argument("--again", action="store_true", help="repeat those that failed")
    parser.add_argument("--shrink", type=int, default=0, metavar="TRIES", help="make failures smaller")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    lines = options.out.with_suffix(".jsonl")
    lines.parent.mkdir(parents=True, exist_ok=True)
    known = {r["seed"]: r for r in map(json.loads, lines.read_text().splitlines())} if lines.exists() else {}
    wanted = range(options.seed, options.seed + options.count)
    tasks = [
        (seed, options.seconds, options.device)
        for seed in wanted
        if seed not in known or (options.again and known[seed]["outcome"] in ("wrong", "crash"))
    ]
    console, begun = Console(), time.monotonic()
    context = multiprocessing.get_context("spawn")
    with lines.open("a") as file, context.Pool(options.jobs, _start, maxtasksperchild=250) as pool:
        for record in track(pool.imap_unordered(measure, tasks), "networks", len(tasks), console=console):
            known[record["seed"]] = record
            file.write(json.dumps(record) + "\n")
            file.flush()
            if time.monotonic() - begun > options.within:
                break
    records = [known[seed] for seed in wanted if seed in known]
    shrink_failures(records, options.shrink) if options.shrink else None
    result = summary(records, options.device)
    write_json(options.out, result)
    table = Table("outcome", "networks")
    for name, count in result["outcomes"].items():
        table.add_row(name, str(count))
    console.print(table)
    for kind, count in Counter(r["kind"] for r in result["failures"]).most_common():
        console.print(f"{count:>5}  {kind}", markup=False)
    sys.exit(bool(result["failures"]))


if __name__ == "__main__":
    main()

"""Run every public call and every command small on a GPU, and compare with the CPU: ``make gpu``.

    python benchmarks/gpu_check.py --out runs/gpu.json

It needs nothing but PyTorch with CUDA and the installed package. Every part (``gpu_parts.py``) runs in a process of
its own, several at a time, each bounded by a timeout; the table goes on whatever happens to one of them. The exit
status is 1 if anything failed. ``--device cpu`` runs the same against the CPU itself, where there is no GPU.
"""

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ALONE = ("latency",)
"""Begun first, and by themselves: what others do at the same time would be measured too."""
LONGEST_FIRST = (
    "commands", "worker", "fit", "acp", "icp", "cp_and_sfp", "plan", "prune_by", "oneshot", "oneshot_wide", "law_2",
    "resume", "measure", "disk", "trace",
)  # fmt: skip
SECONDS = {"cuda": 230.0}
"""That the whole may take on a device; elsewhere :data:`PATIENCE`."""
PATIENCE = 3600.0
SHOWN = 25
"""Last lines of a part that failed."""


@dataclass
class Ran:
    """How a part went: its rows, and what it printed last if it failed."""

    part: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    failure: str = ""

    @property
    def fine(self) -> bool:
        """Tell whether it came to its end with every row in order."""
        return not self.failure and bool(self.rows) and all(row["fine"] for row in self.rows)


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    arguments = _arguments()
    if arguments.part is not None:
        return _run_here(arguments)
    import torch
    from gpu_parts import PARTS

    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no CUDA device here; --device cpu runs the same against the CPU", file=sys.stderr)
        return 2
    parts = [part for part in (*ALONE, *LONGEST_FIRST) if part in (arguments.parts or PARTS)]
    if unknown := set(arguments.parts or ()) - PARTS.keys():
        print(f"--parts: there is no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    cores = len(os.sched_getaffinity(0))
    jobs = arguments.jobs or max(1, cores // 2)
    began = time.monotonic()
    end = began + (arguments.timeout or SECONDS.get(device.type, PATIENCE))
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder, ThreadPoolExecutor(jobs) as pool:
        ran = [_run_there(part, str(device), Path(folder) / part, end, cores) for part in parts if part in ALONE]
        shared = [part for part in parts if part not in ALONE]
        threads = max(1, cores // max(1, min(jobs, len(shared))))
        waiting = [pool.submit(_run_there, part, str(device), Path(folder) / part, end, threads) for part in shared]
        ran += [future.result() for future in waiting]
    seconds = time.monotonic() - began
    _print_table(ran, device.type, seconds)
    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(_report(ran, device, seconds, jobs), indent=1) + "\n")
    print(f"written to {out}")
    return 0 if all(one.fine for one in ran) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="what to compare with the CPU (default: cuda)")
    parser.add_argument("--out", default="runs/gpu.json", help="where the report goes (default: runs/gpu.json)")
    parser.add_argument("--parts", nargs="+", help="run these alone")
    parser.add_argument("--jobs", type=int, help="parts at a time (default: half the cores)")
    parser.add_argument("--timeout", type=float, help="seconds that all may take together")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run_here(arguments: argparse.Namespace) -> int:
    """Run one part in this process, and leave its rows in its folder."""
    import torch
    from gpu_parts import PARTS, VICTIM, Place, train_for_long

    from clusterprune.errors import BudgetWarning

    # In networks this small one channel can be worth more than what a budget may miss.
    warnings.filterwarnings("ignore", category=BudgetWarning)
    # TensorFloat-32 would be compared with float32.
    torch.backends.cudnn.allow_tf32 = False
    device, folder = torch.device(arguments.device), Path(arguments.folder)
    if arguments.part == [VICTIM]:
        train_for_long(Place(device, folder), resume=False)
        return 0
    failed = False
    for part in arguments.part:
        place = Place(device, folder / part)
        place.folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{part}.jsonl").open("w") as file:
            try:
                for row in PARTS[part](place):
                    file.write(
                        json.dumps({**asdict(row), "difference": float(row.difference), "fine": row.fine}) + "\n"
                    )
                    file.flush()
            except Exception:
                print(f"{part}:\n{traceback.format_exc()}", flush=True)
                failed = True
    return int(failed)


def _run_there(part: str, device: str, folder: Path, end: float, threads: int) -> Ran:
    """Run one part in a process of its own; end it, with all that it started, when the time is over."""
    from gpu_parts import python

    folder.mkdir()
    began = time.monotonic()
    output = folder / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            [*python(), __file__, "--part", part, "--device", device, "--folder", str(folder)],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
        )
        failure = ""
        try:
            code = process.wait(max(0.0, end - began))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            failure = "it was not done when the time was over"
    seconds = time.monotonic() - began
    lines = output.read_text(errors="replace").splitlines()
    path = folder / f"{part}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if code and not failure:
        failure = f"it ended with status {code}"
    ran = Ran(part, rows, round(seconds, 1), failure)
    if not ran.fine:
        ran.failure = "\n".join([failure or "rows out of order", *lines[-SHOWN:]])
    print(f"{part:14} {seconds:6.1f} s  {'ok' if ran.fine else 'FAILED'}", flush=True)
    return ran


def _print_table(ran: list[Ran], device: str, seconds: float) -> None:
    print(f"\n{'part':62} {'CPU':>14} {device:>22} {'difference':>10} {'allowed':>8}")
    for one in ran:
        print(f"{one.part} ({one.seconds:.1f} s)")
        for row in one.rows:
            print(
                f"  {row['what'][:60]:60} {row['cpu'][:14]:>14} {row['device'][:22]:>22} {row['difference']:10.2g} "
                f"{row['allowed']:8.2g} {'ok' if row['fine'] else 'FAILED'}"
            )
    for one in ran:
        if one.failure:
            print(f"\n{one.part}: {one.failure}")
    rows = [row for one in ran for row in one.rows]
    wrong = sum(not row["fine"] for row in rows)
    broken = [one.part for one in ran if not one.fine]
    print(f"\n{len(rows)} comparisons in {len(ran)} parts, {seconds:.0f} s: ", end="")
    print(f"{wrong} out of order; FAILED: {', '.join(broken)}" if broken else "all in order")


def _report(ran: list[Ran], device: Any, seconds: float, jobs: int) -> dict[str, Any]:
    import torch
    from gpu_parts import SEED

    gpu = device.type == "cuda"
    return {
        "benchmark": "gpu_check",
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "hardware": {
            "device": torch.cuda.get_device_name(device) if gpu else str(device),
            "memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1) if gpu else None,
            "processor": platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            **{name: metadata.version(name) for name in ("clusterprune", "torchvision", "scikit-learn", "optuna")},
        },
        "seed": SEED,
        "jobs": jobs,
        "seconds": round(seconds, 1),
        "fine": all(one.fine for one in ran),
        "parts": [asdict(one) for one in ran],
    }


if __name__ == "__main__":
    sys.exit(main())

"""Damage files by the thousand, and see that every loader refuses them in its own words, at once, in little memory.

    python tests/mutations/attack.py --files 10000 --seed 0

prints a table: by loader, how many files were refused, how many loaded, and the failures: exceptions that are not the
package's own, content that digests protect and that came back changed, files that took longer than the limit, and the
growth of the memory. A failure is named by loader, seed and number; `--loader NAME --only NUMBER` repeats it alone.

Each loader runs in a process of its own, which is killed when a file takes too long, and begun anew with the next.
"""

# ruff: noqa: T201  (a script that prints a table)

import argparse
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from loaders import LOADERS, Loader, digest
from mutations import mutate

from clusterprune.errors import ClusterpruneError

SECONDS = 20.0
"""Longest time for one file. They take milliseconds; a busy machine may make them wait."""
MEBIBYTES = 1024
"""Most memory that all files of a loader together may add to its process."""


@dataclass
class Outcome:
    """What became of the damaged files of one loader."""

    refused: int = 0
    loaded: int = 0
    same: int = 0
    failures: list[str] = field(default_factory=list)
    mebibytes: float = 0.0
    slowest: float = 0.0

    @property
    def files(self) -> int:
        """How many there were."""
        return self.refused + self.loaded + self.same + len(self.failures)


class Target:
    """A loader with its sound files, which are put back after every attack."""

    def __init__(self, name: str, folder: Path, seed: int) -> None:
        self.name, self.seed, self.loader = name, seed, LOADERS[name]
        self.sound, self.folder = folder / "sound", folder / "attacked"
        self.sound.mkdir(parents=True)
        self.loader.write(self.sound)
        shutil.copytree(self.sound, self.folder)
        self.content = digest(self.loader.read(self.folder))

    def damage(self, number: int) -> tuple[str, bool]:
        """Write damaged file `number`; return which it is, and whether its bytes changed."""
        loader: Loader = self.loader
        rng = np.random.default_rng([self.seed, list(LOADERS).index(self.name), number])
        file = loader.files[int(rng.integers(len(loader.files)))]
        before = (self.sound / file).read_bytes()
        after = mutate(rng, file, before, fields_only=loader.mend is not None and bool(rng.integers(4)))
        (self.folder / file).write_bytes(after)
        if loader.mend is not None:
            loader.mend(self.folder)
        return file, after != before

    def restore(self) -> None:
        """Put the sound files back."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.sound, self.folder)

    def attack(self, number: int) -> tuple[str, str]:
        """Damage a file and read it: refused, loaded, same or failed, and why it failed."""
        file, changed = self.damage(number)
        try:
            found = digest(self.loader.read(self.folder))
        except ClusterpruneError as error:
            text = str(error)
            if not text or len(text) > 10_000 or "\n" in text.strip():
                return "failed", f"{file}: an error of {len(text)} letters or of several lines: {text[:200]!r}"
            return "refused", ""
        except BaseException as error:  # also panics of libraries written in Rust
            where = traceback.extract_tb(error.__traceback__)[-1]
            return "failed", f"{file}: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"[
                :600
            ]
        finally:
            self.restore()
        if found == self.content:
            return "same", ""
        if self.loader.sealed and changed:
            return "failed", f"{file}: its content changed, and the digest did not notice"
        return "loaded", ""


def _work(name: str, seed: int, numbers: Sequence[int], pipe: Any) -> None:
    """Attack one loader, and tell after every file."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        target = Target(name, Path(folder), seed)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in numbers:
            pipe.send(("begun", number, "", 0.0))
            kind, why = target.attack(number)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            pipe.send((kind, number, why, grown))
    pipe.send(("end", 0, "", 0.0))


def attack(name: str, numbers: Sequence[int], seed: int = 0) -> Outcome:
    """Attack one loader in a process of its own."""
    outcome, left = Outcome(), list(numbers)
    while left:
        for kind, number, why, grown in _messages(name, seed, left):
            if kind == "failed":
                outcome.failures.append(f"{name}, seed {seed}, number {number}: {why}")
            elif kind != "begun":
                setattr(outcome, kind, getattr(outcome, kind) + 1)
            if kind != "begun":
                left.remove(number)
            outcome.mebibytes = max(outcome.mebibytes, grown)
    if outcome.mebibytes > MEBIBYTES:
        outcome.failures.append(f"{name}, seed {seed}: {outcome.mebibytes:.0f} MiB, more than {MEBIBYTES}")
    return outcome


def _messages(name: str, seed: int, numbers: Sequence[int]) -> Iterator[tuple[str, int, str, float]]:
    """Yield what a process tells; one that is silent for too long, or dies, is told of as a failure."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(name, seed, numbers, there), daemon=True)
    process.start()
    there.close()
    current: int | None = None
    try:
        while True:
            # The sound files are made before the first message, which may need a trace.
            if not here.poll(SECONDS if current is not None else 20 * SECONDS):
                break
            message = here.recv()
            if message[0] == "end":
                return
            current = message[1]
            yield message
        reason = f"took more than {SECONDS:g} seconds"
    except EOFError:
        process.join()
        reason = f"ended its process ({process.exitcode})"
    finally:
        process.kill()
        process.join()
    if current is None:
        raise RuntimeError(f"{name}: {reason} before the first file")
    yield "failed", current, reason, 0.0


def _share(files: int) -> dict[str, int]:
    """Share a number of files among the loaders; the graph module is traced for each, and gets few."""
    slow = "compact graph module, digests mended"
    shares = {name: 0.2 if name == slow else 1.0 for name in LOADERS}
    total = sum(shares.values())
    return {name: max(1, round(files * share / total)) for name, share in shares.items()}


def main() -> int:
    """Attack all loaders, or one, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loader", choices=list(LOADERS))
    parser.add_argument("--only", type=int)
    chosen = parser.parse_args()
    failures: list[str] = []
    print(f"{'loader':40}  files refused  loaded    same  failed     MiB seconds")
    total = Outcome()
    for name, count in _share(chosen.files).items():
        if chosen.loader not in (None, name):
            continue
        began = time.perf_counter()
        numbers = range(count) if chosen.only is None else [chosen.only]
        found = attack(name, numbers, chosen.seed)
        failures += found.failures
        total.refused, total.loaded = total.refused + found.refused, total.loaded + found.loaded
        total.same += found.same
        print(
            f"{name:40} {found.files:6} {found.refused:7} {found.loaded:7} {found.same:7} {len(found.failures):7} "
            f"{found.mebibytes:7.0f} {time.perf_counter() - began:7.1f}",
            flush=True,
        )
    count = total.files + len(failures)
    print(f"{'all':40} {count:6} {total.refused:7} {total.loaded:7} {total.same:7} {len(failures):7}")
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

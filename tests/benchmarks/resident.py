"""What a model keeps in memory, as a process says that does nothing else.

    python -m tests.benchmarks.resident MODEL THREADS WEIGHT_CACHES

prints a list of two: before the model is loaded, its backend imported only, and after a few calls.
"""

import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tests.benchmarks.backends import import_backend
from tests.benchmarks.inputs import run_module

NUM_TOKENS = 4  # decoded before a verify call, as wide as the model has, and a draft
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Resident:
    """Megabytes in memory."""

    anonymous: float  # stays as long as the process
    mapped: float  # of files: the kernel can drop it and read it again

    @property
    def total(self) -> float:
        return self.anonymous + self.mapped


def resident(model: Path, num_threads: int, weight_caches: Path) -> Resident:
    """What loading the model and running it adds to a process that has imported its backend."""
    said = run_module("tests.benchmarks.resident", model, num_threads, weight_caches)
    before, after = (Resident(**values) for values in json.loads(said.splitlines()[-1]))
    return Resident(after.anonymous - before.anonymous, after.mapped - before.mapped)


def resident_now() -> Resident:
    """Of this process."""
    text = STATUS.read_text(encoding="utf-8")
    sizes = dict(re.findall(r"^(RssAnon|RssFile):\s*(\d+) kB", text, re.M))
    return Resident(int(sizes["RssAnon"]) * 1024 / 1e6, int(sizes["RssFile"]) * 1024 / 1e6)


def main() -> None:
    model, num_threads, weight_caches = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    open_model = import_backend(model)
    before = resident_now()
    backend = open_model(model, num_threads, weight_caches)
    for position in range(NUM_TOKENS):
        backend.verify([5], position)
    widest = backend.verify_widths[-1]
    backend.verify([5] * widest, NUM_TOKENS)
    hidden = np.ones(backend.hidden_size, np.float32)
    if backend.has_drafter:
        backend.draft(5, hidden, NUM_TOKENS + widest)
    after = resident_now()
    backend.close()
    print(json.dumps([asdict(before), asdict(after)]))  # noqa: T201


if __name__ == "__main__":
    main()

"""Load, use and close a bundle again and again, in a process of its own.

python -m tests.runtime_py.many_loads BUNDLE RUNTIME: prints how many memory mappings the process
has after three loads, which settle what libraries keep, and after twelve more.
"""

import gc
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from runtime_py.backends import SessionOptions
from runtime_py.backends.load import load_backend
from runtime_py.bundle.bundle import Bundle
from runtime_py.decoding.sampling import GREEDY
from runtime_py.decoding.session import Session, Stops

SETTLED, MORE = 3, 12


def main(folder: str, runtime: Any) -> None:
    bundle = Bundle.open(Path(folder))
    context_length = bundle.manifest.model.context_length
    for count in range(1, SETTLED + MORE + 1):
        with closing(load_backend(bundle, runtime, SessionOptions(num_threads=1))) as backend:
            session = Session(backend, context_length)
            for _ in session.generate([2, 5, 7], GREEDY, Stops(max_new_tokens=8), 3):
                pass
        del backend, session
        gc.collect()
        if count in (SETTLED, SETTLED + MORE):
            mappings = Path("/proc/self/maps").read_text().splitlines()
            sys.stdout.write(f"{len(mappings)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Write tests/golden/right-drafts.txt anew: python -m tests.golden_traces.right_drafts BUNDLE.

BUNDLE is one of the tiny model in float32. A line for each of its first prompts: after each token
of the greedy answer, how many of seven drafts are right, up to the first that is not.
"""

import itertools
import sys
from contextlib import closing
from pathlib import Path

from runtime_py.backends import Backend, SessionOptions
from runtime_py.backends.load import load_backend
from runtime_py.bundle.bundle import Bundle
from runtime_py.decoding.sampling import SamplingParams
from runtime_py.decoding.session import Session, Stops
from tests.golden_traces.record import GOLDEN

RIGHT_DRAFTS = GOLDEN.with_name("right-drafts.txt")
NUM_PROMPTS, NUM_TOKENS = 8, 256


def read() -> list[list[int]]:
    """By prompt, by token."""
    return [[int(digit) for digit in line] for line in RIGHT_DRAFTS.read_text().split()]


def num_right(backend: Backend, prompt_ids: list[int]) -> list[int]:
    """After each token that the target says, but for the last seven."""
    session = Session(backend, backend.cache_length)
    longest = session.longest_draft
    stops = Stops(max_new_tokens=NUM_TOKENS + longest)
    steps = session.generate(prompt_ids, SamplingParams(), stops, 0)
    plain = [token_id for step in steps for token_id in step.token_ids]
    found = []
    for end in range(1, NUM_TOKENS + 1):
        text = prompt_ids + plain[:end]
        # The first round has nothing to draft from: it says the last of these tokens again.
        steps = session.generate(
            text[:-1], SamplingParams(), Stops(max_new_tokens=longest + 2), longest
        )
        _, step = itertools.islice(steps, 2)
        found.append(step.num_accepted)
    return found


def main(folder: Path) -> None:
    bundle = Bundle.open(folder)
    (runtime,) = bundle.manifest.runtimes
    with closing(load_backend(bundle, runtime, SessionOptions(1))) as backend:
        lines = [
            "".join(map(str, num_right(backend, ids.tolist())))
            for ids in bundle.reference().prompt_ids[:NUM_PROMPTS]
        ]
    RIGHT_DRAFTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

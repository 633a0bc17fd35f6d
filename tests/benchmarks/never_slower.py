"""Is `--draft-length auto` never slower, with the real drafter and with one that is always wrong?

On the tiny model, for every runtime with every recipe it has. Exit code 1, and a line for each cell
that is not as fast as it has to be.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import click

from runtime_py.backends import SessionOptions
from runtime_py.backends.load import load_backend
from runtime_py.bundle.bundle import Bundle
from runtime_py.decoding.policy import FixedDraftLength
from tests.benchmarks.candidates import NAMES
from tests.benchmarks.draft_contest import (
    LEAST_OF_BEST,
    LEAST_OF_PLAIN,
    RUNTIME_NAMES,
    Contest,
    Found,
    Repeats,
    empty_user_cache,
    generate,
    hold,
    policies,
)
from tests.benchmarks.inputs import Work
from tests.benchmarks.played import PlayedDrafter, Script
from tests.benchmarks.record import RESULTS, describe_machine, finish

NUM_TOKENS = 256  # per prompt, as gemma-run generate has it
NUM_PROMPTS = 8
TURN = 32  # tokens: a tenth of a second at most, in which the machine changes little
NUM_THREADS = 1  # the tiny model is fastest with one
SETTINGS = {
    "threads": NUM_THREADS,
    "tokens": f"{NUM_TOKENS} after each of the bundle's first {NUM_PROMPTS} prompts, greedy; "
    "tokens/s from the first token on",
    "auto": "as gemma-run has it: costs measured once at load, then read from the cache, where "
    "each generation leaves what it learnt; a new policy for each, so that learning takes part "
    "of the time",
    "order": "heats of all candidates find the best fixed length, where the drafter is real; then "
    f"plain decoding, the best and auto; at each prompt in turns of {TURN} tokens, in an order "
    "drawn anew, before which, not timed, each writes the last KV rows anew",
    "wrong": "runs every real draft, then proposes the token after the one that the target is "
    "going to choose (known from a plain generation before), so that none is ever accepted",
    "rounds of auto": "decided after the first token; compared: drafted, and not verified",
    "bounds": {"auto / plain, wrong": LEAST_OF_PLAIN, "auto / best fixed, real": LEAST_OF_BEST},
}


def measure(bundle: Bundle, name: str, repeats: Repeats) -> Found:
    """Both drafters of one bundle, made for one runtime."""
    runtime = RUNTIME_NAMES[name.split()[0]]
    options = SessionOptions(NUM_THREADS)
    prompts = [ids.tolist() for ids in bundle.reference().prompt_ids[:NUM_PROMPTS]]
    found = Found()
    with closing(load_backend(bundle, runtime, options)) as backend:
        drafter = PlayedDrafter(backend)
        scripts = [Script(_plain_text(drafter, prompt), None) for prompt in prompts]
        lengths = range(1, backend.verify_widths[-1])
        candidates = policies(bundle, runtime, backend, options, lengths)

        def play_wrong(index: int) -> None:
            drafter.script = scripts[index]

        for kind in ("real", "wrong"):
            contest = Contest(
                name=f"{name}, {kind} drafter",
                backend=backend if kind == "real" else drafter,
                prompts=prompts,
                num_tokens=NUM_TOKENS,
                policies=candidates,
                turn=TURN,
                play=play_wrong,
                always_wrong=kind == "wrong",
            )
            found.add(hold(contest, repeats))
    return found


def _plain_text(backend: PlayedDrafter, prompt: list[int]) -> list[int]:
    """The prompt and what the target says after it."""
    return [*prompt, *generate(backend, prompt, FixedDraftLength(0), NUM_TOKENS).token_ids]


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS / "never_slower.json")
@click.option("--heats", type=click.IntRange(1), default=1, show_default=True)
@click.option("--finals", type=click.IntRange(1), default=6, show_default=True)
@click.option("--only", type=click.Choice(NAMES), multiple=True, help="Of all; may be repeated.")
def main(output: Path, heats: int, finals: int, only: Sequence[str]) -> None:
    work, found = Work(), Found()
    folders = {}
    for name in only or NAMES:
        runtime, recipe = name.split()
        folders[name] = work.tiny_bundle(recipe, RUNTIME_NAMES[runtime])
    empty_user_cache(work)
    machine = describe_machine()  # its load is that of before, exports left aside
    for name, folder in folders.items():
        found.add(measure(Bundle.open(folder), name, Repeats(heats=heats, finals=finals)))
    finish(output, "never_slower", machine, found.result(SETTINGS))


if __name__ == "__main__":
    main()

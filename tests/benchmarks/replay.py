"""A replay: given drafts are accepted, by profile, over random weights of E2B's widths.

Not a measurement of any drafter. Every call is real and costs what it costs at this size; which
drafts are right is drawn by a profile. Exit code 1, and a line for each cell where
`--draft-length auto` is not as fast as it has to be.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from runtime_py.backends import Backend, SessionOptions
from runtime_py.backends.load import load_backend, pick_runtime
from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.reference import Reference
from tests.benchmarks.candidates import NAMES, STACK_LAYERS
from tests.benchmarks.draft_contest import (
    LEAST_OF_BEST,
    LEAST_OF_PLAIN,
    RUNTIME_NAMES,
    Contest,
    Found,
    Repeats,
    empty_user_cache,
    hold,
    policies,
)
from tests.benchmarks.inputs import Work, num_threads
from tests.benchmarks.played import (
    E2B,
    PlayedDrafter,
    PlayedTarget,
    Script,
    Stretch,
    conditional,
    draw_hits,
)
from tests.benchmarks.record import RESULTS, describe_machine, finish

SEED = 0
PROMPT_LENGTH = 32
TURN = 16  # tokens: a tenth of a second, in which the machine changes little
CODE, PROSE = (0.97, 0.95, 0.94), (0.45, 0.35, 0.30)
WRONG = "wrong"
PROFILES: Mapping[str, tuple[Stretch, ...]] = {
    "E2B's": (Stretch(1, conditional(E2B)),),
    "perfect": (Stretch(1, (1.0,)),),
    WRONG: (Stretch(1, (0.0,)),),
    "changing": (Stretch(96, PROSE), Stretch(96, CODE)),
}
SETTINGS = {
    "replay": "which drafts are right is drawn by a profile; the calls and their times are real, "
    "over random weights; the text is drawn too, from the tokens of the bundle's prompts",
    "profiles": {
        "E2B's": f"the first draft, the first two, the first three were accepted in {E2B} of all "
        "rounds (cumulative, as engines report it), so each in "
        f"{tuple(round(share, 3) for share in conditional(E2B))} of the rounds that reached it; "
        "later drafts as the third",
        "perfect": "all",
        WRONG: "none",
        "changing": f"96 tokens of prose, {PROSE} of the drafts reached, then 96 of code, {CODE}; "
        "and again",
    },
    "auto": "as gemma-run has it: costs measured once at load, then read from the cache, where "
    "each generation leaves what it learnt; a new policy for each; its prior at first is E2B's "
    "profile, which a bundle of E2B's would bring",
    "order": "heats of all candidates find the best fixed length, where drafts may be right; then "
    f"plain decoding, the best and auto; in turns of {TURN} tokens, in an order drawn anew",
    "rounds of auto": "decided after the first token; compared: drafted, and not verified",
    "bounds": {"auto / plain, wrong": LEAST_OF_PLAIN, "auto / best fixed, others": LEAST_OF_BEST},
}


@dataclass(frozen=True)
class E2BPrior(Bundle):
    """A bundle that says its drafter was right as often as E2B's."""

    def reference(self) -> Reference:
        real = super().reference()
        num_prompts, num_tokens = real.greedy_ids.shape
        num_rounds, longest = real.draft_ids.shape[1:]
        greedy, drafts = real.greedy_ids, real.draft_ids.copy()
        hits = draw_hits(PROFILES["E2B's"], num_prompts * num_tokens, longest, SEED)
        for place, hit in zip(np.ndindex(num_prompts, num_rounds), hits, strict=False):
            prompt, token = place
            right = greedy[prompt, token + 1 : token + 1 + longest]
            drafts[prompt, token] = np.where(
                hit, right, (right + 1) % self.manifest.model.vocab_size
            )
        return replace(real, draft_ids=drafts)


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured."""

    repeats: Repeats
    num_tokens: int
    lengths: Sequence[int]  # fixed ones; none: all that the graphs can verify


def measure(bundle: Bundle, runtime: str, effort: Effort) -> Found:
    """Every profile on one of the bundle's runtimes."""
    key = pick_runtime(bundle, runtime)
    options = SessionOptions(num_threads())
    found = Found()
    with closing(load_backend(bundle, key, options)) as backend:
        fixed_at = effort.lengths or range(1, backend.verify_widths[-1])
        candidates = policies(bundle, key, backend, options, fixed_at)
        target = PlayedTarget(backend)
        drafter = PlayedDrafter(target)
        target.text = text = _text(bundle, PROMPT_LENGTH + effort.num_tokens, backend)
        for name, stretches in PROFILES.items():
            hits = draw_hits(stretches, len(text), backend.verify_widths[-1] - 1, SEED)
            drafter.script = Script(text, hits)
            contest = Contest(
                name=f"{_name(bundle, runtime)}, replay of {name} acceptance",
                backend=drafter,
                prompts=[text[:PROMPT_LENGTH]],
                num_tokens=effort.num_tokens,
                policies=candidates,
                always_wrong=name == WRONG,
                turn=TURN,
                recall=False,
            )
            found.add(hold(contest, effort.repeats))
    return found


def _text(bundle: Bundle, num_tokens: int, backend: Backend) -> list[int]:
    """Of few different tokens, as texts are: each has rows of its own to be read from the disk."""
    known = np.unique(np.concatenate(bundle.reference().prompt_ids))
    # A draft must not make a row that lies past the text: those of the longest verify, too.
    num_drawn = num_tokens + backend.verify_widths[-1]
    return [int(token) for token in np.random.default_rng(SEED).choice(known, num_drawn)]


def _name(bundle: Bundle, runtime: str) -> str:
    about, recipe = bundle.manifest.model, bundle.entry(pick_runtime(bundle, runtime)).recipe
    return f"{about.num_layers} layers of width {about.hidden_size}, {runtime} {recipe}"


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS / "replay.json")
@click.option("--heats", type=click.IntRange(1), default=2, show_default=True)
@click.option("--finals", type=click.IntRange(1), default=5, show_default=True)
@click.option("--tokens", type=click.IntRange(2), default=256, show_default=True)
@click.option("--bundle", type=click.Path(path_type=Path), multiple=True, help="Ready made, too.")
@click.option("--only", type=click.Choice(NAMES), multiple=True, help="Of the stack's bundles.")
@click.option("--no-stack", is_flag=True, help="Nothing but --bundle.")
@click.option("--fixed", "lengths", type=int, multiple=True, help="Draft lengths.  [default: all]")
def main(  # noqa: PLR0913  one for each option
    output: Path,
    heats: int,
    finals: int,
    tokens: int,
    bundle: Sequence[Path],
    only: Sequence[str],
    no_stack: bool,
    lengths: Sequence[int],
) -> None:
    work, found = Work(), Found()
    folders = list(bundle)
    for name in () if no_stack else only or NAMES:
        runtime, recipe = name.split()
        folders.append(work.stack_bundle(STACK_LAYERS, recipe, RUNTIME_NAMES[runtime]))
    empty_user_cache(work)
    machine = describe_machine()  # its load is that of before, exports left aside
    repeats = Repeats(heats=heats, finals=finals)
    effort = Effort(repeats=repeats, num_tokens=tokens, lengths=lengths)
    for folder in folders:
        opened = Bundle.open(folder)
        played = E2BPrior(opened.folder, opened.manifest)
        for runtime in opened.manifest.runtimes:
            found.add(measure(played, runtime, effort))
    settings = SETTINGS | {
        "threads": num_threads(),
        "tokens": f"{tokens} after {PROMPT_LENGTH}; tokens/s from the first token on",
    }
    finish(output, "replay", machine, found.result(settings))


if __name__ == "__main__":
    main()

"""What `gemma-run bench` compares: a bundle's draft lengths, auto, and Google's own runtime."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

from runtime_py.backends import Backend, SessionOptions, default_num_threads
from runtime_py.backends.load import load_backend
from runtime_py.bench import official
from runtime_py.bench.measure import (
    Candidate,
    Contest,
    Effort,
    Length,
    Policies,
    TimedBackend,
    compare_draft_lengths,
)
from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.manifest import RuntimeName
from runtime_py.decoding.policy import DraftLength
from runtime_py.decoding.session import Session
from runtime_py.draft_length.measure import auto_draft_length
from runtime_py.errors import RunError


def bench_bundle(
    bundle: Bundle,
    name: RuntimeName,
    options: SessionOptions,
    wanted: Sequence[Length],
    effort: Effort,
    progress: Callable[[int], None],
) -> Contest:
    """Load one runtime of a bundle and let the draft lengths take turns on its first prompts.

    Args:
        wanted: besides plain decoding; none: all worth a measurement, and auto.
        progress: called with the rounds done, one for each prompt of each repeat.
    """
    prompts = [ids.tolist() for ids in bundle.reference().prompt_ids[: effort.num_prompts]]
    texts = [bundle.tokenizer().text_after_bos(ids) for ids in prompts]
    with (
        closing(_opened(bundle, name, options, wanted)) as backend,
        official_candidates(
            bundle.model_path(name),
            texts,
            mtp=backend.has_drafter,
            max_new_tokens=effort.max_new_tokens,
            num_threads=options.num_threads or default_num_threads(),
        ) as others,
    ):
        auto = partial(auto_draft_length, bundle, name, backend, options)
        ours = policies(backend, wanted, auto)
        session = Session(backend, bundle.manifest.model.context_length)
        return compare_draft_lengths(session, backend, prompts, effort, (ours, others), progress)


def _opened(
    bundle: Bundle, name: RuntimeName, options: SessionOptions, wanted: Sequence[Length]
) -> TimedBackend:
    """Load the graphs, and refuse draft lengths they cannot verify before anything is measured."""
    backend = load_backend(bundle, name, options)
    try:
        for length in wanted:
            if length != "auto":
                Session(backend, bundle.manifest.model.context_length).check_draft_length(length)
    except RunError:
        backend.close()
        raise
    return TimedBackend(backend)


def draft_lengths(backend: Backend) -> list[int]:
    """Draft lengths worth measuring: 0, and each verify width that is a power of two, less one.

    LiteRT has one graph for each of these widths; ExecuTorch takes any in between, too.
    """
    if not backend.has_drafter:
        return [0]
    return [width - 1 for width in backend.verify_widths if width & (width - 1) == 0]


def policies(
    backend: Backend, wanted: Sequence[Length], auto: Callable[[], DraftLength]
) -> Policies:
    """Plain decoding and the wanted draft lengths; by default all worth measuring, and auto.

    Args:
        auto: makes what decides in a new generation.
    """
    lengths: list[Length] = [0, *wanted] if wanted else [*draft_lengths(backend), "auto"]
    if not backend.has_drafter:
        lengths = [0]
    return {
        length: auto if length == "auto" else partial(int, length)
        for length in dict.fromkeys(lengths)
    }


@contextmanager
def official_candidates(
    model: Path, prompts: Sequence[str], *, mtp: bool, max_new_tokens: int, num_threads: int
) -> Iterator[dict[str, Candidate]]:
    """Google's runtime on the same file, without and with the drafter; empty if it cannot run.

    Args:
        prompts: text without its start token, which that runtime adds.
        mtp: whether the file has a drafter; that runtime fails without.
    """
    with ExitStack() as stack:
        candidates: dict[str, Candidate] = {}
        for name, speculative in (("official", False), ("official, MTP", True)):
            if official.can_run(model) and speculative <= mtp:
                engine = official.OfficialEngine(model, mtp=speculative, num_threads=num_threads)
                stack.callback(engine.close)
                candidates[name] = partial(_official_speed, engine, prompts, max_new_tokens)
        yield candidates


def _official_speed(
    engine: official.OfficialEngine, prompts: Sequence[str], max_new_tokens: int, index: int
) -> float:
    return engine.generate(prompts[index], max_new_tokens).tokens_per_s

"""Load a bundle and generate from it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypedDict, Unpack

from runtime_py.backends import Backend, SessionOptions
from runtime_py.backends.load import load_backend, pick_runtime
from runtime_py.bundle.bundle import Bundle
from runtime_py.bundle.manifest import MAX_DRAFT_LENGTH, RuntimeName
from runtime_py.decoding.policy import DraftLength
from runtime_py.decoding.sampling import SamplingParams
from runtime_py.decoding.session import Session, Step, Stops
from runtime_py.draft_length.measure import auto_draft_length, remember
from runtime_py.errors import RunError
from runtime_py.model.prompt import Prompt, encode_prompt
from runtime_py.model.stream import Result, Stream
from runtime_py.terminal.printable import shown

DEFAULT_MAX_NEW_TOKENS = 256


class SamplingKeywords(TypedDict, total=False):
    """The fields of SamplingParams."""

    temperature: float
    top_k: int
    top_p: float
    seed: int


class Model:
    """A bundle with its graphs in memory; `load` makes it, `with` or `close` frees it.

    It holds the KV rows of one sequence. A prompt that begins like the one before it, as a growing
    conversation does, is only read from where they differ. Any thread may use it, but only one
    generation goes on: where another begins, the next step of the first raises RunError.
    """

    def __init__(
        self,
        bundle: Bundle,
        runtime: RuntimeName,
        backend: Backend,
        options: SessionOptions,
        draft_length: int | Literal["auto"],
    ) -> None:
        self.runtime: RuntimeName = runtime
        self.draft_length = draft_length
        self._manifest = bundle.manifest
        self._tokenizer = bundle.tokenizer()
        self._backend: Backend | None = backend
        self._session = Session(backend, self._manifest.model.context_length)
        self._policy: int | DraftLength
        if draft_length == "auto":
            self._policy = auto_draft_length(bundle, runtime, backend, options)
        else:
            self._session.check_draft_length(draft_length)
            self._policy = draft_length
        self._turn = threading.Lock()  # runtimes take one call at a time

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the graphs; keep what draft length "auto" learnt, for the next load. Idempotent."""
        with self._turn:
            backend, self._backend = self._backend, None
            if backend is None:
                return
            try:
                if not isinstance(self._policy, int):
                    remember(self._policy)
            finally:
                backend.close()

    @property
    def name(self) -> str:
        """The manifest's, such as gemma4-tiny."""
        return self._manifest.name

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together."""
        return self._manifest.model.context_length

    @property
    def has_drafter(self) -> bool:
        """Whether draft lengths above 0 are possible."""
        return self._manifest.model.has_drafter

    def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        raw: bool = False,
        should_stop: Callable[[], bool] | None = None,
        **keywords: Unpack[SamplingKeywords],
    ) -> Result:
        """Generate until the model ends its answer, or something below ends it.

        Args:
            prompt: text, which becomes the user's message in the chat template; the messages of a
                conversation; or token ids, which are read as they are.
            sampling: how tokens are chosen; greedy by default.
            max_new_tokens: 1 or more.
            raw: continue the text itself, without the chat template.
            should_stop: called before each round; where it returns True, the generation ends with
                finish_reason "stopped". The `is_set` of a threading.Event lets any thread stop it.
            keywords: temperature, top_k, top_p and seed, instead of those of `sampling`.

        Raises:
            RunError: for a prompt that is empty or does not fit the context, a value out of range
                or a closed model; or if another generation begins before this one has ended.
            TypeError: for any other keyword.
        """
        stream = self.stream(
            prompt,
            sampling,
            max_new_tokens=max_new_tokens,
            raw=raw,
            should_stop=should_stop,
            **keywords,
        )
        for _ in stream:
            pass
        return stream.result

    def stream(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        raw: bool = False,
        should_stop: Callable[[], bool] | None = None,
        **keywords: Unpack[SamplingKeywords],
    ) -> Stream:
        """As `generate`, piece by piece. The graphs first run when the first piece is asked for.

        Raises:
            RunError, TypeError: as `generate` does, as early as possible.
        """
        params = replace(sampling or SamplingParams(), **keywords)
        stop_ids = frozenset(self._manifest.tokens.stop_token_ids)
        stops = Stops(max_new_tokens=max_new_tokens, token_ids=stop_ids)
        prompt_ids = encode_prompt(self._tokenizer, prompt, raw=raw)
        steps = self._session.generate(prompt_ids, params, stops, self._policy)
        asked = len(prompt_ids), self.draft_length
        return Stream(self._in_turn(steps), self._tokenizer, stops, should_stop, asked)

    def _in_turn(self, steps: Iterator[Step]) -> Iterator[Step]:
        while True:
            with self._turn:
                if self._backend is None:
                    raise RunError("this model was closed; load the bundle again")
                step = next(steps, None)
            if step is None:
                return
            yield step

    def encode(self, text: str) -> list[int]:
        """The tokens of text as it is, begun with the beginning-of-sequence token."""
        return self._tokenizer.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, without control tokens."""
        return self._tokenizer.decode(token_ids)

    def count_tokens(self, prompt: Prompt, *, raw: bool = False) -> int:
        """How many tokens `generate` would read, those of the chat template included.

        Raises:
            RunError: as `generate` does, but for what does not fit the context.
        """
        return len(encode_prompt(self._tokenizer, prompt, raw=raw))


def load(
    bundle: str | Path | Bundle,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    providers: Sequence[str] = (),
    draft_length: int | Literal["auto"] = "auto",
) -> Model:
    """Load a bundle's graphs into memory.

    Args:
        bundle: the folder that gemma-export made.
        runtime: litert, onnx or executorch; by default the first of the bundle's that is installed.
        threads: of the CPU, 1 .. 256; by default its cores, at most 4.
        providers: execution providers of onnxruntime, the best first; by default the CPU's.
        draft_length: tokens that the drafter proposes in a round; 0 is plain decoding, "auto" is
            what pays best here by measured cost and acceptance. It changes the speed, not the text.

    Raises:
        RunError: for a bundle that cannot be run here, or an option out of range.
    """
    options = SessionOptions(threads, tuple(providers))
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle))
    _check_draft_length(opened, draft_length)
    name = pick_runtime(opened, runtime)
    opened.tokenizer()  # a bad one is refused before the graphs load
    backend = load_backend(opened, name, options)
    try:
        return Model(opened, name, backend, options, draft_length)
    except BaseException:
        backend.close()
        raise


def _check_draft_length(bundle: Bundle, draft_length: int | Literal["auto"]) -> None:
    """As far as the manifest knows; the graphs may be narrower."""
    if draft_length == "auto":
        return
    most = MAX_DRAFT_LENGTH if bundle.manifest.model.has_drafter else 0
    if not isinstance(draft_length, int) or not 0 <= draft_length <= most:
        why = "" if most else ", for it has no drafter"
        raise RunError(
            f"draft length is {shown(draft_length)}; this bundle allows auto or 0 .. {most}{why}"
        )

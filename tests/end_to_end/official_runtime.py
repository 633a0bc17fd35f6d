"""Runs the official LiteRT-LM runtime in a process of its own: it can take its process down.

    python -m tests.end_to_end.official_runtime REQUEST.json ANSWER.json

REQUEST: model, cache_dir, speculative, texts, max_output_tokens.
ANSWER: prompt_ids and texts, one per prompt.
"""

import json
import sys
from contextlib import closing
from pathlib import Path

import litert_lm
from litert_lm import interfaces

GREEDY = interfaces.SamplerConfig(top_k=1, temperature=0.0)


def main(request_file: str, answer_file: str) -> None:
    request = json.loads(Path(request_file).read_text())
    engine = litert_lm.Engine(
        request["model"],
        backend=litert_lm.Backend.CPU(thread_count=1),
        enable_speculative_decoding=request["speculative"],
        cache_dir=request["cache_dir"],  # else it writes its caches into the bundle
    )
    with closing(engine):
        answer = {
            "prompt_ids": [engine.tokenize(text) for text in request["texts"]],
            "texts": [
                generate(engine, text, request["max_output_tokens"]) for text in request["texts"]
            ],
        }
        Path(answer_file).write_text(json.dumps(answer))


def generate(engine: litert_lm.Engine, text: str, max_output_tokens: int) -> str:
    # Without the template the runtime puts the start token before the text and nothing else.
    session = engine.create_session(
        apply_prompt_template=False, sampler_config=GREEDY, max_output_tokens=max_output_tokens
    )
    # A session still open when its engine closes crashes the process (LiteRT-LM 0.18.1).
    with closing(session):
        session.run_prefill([text])
        return session.run_decode().texts[0]


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The official LiteRT-LM engine in a process of its own, asked one generation at a time.

    python -m tests.benchmarks.official_engine MODEL MTP THREADS

Reads one JSON object {"prompt", "max_tokens"} per line on stdin and answers with one on stdout; it
ends when stdin does. A process, because the engine logs the drafter's success rate to stderr and
only when it is closed.
"""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.inputs import ROOT, python_command

_SUCCESS_RATE = re.compile(r"MTP Drafter - Success rate: ([\d.]+)")


@dataclass(frozen=True)
class OfficialRun:
    """What the engine says of one generation."""

    text: str
    num_tokens: int
    tokens_per_s: float  # decode only, by the engine's own clock


class OfficialEngine:
    """The near end of the process."""

    def __init__(self, model: Path, *, mtp: bool, num_threads: int) -> None:
        arguments = (model, int(mtp), num_threads)
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in close()
        self._process = subprocess.Popen(
            python_command("tests.benchmarks.official_engine", arguments),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def generate(self, prompt: str, max_tokens: int) -> OfficialRun:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({"prompt": prompt, "max_tokens": max_tokens}) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the official engine died:\n{self._read_log()[-4000:]}")
        return OfficialRun(**json.loads(line))

    def close(self) -> float | None:
        """End the process; the share of all drafts that were accepted, as the engine logs it."""
        self._process.communicate()
        rates = _SUCCESS_RATE.findall(self._read_log())
        self._log.close()
        return float(rates[-1]) if rates else None

    def _read_log(self) -> str:
        self._log.seek(0)
        return self._log.read()


def main() -> None:
    import litert_lm

    model, mtp, threads = sys.argv[1], sys.argv[2] == "1", int(sys.argv[3])
    engine = litert_lm.Engine(
        model,
        backend=litert_lm.Backend.CPU(thread_count=threads),
        enable_speculative_decoding=mtp,
        enable_benchmark=True,
    )
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_generate(litert_lm, engine, **json.loads(line))) + "\n")
        sys.stdout.flush()
    engine.close()


def _generate(litert_lm: Any, engine: Any, prompt: str, max_tokens: int) -> dict[str, Any]:
    session = engine.create_session(
        apply_prompt_template=False,
        sampler_config=litert_lm.SamplerConfig(top_k=1, temperature=0.0),
        max_output_tokens=max_tokens,
    )
    session.run_prefill([prompt])
    text = session.run_decode().texts[0]
    info = session.get_benchmark_info()
    session.close()  # before the engine: closing that one with sessions alive crashes it
    return {
        "text": text,
        "num_tokens": info.last_decode_token_count,
        "tokens_per_s": info.last_decode_tokens_per_second,
    }


if __name__ == "__main__":
    main()

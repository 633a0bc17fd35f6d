"""Google's own LiteRT-LM runtime, if installed, on the bundle's file: the peer to beat.

    python -m runtime_py.bench.official MODEL MTP THREADS CACHE_FOLDER

Reads one JSON object {"prompt", "max_tokens"} per line on stdin and answers with one on stdout; it
ends when stdin does. A process of its own, because the engine can take its process down, and logs
the drafter's success rate to stderr and only when it is closed.
"""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime_py.backends import installed
from runtime_py.device.device import Device, this_device
from runtime_py.device.own_process import own_module
from runtime_py.errors import RunError

_SUCCESS_RATE = re.compile(r"MTP Drafter - Success rate: ([\d.]+)")


def is_installed() -> bool:
    return installed.is_installed(installed.OFFICIAL)


def can_run(model: Path) -> bool:
    """Whether the format fits, litert-lm-api is installed, and this processor can run it."""
    return model.suffix == ".litertlm" and is_installed() and refusal(this_device()) is None


def refusal(device: Device) -> str | None:
    """Why the official runtime would crash here; None if no reason is known."""
    if not device.lacks_lse:
        return None
    return (
        "litert-lm-api is compiled with LSE atomics, which this processor "
        f"({device.name}) lacks; it would crash. gemma-run's own runtimes run here"
    )


@dataclass(frozen=True)
class OfficialRun:
    """What the engine reports of one generation."""

    text: str
    num_tokens: int
    tokens_per_s: float  # decode only, by the engine's own clock


class OfficialEngine:
    """Our end of the process that runs the engine.

    Args:
        model: a .litertlm file.
        mtp: with the drafter or without.
        num_threads: CPU threads.

    Raises:
        RunError: on a processor that it is not compiled for.
    """

    def __init__(self, model: Path, *, mtp: bool, num_threads: int) -> None:
        if reason := refusal(this_device()):
            raise RunError(f"{model}: the official runtime cannot run it: {reason}")
        self._scratch = tempfile.TemporaryDirectory()
        self._log = (Path(self._scratch.name) / "log").open(
            "w+", encoding="utf-8", errors="replace"
        )
        command = own_module("runtime_py.bench.official")
        self._process = subprocess.Popen(
            [*command, str(model), str(int(mtp)), str(num_threads), self._scratch.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    @property
    def pid(self) -> int:
        """The process id, for measuring its memory."""
        return self._process.pid

    def generate(self, prompt: str, max_tokens: int) -> OfficialRun:
        """Greedy text after a prompt; the engine may add up to three tokens too many.

        Raises:
            RunError: if the engine has died.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps({"prompt": prompt, "max_tokens": max_tokens}) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            last = (self._read_log().strip().splitlines() or ["no message"])[-1]
            raise RunError(f"the official runtime died: {last}")
        return OfficialRun(**json.loads(line))

    def close(self) -> float | None:
        """End the process; the share of all drafts that were accepted, as the engine logs it."""
        self._process.communicate()
        rates = _SUCCESS_RATE.findall(self._read_log())
        self._log.close()
        self._scratch.cleanup()
        return float(rates[-1]) if rates else None

    def _read_log(self) -> str:
        self._log.seek(0)
        return self._log.read()


def main() -> None:
    """Runs in the other process."""
    import litert_lm

    model, mtp, threads, cache_folder = sys.argv[1:]
    engine = litert_lm.Engine(
        model,
        backend=litert_lm.Backend.CPU(thread_count=int(threads)),
        enable_speculative_decoding=mtp == "1",
        enable_benchmark=True,
        cache_dir=cache_folder,  # or it writes beside the model
    )
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_generate(litert_lm, engine, **json.loads(line))) + "\n")
        sys.stdout.flush()
    engine.close()


def _generate(litert_lm: Any, engine: Any, prompt: str, max_tokens: int) -> dict[str, Any]:
    # Without the template, the runtime adds only the start token.
    session = engine.create_session(
        apply_prompt_template=False,
        sampler_config=litert_lm.SamplerConfig(top_k=1, temperature=0.0),
        max_output_tokens=max_tokens,
    )
    session.run_prefill([prompt])
    text = session.run_decode().texts[0]
    info = session.get_benchmark_info()
    session.close()  # first: closing an engine with live sessions crashes it
    return {
        "text": text,
        "num_tokens": info.last_decode_token_count,
        "tokens_per_s": info.last_decode_tokens_per_second,
    }


if __name__ == "__main__":
    main()

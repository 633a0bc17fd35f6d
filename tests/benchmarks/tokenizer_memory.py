"""Print the megabytes that loading a tokenizer adds to a process that has imported it.

python -m tests.benchmarks.tokenizer_memory TOKENIZER_JSON
"""

import sys
from pathlib import Path

from runtime_py.bundle.manifest import TokenEntry
from runtime_py.bundle.tokenizer import Tokenizer
from tests.benchmarks.resident import resident_now


def main() -> None:
    before = resident_now()
    tokens = TokenEntry(
        tokenizer="tokenizer.json", chat_template=None, bos_token_id=2, stop_token_ids=(1,)
    )
    tokenizer = Tokenizer(Path(sys.argv[1]), tokens, None, 128)
    tokenizer.encode("Once upon a time")
    print(round(resident_now().anonymous - before.anonymous, 1))  # noqa: T201


if __name__ == "__main__":
    main()

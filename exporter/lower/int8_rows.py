"""Runtimes, and the page for browsers, that have no int8 KV rows refuse them."""

from collections.abc import Mapping, Sequence

from exporter.config import DEVICES
from exporter.errors import ExportError
from runtime_py.bundle.manifest import RuntimeName


def refuse_int8_rows(
    device: str, runtimes: Sequence[RuntimeName], reasons: Mapping[RuntimeName, str]
) -> None:
    """Raise ExportError if they are asked for where they cannot be.

    Args:
        device: what `--target` says.
        runtimes: that are lowered to.
        reasons: of every runtime, why it has none; empty: it has.
    """
    if DEVICES[device].page:
        raise ExportError(
            f"--kv int8 with --target {device}: the page in the bundle makes float32 rows; use "
            "another --target, or --kv float32"
        )
    others = " or ".join(name for name, reason in reasons.items() if not reason)
    for name in runtimes:
        if reasons[name]:
            raise ExportError(
                f"--kv int8 with --runtime {name}: {reasons[name]}; use --runtime {others}, or "
                "--kv float32"
            )

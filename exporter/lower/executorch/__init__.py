"""Lowering to ExecuTorch: target and drafter in one .pte over one KV buffer."""

from exporter.lower.executorch.lower import NO_INT8_ROWS, check, lower

__all__ = ["NO_INT8_ROWS", "check", "lower"]

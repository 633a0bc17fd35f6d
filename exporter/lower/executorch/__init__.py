"""Lowering to ExecuTorch: target and drafter in one .pte over one KV buffer."""

from exporter.lower.executorch.lower import check, lower

__all__ = ["check", "lower"]

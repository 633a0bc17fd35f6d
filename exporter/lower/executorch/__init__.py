"""Lowering to ExecuTorch: target and drafter in one .pte over one KV buffer."""

from exporter.lower.executorch.lower import LOWERING

__all__ = ["LOWERING"]

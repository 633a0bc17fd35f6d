"""Lowering to LiteRT, and the .litertlm bundle of the official LiteRT-LM runtime."""

from exporter.lower.litert.lower import LOWERING

__all__ = ["LOWERING"]

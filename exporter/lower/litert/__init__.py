"""Lowering to LiteRT, and the .litertlm bundle of the official LiteRT-LM runtime."""

from exporter.lower.litert.lower import lower
from exporter.lower.litert.pack import pack

__all__ = ["lower", "pack"]

"""Lowering to LiteRT, and the .litertlm bundle of the official LiteRT-LM runtime."""

from exporter.lower.litert.lower import check, lower
from exporter.lower.litert.pack import pack, version_stamp

__all__ = ["check", "lower", "pack", "version_stamp"]

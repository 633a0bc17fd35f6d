"""gemma-export: Gemma 4 and its MTP drafters for devices."""

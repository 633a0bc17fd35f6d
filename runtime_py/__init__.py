"""gemma-run: runs exported Gemma 4 bundles with their MTP drafter, with no torch installed."""

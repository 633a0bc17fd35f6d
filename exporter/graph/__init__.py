"""The export-friendly definition of target and drafter, for every Gemma 4 variant."""

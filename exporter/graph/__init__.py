"""The export-friendly definition of target and drafter, for every dense Gemma 4 variant."""

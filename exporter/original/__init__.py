"""transformers' own model, run a few rows at a time, and the recording of what it says."""

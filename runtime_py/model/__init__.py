"""The Python API: a loaded bundle that answers prompts, at once or piece by piece."""

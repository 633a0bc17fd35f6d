"""gemma-run check: replays the recorded original and compares."""

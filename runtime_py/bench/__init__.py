"""gemma-run bench: how fast a bundle is on this device."""

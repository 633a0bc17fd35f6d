"""gemma-run: the command line on the device."""

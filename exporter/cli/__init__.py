"""gemma-export: the command line on the workstation."""

"""`python -m exporter` is gemma-export."""

from exporter.cli import main

main(prog_name="gemma-export")

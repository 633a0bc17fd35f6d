"""`python -m exporter` is gemma-export."""

from exporter.cli import main

if __name__ == "__main__":
    main(prog_name="gemma-export")

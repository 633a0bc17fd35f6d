"""`python -m runtime_py` is gemma-run."""

from runtime_py.cli import main

main(prog_name="gemma-run")

"""`python -m runtime_py` is gemma-run."""

from runtime_py.cli import main

if __name__ == "__main__":
    main(prog_name="gemma-run")

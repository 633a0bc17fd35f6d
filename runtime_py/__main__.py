"""gemma-run, as a command and as `python -m runtime_py`."""

from runtime_py.terminal.signals import interruptible


def main() -> None:
    """Run the command line; its imports take a second, in which Ctrl-C is heeded too."""
    with interruptible("gemma-run"):
        from runtime_py.cli.commands import main as command

        command(prog_name="gemma-run")


if __name__ == "__main__":
    main()

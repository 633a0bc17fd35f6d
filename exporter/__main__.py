"""gemma-export, as a command and as `python -m exporter`."""

from runtime_py.terminal.signals import interruptible


def main() -> None:
    """Run the command line; its imports take seconds, in which Ctrl-C is heeded too."""
    with interruptible("gemma-export"):
        from exporter.cli.command import main as command

        command(prog_name="gemma-export")


if __name__ == "__main__":
    main()

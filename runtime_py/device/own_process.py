"""Our own modules in a process of their own."""

import sys
from pathlib import Path

_RUN = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
_RUN += "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"


def own_module(name: str) -> tuple[str, ...]:
    """The command that runs a module of the packages beside this one, before its arguments.

    Not `python -m`, which looks into the working directory first: that may be a bundle from
    anywhere, with a file named as a module of Python's in it.
    """
    return (sys.executable, "-P", "-c", _RUN, str(Path(__file__).parents[2]), name)

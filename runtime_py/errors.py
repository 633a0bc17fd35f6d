"""The one error a user of gemma-run can meet."""


class RunError(Exception):
    """Bad input to the runtime.

    The message is one line: what, where, found, needed, next step. The command line prints it and
    exits with code 1, without a traceback.
    """

"""How many KV rows of a sliding layer are kept in memory."""

# Rows kept behind the window: a chat whose template drops some tokens of the last answer goes on
# from there without another prefill, and a check drafts again along a text it has walked.
MARGIN = 256
STEP = 128  # rows given back at a time
DRAFTER_ROWS = 1  # a drafter's sliding layers see so many more than the window


def needed_rows(window: int) -> int:
    """Those that the target's or the drafter's next call may look at."""
    return window + DRAFTER_ROWS


def resident_rows(window: int, context_length: int) -> int:
    """At most, between two calls; a call adds those of its own tokens."""
    return min(context_length, needed_rows(window) + MARGIN + STEP)

"""How many KV rows of a sliding-window layer stay in memory."""

# Rows kept behind the window, so that a sequence can resume a little earlier without another
# prefill: a chat template may drop some tokens of the last answer, and a check drafts again along a
# text that it has already processed.
MARGIN = 256
STEP = 128  # rows released at a time
DRAFTER_ROWS = 1  # a drafter's sliding layers see one row more than the window


def needed_rows(window: int) -> int:
    """Rows that the target's or the drafter's next call may read."""
    return window + DRAFTER_ROWS


def resident_rows(window: int, context_length: int) -> int:
    """The most rows in memory between two calls; a call adds its own tokens' rows."""
    return min(context_length, needed_rows(window) + MARGIN + STEP)

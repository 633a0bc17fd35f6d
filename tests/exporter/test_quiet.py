"""A fence hides what its library says, and that only."""

import logging

from exporter.quiet import only_errors


def test_it_hides_what_the_loggers_named_say_and_puts_everything_back(caplog):
    library, other = logging.getLogger("library"), logging.getLogger("other")
    with only_errors("library"):
        library.warning("hidden")
        library.error("an error")
        other.warning("another")
    library.warning("afterwards")
    assert [record.getMessage() for record in caplog.records] == [
        "an error",
        "another",
        "afterwards",
    ]

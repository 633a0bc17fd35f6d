"""The committed page of commands is what the commands say."""

from tests.cli_page import OUT, generate


def test_the_committed_page_is_up_to_date():
    """If not: python -m tests.cli_page"""
    assert OUT.read_text(encoding="utf-8") == generate()

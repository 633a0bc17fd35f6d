"""The counted sizes that are committed are what the configurations say today."""

import pytest

from runtime_py.inspection.sizes import SIZES_FILE, known_sizes
from tests.memory_budget import DOC, NAMES, count, sizes_text, with_table


def test_sizes_toml_is_what_the_script_writes():
    assert SIZES_FILE.read_text() == sizes_text([count(name) for name in NAMES])


def test_the_table_in_the_docs_is_what_the_script_writes():
    text = DOC.read_text()
    assert text == with_table(text)
    assert text.count("\n| `") == sum(len(size.recipes) for size in known_sizes())


BILLIONS = {"e2b": 4.6, "e4b": 7.5, "12b": 11.9, "26b-a4b": 25.2, "31b": 30.7}


@pytest.mark.parametrize(("size", "billions"), BILLIONS.items())
def test_they_agree_with_the_number_of_weights(size, billions):
    """The counts of docs/sizes.md: int8 has a byte for each weight, and the drafter's on top."""
    found = next(known for known in known_sizes() if known.name == size)
    assert billions <= found.recipes["int8"].size_bytes / 1e9 <= billions + 0.6

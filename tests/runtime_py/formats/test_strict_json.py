import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_py.formats.strict_json import MAX_DEPTH, read_json, read_object

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=PLAIN.filter(lambda value: value not in (float("inf"), float("-inf"))))
def test_reads_what_pythons_own_reader_reads(value):
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:  # an infinity inside
        return
    assert read_json(text) == json.loads(text)
    assert read_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": {"b": 1, "c": 2, "b": 1}}', "duplicate key 'b'"),
        ("[NaN]", "NaN is not JSON"),
        ("-Infinity", "-Infinity is not JSON"),
        ("1e999", "beyond a double"),
        ("1" * 41, "41 digits"),
        ("-" + "1" * 5000, "5001 digits"),
        ("[" * (MAX_DEPTH + 1) + "1" + "]" * (MAX_DEPTH + 1), "nested deeper"),
        ("[" * 100_000, "nested deeper"),
        ('{"a":' * 100_000, "nested deeper"),
        ("{", "Expecting"),
        (b"\xff", "utf-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        ("", "Expecting value"),
    ],
)
def test_refuses_what_no_two_readers_agree_on_and_what_no_reader_can_hold(text, said):
    with pytest.raises(ValueError, match=said) as caught:
        read_json(text)
    assert "\n" not in str(caught.value)


def test_the_limits_themselves_are_allowed():
    assert read_json("[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH)
    assert read_json("9" * 40) == 10**40 - 1
    assert read_json("[]", max_bytes=2) == []
    with pytest.raises(ValueError, match="3 bytes, at most 2"):
        read_json("[1]", max_bytes=2)


def test_an_object_is_an_object():
    assert read_object('{"a": 1}') == {"a": 1}
    with pytest.raises(ValueError, match="a JSON list, needed an object"):
        read_object("[]")

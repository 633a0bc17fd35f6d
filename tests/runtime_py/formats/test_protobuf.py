"""Messages are read as onnx reads them, and damaged ones are refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper

from runtime_py.formats.protobuf import Message, ProtobufError


def read(proto) -> Message:
    return Message(memoryview(proto.SerializeToString()))


@given(number=st.integers(-(2**63), 2**63 - 1), name=st.text(max_size=40))
def test_numbers_and_texts_are_what_was_written(number, name):
    message = read(AttributeProto(name=name, i=number))
    assert message.text(1) == name
    assert message.number(3) == number


@given(st.lists(st.integers(0, 2**62), max_size=20))
def test_repeated_numbers_packed_or_not(numbers):
    packed = TensorProto(int64_data=numbers)  # packed in onnx.proto
    plain = TensorProto(dims=numbers)  # not packed
    assert read(packed).numbers(7) == read(plain).numbers(1) == tuple(numbers)


def test_nested_messages_come_in_order():
    nodes = [helper.make_node("Add", ["a", "b"], [f"c{i}"]) for i in range(3)]
    graph = read(helper.make_graph(nodes, "g", [], []))
    assert [node.texts(2) for node in graph.messages(1)] == [["c0"], ["c1"], ["c2"]]
    assert [node.texts(1) for node in graph.messages(1)] == [["a", "b"]] * 3
    assert graph.text(2) == "g"


def test_what_is_absent_is_empty():
    message = Message(memoryview(b""))
    assert (message.number(1), message.text(1), message.texts(1)) == (0, "", [])
    assert message.message(1).number(1) == 0


@pytest.mark.parametrize(
    "data",
    [
        b"\x08",  # no number after its tag
        b"\x0a\x05abc",  # three bytes of five
        b"\x0b",  # a group
        b"\x09abc",  # three bytes of eight
        b"\x08" + b"\xff" * 10,  # a number that does not end
    ],
)
def test_damaged_messages_are_refused(data):
    with pytest.raises(ProtobufError):
        Message(memoryview(data))


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_any_bytes_are_read_or_refused(data):
    try:
        message = Message(memoryview(data))
        for field in range(1, 8):
            message.numbers(field)
            message.text(field)
            list(message.messages(field))
    except ProtobufError:
        pass

from dataclasses import replace

import pytest

from runtime_py.backends.litert.contract import (
    Signatures,
    SignatureSpec,
    check_drafter,
    check_embedder,
    read_target,
)
from runtime_py.errors import RunError
from runtime_py.formats.tensor_spec import TensorSpec

C, D, V, E, G = 24, 16, 48, 8, 2
KV = {
    "kv_cache_k_0": TensorSpec("float32", (1, G, C, E)),
    "kv_cache_v_0": TensorSpec("float32", (1, G, E, C)),
}


def step(name, width, *, prefill=False):
    inputs = {
        "embeddings": TensorSpec("float32", (1, width, D)),
        "input_pos": TensorSpec("int32", (width,)),
        "mask": TensorSpec("float32", (1, 1, width, C)),
    }
    outputs = {
        "logits": TensorSpec("float32", (1, width, V)),
        "activations": TensorSpec("float32", (1, width, D)),
    }
    outputs = {} if prefill else outputs
    return SignatureSpec(name=name, index=0, inputs=inputs | KV, outputs=outputs | KV)


def drafter(**changes):
    inputs = {
        "activations": TensorSpec("float32", (1, 1, 2 * D)),
        "input_pos": TensorSpec("int32", (1,)),
        "mask": TensorSpec("float32", (1, 1, 1, C)),
    }
    outputs = {
        "logits": TensorSpec("float32", (1, 1, V)),
        "projected_activations": TensorSpec("float32", (1, 1, D)),
    }
    spec = SignatureSpec(name="mtp_drafter", index=0, inputs=inputs | KV | changes, outputs=outputs)
    return Signatures("b.litertlm: drafter", {spec.name: spec})


def target(*steps):
    return Signatures("b.litertlm: target", {spec.name: spec for spec in steps})


def changed(spec, name, tensor):
    """The signature with one input replaced, or left out."""
    inputs = {key: value for key, value in spec.inputs.items() if key != name}
    return replace(spec, inputs=inputs | ({name: tensor} if tensor else {}))


def test_widths_come_from_the_shapes_in_ascending_order():
    found = read_target(
        target(
            step("verify_8", 8),
            step("verify", 4),
            step("prefill_64", 64, prefill=True),
            step("decode", 1),
            step("prefill_16", 16, prefill=True),
        )
    )
    assert list(found.verify) == [1, 4, 8]
    assert list(found.prefill) == [16, 64]
    assert (found.vocab_size, found.hidden_size, found.cache_length) == (V, D, C)
    assert found.per_layer_shape == ()


def test_per_layer_embeddings_are_part_of_the_contract():
    shape = TensorSpec("float32", (1, 1, 3, 4))
    decode = changed(step("decode", 1), "per_layer_embeddings", shape)
    assert read_target(target(decode)).per_layer_shape == (3, 4)
    with pytest.raises(RunError, match="verify: per_layer_embeddings is missing"):
        read_target(target(decode, step("verify", 4)))


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("mask", TensorSpec("bool", (1, 1, 4, C)), r"verify: mask is bool.*, needed float32"),
        ("mask", TensorSpec("float32", (1, 1, 4, C + 1)), "verify: mask is"),
        ("embeddings", TensorSpec("float32", (1, 4, D + 1)), "verify: embeddings is"),
        ("kv_cache_k_0", TensorSpec("float32", (1, G, C + 1, E)), "verify: kv_cache_k_0 is"),
        ("kv_cache_k_0", None, "verify: kv_cache_k_0 is missing"),
        ("surprise", TensorSpec("int32", (1,)), "verify: surprise is int32.*, needed no such"),
    ],
)
def test_signatures_that_disagree_are_refused(name, tensor, message):
    verify = changed(step("verify", 4), name, tensor)
    with pytest.raises(RunError, match=message):
        read_target(target(step("decode", 1), verify))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (step("verify", 4), "no signature decode, found verify"),
        (changed(step("decode", 1), "mask", None), "mask is missing, needed float32 of rank 4"),
        (changed(step("decode", 1), "embeddings", TensorSpec("float32", (D,))), "embeddings is"),
        (step("decode", 2), r"decode: input_pos is int32\[2\], needed int32\[1\]"),
        (
            changed(step("decode", 1), "kv_cache_v_0", TensorSpec("float32", (1, G, E, C + 1))),
            r"kv_cache_v_0 is .*, needed float32\[1, G, 24, E\] or float32\[1, G, E, 24\]",
        ),
        (
            changed(step("decode", 1), "kv_cache_k_0", TensorSpec("float32", (1, G, E, C))),
            r"kv_cache_k_0 is .*, needed float32\[1, G, 24, E\], or the same of int8; export",
        ),
    ],
)
def test_a_wrong_decode_graph_is_refused(spec, message):
    with pytest.raises(RunError, match=message):
        read_target(target(spec))


def test_values_may_lie_by_row_or_by_column():
    by_column = step("decode", 1)
    kv = KV | {"kv_cache_v_0": TensorSpec("float32", (1, G, C, E))}
    by_row = replace(by_column, inputs=by_column.inputs | kv, outputs=by_column.outputs | kv)
    assert read_target(target(by_column)).kv == KV
    assert read_target(target(by_row)).kv == kv


def test_kv_rows_may_be_int8_but_in_all_graphs():
    kv = {name: TensorSpec("int8", tensor.shape) for name, tensor in KV.items()}
    decode, verify = (
        replace(spec, inputs=spec.inputs | kv, outputs=spec.outputs | kv)
        for spec in (step("decode", 1), step("verify", 4))
    )
    contract = read_target(target(decode, verify))
    assert contract.kv == kv
    check_drafter(drafter(**kv), contract)
    with pytest.raises(RunError, match=r"verify: kv_cache_\w_0 is float32.*, needed int8"):
        read_target(target(decode, step("verify", 4)))
    with pytest.raises(RunError, match=r"mtp_drafter: kv_cache_\w_0 is float32.*, needed int8"):
        check_drafter(drafter(), contract)


def test_kv_rows_of_other_types_are_refused():
    odd = changed(step("decode", 1), "kv_cache_k_0", TensorSpec("int32", (1, G, C, E)))
    with pytest.raises(RunError, match=r"is int32.*, needed float32.*, or the same of int8"):
        read_target(target(odd))


def test_a_width_must_agree_with_the_name():
    with pytest.raises(RunError, match=r"verify_8: input_pos is int32\[4\], needed int32\[8\]"):
        read_target(target(step("decode", 1), step("verify_8", 4)))


def test_a_drafter_must_fit_its_target():
    contract = read_target(target(step("decode", 1)))
    assert check_drafter(drafter(), contract).name == "mtp_drafter"
    with pytest.raises(RunError, match="the drafter reads kv_cache_k_7, the target has kv_cache_k"):
        check_drafter(drafter(kv_cache_k_7=KV["kv_cache_k_0"]), contract)
    with pytest.raises(RunError, match="mtp_drafter: kv_cache_k_0 is"):
        check_drafter(drafter(kv_cache_k_0=TensorSpec("float32", (1, G, C // 2, E))), contract)
    with pytest.raises(RunError, match="mtp_drafter: activations is"):
        check_drafter(drafter(activations=TensorSpec("float32", (1, 1, D))), contract)


def test_an_embedder_returns_one_row_of_the_target():
    spec = SignatureSpec(
        name="embedder",
        index=0,
        inputs={"token_ids": TensorSpec("int32", (1, 1))},
        outputs={"embeddings": TensorSpec("float32", (1, 1, D))},
    )
    signatures = Signatures("b.litertlm: embedder", {"embedder": spec})
    assert check_embedder(signatures, (D,)) is spec
    with pytest.raises(RunError, match="embeddings is"):
        check_embedder(signatures, (D + 1,))
    with pytest.raises(RunError, match="2 signatures, needed one"):
        check_embedder(Signatures("b", {"a": spec, "b": spec}), (D,))

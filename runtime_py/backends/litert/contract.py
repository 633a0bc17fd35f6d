"""Check the official signature contract: the names and shapes of a .litertlm's tensors.

Source: the bundles that LiteRT-LM 0.18.1 runs.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from runtime_py.errors import RunError
from runtime_py.formats.tensor_spec import TensorSpec

PREFILL_DECODE = "tf_lite_prefill_decode"
EMBEDDER = "tf_lite_embedder"
PER_LAYER_EMBEDDER = "tf_lite_per_layer_embedder"
MTP_DRAFTER = "tf_lite_mtp_drafter"

_TARGET_NAME = re.compile(r"decode|verify(_\d+)?|prefill_\d+")
_KV_NAME = re.compile(r"kv_cache_[kv]_\d+")
_KV_TYPES = ("float32", "int8")


@dataclass(frozen=True, kw_only=True)
class SignatureSpec:
    """A signature's tensors, in the order of the model's buffers."""

    name: str
    index: int
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


@dataclass(frozen=True)
class Signatures:
    """The signatures of one model, by name."""

    where: str  # file and section, for messages
    specs: dict[str, SignatureSpec]

    def named(self, name: str) -> SignatureSpec:
        if name not in self.specs:
            raise RunError(
                f"{self.where}: no signature {name}, found {', '.join(self.specs) or 'none'}; "
                "export again"
            )
        return self.specs[name]

    def only(self) -> SignatureSpec:
        if len(self.specs) != 1:
            raise RunError(f"{self.where}: {len(self.specs)} signatures, needed one; export again")
        return next(iter(self.specs.values()))

    def expect(self, spec: SignatureSpec, name: str, found: TensorSpec | None, need: str) -> None:
        """Raises RunError unless tensor `name` of a signature exists and is as needed."""
        shown = "missing" if found is None else str(found)
        if shown != need:
            raise RunError(
                f"{self.where}: {spec.name}: {name} is {shown}, needed {need}; export again"
            )


@dataclass(frozen=True, kw_only=True)
class TargetContract:
    """The target's signatures by width, ascending, and the sizes they share."""

    prefill: dict[int, SignatureSpec]  # KV only
    verify: dict[int, SignatureSpec]  # KV, logits and hidden states; width 1 is decode
    kv: dict[str, TensorSpec]  # kv_cache_k_i [1, G, C, E]; kv_cache_v_i alike or [1, G, E, C]

    @property
    def decode(self) -> SignatureSpec:
        return self.verify[1]

    @property
    def kv_layers(self) -> set[int]:
        """The layers that own KV rows."""
        return {int(name.rpartition("_")[2]) for name in self.kv}

    # Cached, because every call asks for them.
    @cached_property
    def cache_length(self) -> int:
        return self.decode.inputs["mask"].shape[-1]

    @cached_property
    def hidden_size(self) -> int:
        return self.decode.inputs["embeddings"].shape[-1]

    @cached_property
    def vocab_size(self) -> int:
        return self.decode.outputs["logits"].shape[-1]

    @property
    def embeddings_shape(self) -> tuple[int, ...]:
        """[D]: the embedding of one token."""
        return (self.hidden_size,)

    @property
    def per_layer_shape(self) -> tuple[int, ...]:
        """[L, P] of one token; empty for a model without per-layer embeddings."""
        tensor = self.decode.inputs.get("per_layer_embeddings")
        return tensor.shape[2:] if tensor else ()


def read_target(model: Signatures) -> TargetContract:
    """Raises RunError if the signatures are not a target's, or disagree with each other."""
    decode = model.named("decode")
    # Only the ranks; _check_step compares the sizes.
    for name, rank in (("embeddings", 3), ("mask", 4), ("logits", 3)):
        tensor = (decode.inputs | decode.outputs).get(name)
        if tensor is None or len(tensor.shape) != rank:
            model.expect(decode, name, tensor, f"float32 of rank {rank}")
    kv = {name: tensor for name, tensor in decode.inputs.items() if _KV_NAME.fullmatch(name)}
    by_kind: dict[bool, dict[int, SignatureSpec]] = {True: {}, False: {}}
    for name, spec in model.specs.items():
        if _TARGET_NAME.fullmatch(name):
            by_kind[name.startswith("prefill")][_width(model, spec)] = spec
    contract = TargetContract(
        prefill=dict(sorted(by_kind[True].items())),
        verify=dict(sorted(by_kind[False].items())),
        kv=kv,
    )
    _check_kv(model, contract)
    for width, spec in _steps(contract):
        _check_step(model, contract, width, spec)
    return contract


def check_embedder(model: Signatures, row_shape: tuple[int, ...]) -> SignatureSpec:
    """Raises RunError unless the signature maps token_ids [1, 1] to one row of that shape."""
    spec = model.only()
    inputs = {"token_ids": TensorSpec("int32", (1, 1))}
    outputs = {"embeddings": TensorSpec("float32", (1, 1, *row_shape))}
    _check(model, spec, inputs, outputs)
    return spec


def check_drafter(model: Signatures, target: TargetContract) -> SignatureSpec:
    """Raises RunError if the drafter does not fit the target, or reads KV rows it lacks."""
    spec = model.only()
    kv = [name for name in spec.inputs if _KV_NAME.fullmatch(name)]
    for name in kv:
        if name not in target.kv:
            raise RunError(
                f"the drafter reads {name}, the target has {', '.join(target.kv)}; "
                "export both together"
            )
    inputs = {
        "activations": TensorSpec("float32", (1, 1, 2 * target.hidden_size)),
        "input_pos": TensorSpec("int32", (1,)),
        "mask": TensorSpec("float32", (1, 1, 1, target.cache_length)),
    }
    outputs = {
        "logits": TensorSpec("float32", (1, 1, target.vocab_size)),
        "projected_activations": TensorSpec("float32", (1, 1, target.hidden_size)),
    }
    _check(model, spec, inputs | {name: target.kv[name] for name in kv}, outputs)
    return spec


def _steps(contract: TargetContract) -> Iterator[tuple[int, SignatureSpec]]:
    yield from contract.verify.items()
    yield from contract.prefill.items()


def _width(model: Signatures, spec: SignatureSpec) -> int:
    """Tokens per call, from the shape; a number in the name must agree."""
    positions = spec.inputs.get("input_pos")
    width = positions.shape[0] if positions and len(positions.shape) == 1 else 0
    stated = re.search(r"\d+", spec.name)
    needed = 1 if spec.name == "decode" else int(stated.group()) if stated else max(width, 1)
    model.expect(spec, "input_pos", positions, str(TensorSpec("int32", (needed,))))
    return needed


def _check_kv(model: Signatures, contract: TargetContract) -> None:
    decode, length = contract.decode, contract.cache_length
    if not contract.kv:
        model.expect(decode, "kv_cache_k_0", None, f"float32[1, G, {length}, E]")
    for name, tensor in contract.kv.items():
        is_key = name.startswith("kv_cache_k")
        row_dims = (2,) if is_key else (2, 3)
        fits = len(tensor.shape) == 4 and any(tensor.shape[dim] == length for dim in row_dims)
        if not fits or tensor.dtype not in _KV_TYPES:
            by_row = f"float32[1, G, {length}, E]"
            need = by_row if is_key else f"{by_row} or float32[1, G, E, {length}]"
            model.expect(decode, name, tensor, f"{need}, or the same of int8")


def _check_step(
    model: Signatures, contract: TargetContract, width: int, spec: SignatureSpec
) -> None:
    inputs = {
        "embeddings": TensorSpec("float32", (1, width, contract.hidden_size)),
        "input_pos": TensorSpec("int32", (width,)),
        "mask": TensorSpec("float32", (1, 1, width, contract.cache_length)),
    }
    if contract.per_layer_shape:
        shape = (1, width, *contract.per_layer_shape)
        inputs["per_layer_embeddings"] = TensorSpec("float32", shape)
    outputs = {
        "logits": TensorSpec("float32", (1, width, contract.vocab_size)),
        "activations": TensorSpec("float32", (1, width, contract.hidden_size)),
    }
    computes_logits = width in contract.verify and contract.verify[width] is spec
    _check(model, spec, inputs | contract.kv, (outputs if computes_logits else {}) | contract.kv)


def _check(
    model: Signatures,
    spec: SignatureSpec,
    inputs: dict[str, TensorSpec],
    outputs: dict[str, TensorSpec],
) -> None:
    for found, needed in ((spec.inputs, inputs), (spec.outputs, outputs)):
        for name in needed.keys() | found.keys():
            need = str(needed[name]) if name in needed else "no such tensor"
            model.expect(spec, name, found.get(name), need)

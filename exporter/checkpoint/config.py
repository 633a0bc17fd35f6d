"""config.json -> spec. Refuses, by name, settings that change the result and are not supported."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporter.checkpoint.fields import Fields
from exporter.errors import ExportError
from exporter.graph.spec import (
    KINDS,
    CentroidSpec,
    DrafterSpec,
    ExpertSpec,
    Kind,
    LayerSpec,
    RopeSpec,
    TargetSpec,
)
from runtime_py.terminal.printable import shown

TARGET_TYPES = {"gemma4": "gemma4_text", "gemma4_unified": "gemma4_unified_text"}
DRAFTER_TYPES = {
    "gemma4_assistant": "gemma4_text",
    "gemma4_unified_assistant": "gemma4_unified_text",
}
TEXT_TYPES = frozenset(TARGET_TYPES.values())

# Keys of the placeholder tokens of other modalities, with transformers' defaults.
PLACEHOLDERS = {"image_token_id": 258_880, "audio_token_id": 258_881, "video_token_id": 258_884}

MAX_LAYERS = 512
MAX_EXPERTS = 2**12
DEFAULT_GLOBAL_HEAD_DIM = 512  # transformers' default when config.json has no global_head_dim
DEFAULT_ROPES: dict[str, dict[str, Any]] = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.25,
        "rope_theta": 1_000_000.0,
    },
}


def parse_target(config: Mapping[str, Any], where: str) -> TargetSpec:
    """The spec of a target, from the object in its config.json."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in DRAFTER_TYPES:
        raise ExportError(
            f"{where}: model_type {model_type} is a drafter, needed a target; give the target as "
            "the model and this folder as the drafter"
        )
    text = _text_fields(config, where, TARGET_TYPES)
    _refuse_unbuilt(text)
    if text.values.get("model_type") == "gemma4_unified_text":
        text.refuse("enable_moe_block", (False, None), "a unified model has no experts")
    vocab_size = text.integer("vocab_size")
    per_layer_size = 0
    if text.values.get("model_type") != "gemma4_unified_text":
        per_layer_size = text.integer("hidden_size_per_layer_input", low=0)
    placeholder_ids = () if text.values is config else _placeholders(config, vocab_size)
    pad_token_id = text.integer("pad_token_id", 0, vocab_size - 1, 0) if placeholder_ids else 0
    return TargetSpec(
        vocab_size=vocab_size,
        hidden_size=text.integer("hidden_size"),
        sliding_window=text.integer("sliding_window"),
        rms_norm_eps=text.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        layers=_target_layers(text),
        ropes=_ropes(text),
        logit_softcap=(
            text.number("final_logit_softcapping", 0.0, 1e6)
            if text.optional("final_logit_softcapping")
            else None
        ),
        tied_head=Fields(config, where).flag("tie_word_embeddings", True),
        per_layer_size=per_layer_size,
        per_layer_vocab_size=(
            text.integer("vocab_size_per_layer_input", low=vocab_size) if per_layer_size else 0
        ),
        placeholder_ids=placeholder_ids,
        pad_token_id=pad_token_id,
    )


def max_context_length(config: Mapping[str, Any], where: str) -> int | None:
    """The context length that a target was trained for, if its config.json says so."""
    text = config.get("text_config")
    fields = Fields(text if isinstance(text, dict) else config, where)
    if not fields.optional("max_position_embeddings"):
        return None
    return fields.integer("max_position_embeddings", high=2**31)


def _placeholders(config: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    """The placeholder tokens of a multimodal checkpoint; a text-only one has none."""
    ids = [config.get(key, default) for key, default in PLACEHOLDERS.items()]
    return tuple(item for item in ids if isinstance(item, int) and 0 <= item < vocab_size)


def parse_drafter(config: Mapping[str, Any], where: str, target: TargetSpec) -> DrafterSpec:
    """The spec of a drafter, checked against its target."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and (model_type in TARGET_TYPES or model_type in TEXT_TYPES):
        raise ExportError(
            f"{where}: model_type {model_type} is a target, needed a drafter "
            f"({' or '.join(DRAFTER_TYPES)}); give the …-assistant checkpoint as the drafter"
        )
    top = Fields(config, where)
    text = _text_fields(config, where, DRAFTER_TYPES)
    _refuse_unbuilt(text)
    text.refuse("enable_moe_block", (False, None), "a drafter has no experts")
    text.refuse("hidden_size_per_layer_input", (0, None), "a drafter has no per-layer embeddings")
    vocab_size, hidden_size = text.integer("vocab_size"), text.integer("hidden_size")
    if vocab_size < target.vocab_size:
        raise ExportError(
            f"{where}: vocab_size is {vocab_size} and the target's is {target.vocab_size}; use the "
            "drafter made for this target, or if tokens were added to it, --no-drafter"
        )
    _match(where, "vocab_size", vocab_size, target.vocab_size)
    target_hidden_size = top.integer("backbone_hidden_size")
    _match(where, "backbone_hidden_size", target_hidden_size, target.hidden_size)
    return DrafterSpec(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        target_hidden_size=target_hidden_size,
        sliding_window=text.integer("sliding_window"),
        rms_norm_eps=text.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        layers=_drafter_layers(text, target),
        ropes=_ropes(text),
        tied_head=top.flag("tie_word_embeddings", True),
        centroids=_centroids(top, vocab_size),
    )


def _text_fields(config: Mapping[str, Any], where: str, types: Mapping[str, str]) -> Fields:
    """The object that holds the decoder's numbers: text_config, or the whole file."""
    model_type = config.get("model_type")
    top = Fields(config, where)
    if types is TARGET_TYPES and isinstance(model_type, str) and model_type in TEXT_TYPES:
        return top
    if not isinstance(model_type, str) or model_type not in types:
        raise ExportError(
            f"{where}: model_type {shown(repr(model_type))} is not a Gemma 4 "
            f"{'target' if types is TARGET_TYPES else 'drafter'}; needed {' or '.join(types)}"
        )
    text = top.fields("text_config")
    text.refuse("model_type", (types[model_type], None), f"inside a {model_type}")
    return text


def _refuse_unbuilt(text: Fields) -> None:
    text.refuse("attention_bias", (False, None), "projections with a bias are not built")
    text.refuse("hidden_activation", ("gelu_pytorch_tanh", None), "another activation")
    text.refuse("use_bidirectional_attention", ("vision", None), "an encoder, not a decoder")
    text.refuse("rope_scaling", (None,), "positions other than rope_parameters'")


@dataclass(frozen=True)
class _Shape:
    """The configuration of one layer's attention."""

    kind: Kind
    head_dim: int
    num_kv_heads: int


def _shapes(text: Fields) -> list[_Shape]:
    count = text.integer("num_hidden_layers", high=MAX_LAYERS)
    kinds = _kinds(text, count)
    overrides = _overrides(text, kinds)
    shapes = []
    for index, kind in enumerate(kinds):
        layer = Fields({**text.values, **overrides.get(index, {})}, f"{text.where}: layer {index}")
        head_dim = layer.integer("head_dim", low=2, high=2**16)
        if head_dim % 2:
            raise layer.wrong("head_dim", "an even number")
        num_kv_heads = layer.integer("num_key_value_heads")
        if text.integer("num_attention_heads") % num_kv_heads:
            raise layer.wrong(
                "num_key_value_heads", f"a divisor of {text.integer('num_attention_heads')}"
            )
        shapes.append(_Shape(kind, head_dim, num_kv_heads))
    return shapes


def _kinds(text: Fields, count: int) -> list[Kind]:
    kinds = text.values.get("layer_types")
    if kinds is None:  # transformers' default: every sixth layer has full attention
        kinds = [KINDS[(index + 1) % 6 == 0] for index in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count or any(k not in KINDS for k in kinds):
        raise text.wrong("layer_types", f"{count} times {' or '.join(KINDS)}")
    if kinds[-1] != "full_attention":
        raise text.wrong("layer_types", "full_attention as the last layer")
    return kinds


def _overrides(text: Fields, kinds: list[Kind]) -> dict[int, dict[str, Any]]:
    """By layer, the values that differ from the global ones."""
    if text.optional("per_layer_config"):
        return _explicit_overrides(text.fields("per_layer_config"), len(kinds))
    full = {"head_dim": text.integer("global_head_dim", default=DEFAULT_GLOBAL_HEAD_DIM)}
    if text.optional("num_global_key_value_heads") and text.flag("attention_k_eq_v", False):
        full["num_key_value_heads"] = text.integer("num_global_key_value_heads")
    return {index: full for index, kind in enumerate(kinds) if kind == "full_attention"}


def _explicit_overrides(layers: Fields, count: int) -> dict[int, dict[str, Any]]:
    overrides = {}
    for key in layers.values:
        if not (key.isascii() and key.isdigit()) or len(key) > 4 or int(key) >= count:
            raise layers.wrong(key, f"layer numbers below {count} as keys")
        values = layers.fields(key).values
        for name in values:
            if name not in ("head_dim", "num_key_value_heads"):
                raise ExportError(
                    f"{layers.where}: {key}: {shown(repr(name))} per layer is not supported; "
                    "supported: head_dim and num_key_value_heads"
                )
        overrides[int(key)] = dict(values)
    return overrides


def _target_layers(text: Fields) -> tuple[LayerSpec, ...]:
    shapes = _shapes(text)
    num_shared = text.integer("num_kv_shared_layers", 0, len(shapes) - 1, default=0)
    first_shared = len(shapes) - num_shared
    donors = {shape.kind: index for index, shape in enumerate(shapes[:first_shared])}
    width = text.integer("intermediate_size")
    doubled = 2 if text.flag("use_double_wide_mlp", False) else 1
    experts = _experts(text)
    layers = []
    for index, shape in enumerate(shapes):
        shared = index >= first_shared
        source = donors.get(shape.kind) if shared else index
        if source is None or _rows(shapes[source]) != _rows(shape):
            raise text.wrong(
                "num_kv_shared_layers",
                f"a layer before {first_shared} of layer {index}'s kind and head sizes",
            )
        layers.append(
            LayerSpec(
                index=index,
                kind=shape.kind,
                num_heads=text.integer("num_attention_heads"),
                num_kv_heads=shape.num_kv_heads,
                head_dim=shape.head_dim,
                intermediate_size=width * (doubled if shared else 1),
                kv_source=source,
                values_from_keys=(
                    shape.kind == "full_attention" and text.flag("attention_k_eq_v", False)
                ),
                experts=experts,
            )
        )
    return tuple(layers)


def _experts(text: Fields) -> ExpertSpec | None:
    if not text.flag("enable_moe_block", False):
        return None
    num_experts = text.integer("num_experts", high=MAX_EXPERTS)
    return ExpertSpec(
        num_experts=num_experts,
        top_k=text.integer("top_k_experts", high=num_experts),
        intermediate_size=text.integer("moe_intermediate_size"),
    )


def _rows(shape: _Shape) -> tuple[int, int]:
    return shape.head_dim, shape.num_kv_heads


def _drafter_layers(text: Fields, target: TargetSpec) -> tuple[LayerSpec, ...]:
    shapes = _shapes(text)
    text.refuse(
        "num_kv_shared_layers", (0, len(shapes), None), "every drafter layer reads the target's KV"
    )
    doubled = 2 if text.flag("use_double_wide_mlp", False) else 1
    layers = []
    for index, shape in enumerate(shapes):
        donor_index = target.donors.get(shape.kind)
        if donor_index is None:
            raise ExportError(
                f"{text.where}: layer {index} is {shape.kind} and the target has no such layer; "
                "use the drafter made for this target"
            )
        donor = target.layers[donor_index]
        where = f"{text.where}: layer {index} ({shape.kind})"
        _match(where, "head_dim", shape.head_dim, donor.head_dim)
        _match(where, "num_key_value_heads", shape.num_kv_heads, donor.num_kv_heads)
        layers.append(
            LayerSpec(
                index=index,
                kind=shape.kind,
                num_heads=text.integer("num_attention_heads"),
                num_kv_heads=donor.num_kv_heads,
                head_dim=donor.head_dim,
                intermediate_size=text.integer("intermediate_size") * doubled,
                kv_source=donor_index,
                values_from_keys=False,
                in_drafter=True,
            )
        )
    return tuple(layers)


def _match(where: str, key: str, found: int, needed: int) -> None:
    if found != needed:
        raise ExportError(
            f"{where}: {key} is {found} and the target's is {needed}; use the drafter made for "
            "this target"
        )


def _ropes(text: Fields) -> dict[Kind, RopeSpec]:
    source = text.fields("rope_parameters") if text.optional("rope_parameters") else None
    ropes = Fields(DEFAULT_ROPES, text.where) if source is None else source
    sizes = {shape.kind: shape.head_dim for shape in _shapes(text)}
    return {kind: _rope(ropes.fields(kind), head_dim) for kind, head_dim in sizes.items()}


def _rope(rope: Fields, head_dim: int) -> RopeSpec:
    rope.refuse("rope_type", ("default", "proportional"), "an unknown kind of positions")
    theta = rope.number("rope_theta", 0.0, 1e12)
    if rope.values.get("rope_type", "default") == "default":
        return RopeSpec(theta=theta, head_dim=head_dim)
    return RopeSpec(
        theta=theta,
        head_dim=head_dim,
        partial_rotary_factor=rope.number("partial_rotary_factor", 0.0, 1.0, 1.0),
        factor=rope.number("factor", 0.0, 1e6, 1.0),
    )


def _centroids(top: Fields, vocab_size: int) -> CentroidSpec | None:
    # num_centroids alone means nothing: the 12B's drafter has it and a dense head.
    if not top.flag("use_ordered_embeddings", False):
        return None
    num_centroids = top.integer("num_centroids", high=vocab_size)
    if vocab_size % num_centroids:
        raise top.wrong("num_centroids", f"a divisor of the vocabulary of {vocab_size}")
    top_k = top.integer("centroid_intermediate_top_k", high=num_centroids)
    return CentroidSpec(num_centroids=num_centroids, top_k=top_k)

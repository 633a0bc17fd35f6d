"""Normalize tensor names: drop wrappers' prefixes and tensors that the export does not need."""

import re
from collections.abc import Iterable, Mapping

from exporter.errors import ExportError
from exporter.graph.spec import DrafterSpec, TargetSpec
from runtime_py.terminal.printable import shown

# Prefixes of multimodal checkpoints, which wrap the decoder, and of trainers (peft, torch's data
# parallelism), which wrap the model. No decoder tensor's own name begins with one.
WRAPPERS = ("model.", "language_model.", "base_model.", "module.")
COMPILED = "_orig_mod."  # of torch.compile, which may wrap single layers too

# Parts of a multimodal checkpoint that a text export does not need.
OTHER_MODALITIES = (
    "vision_tower.",
    "vision_embedder.",
    "audio_tower.",
    "embed_vision.",
    "embed_audio.",
)

# Names of unsupported checkpoints' tensors -> what they are, and what to do.
TELLING = {
    r"\.lora_[AB]\.": "an adapter that is not merged; merge it (peft: merge_and_unload, then "
    "save_pretrained) and give that folder",
    r"\.(scales|biases)$": "quantized by MLX; give the checkpoint that it was made from",
}

# Layers that share another layer's KV rows may still carry their unused projections.
_KV_PART = re.compile(r"layers\.(\d{1,4})\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\.weight")


def normalised_names(names: Iterable[str], where: str) -> dict[str, str]:
    """Normalised name -> name in the file; other modalities are left out."""
    known: dict[str, str] = {}
    for name in names:
        short = name.replace(COMPILED, "")
        while wrapper := next((w for w in WRAPPERS if short.startswith(w)), ""):
            short = short.removeprefix(wrapper)
        if short.startswith(OTHER_MODALITIES):
            continue
        if short in known:
            raise ExportError(
                f"{where}: {shown(name)} and {shown(known[short])} are the same tensor, "
                "needed it once; save the checkpoint again"
            )
        known[short] = name
    return known


def is_unused(name: str, spec: TargetSpec | DrafterSpec) -> bool:
    """Whether the model does not need this tensor, so that transformers ignores it too."""
    match = _KV_PART.fullmatch(name)
    if match is not None:
        index = int(match[1])
        return index < len(spec.layers) and not spec.layers[index].owns_kv
    if isinstance(spec, TargetSpec):
        return name == "lm_head.weight" and spec.tied_head
    if name.startswith("masked_embedding."):
        return spec.centroids is None
    return name in ("lm_head.weight", "embed_tokens.weight")


def check_names(
    found: Mapping[str, object],
    needed: Mapping[str, object],
    spec: TargetSpec | DrafterSpec,
    where: str,
) -> None:
    """Refuse a checkpoint with tensors missing or unknown."""
    missing = [name for name in needed if name not in found]
    unknown = [name for name in found if name not in needed and not is_unused(name, spec)]
    for part, what in TELLING.items():
        telling = [name for name in unknown if re.search(part, name)]
        if telling:
            raise ExportError(f"{where}: {_list(telling)}: {what}")
    if missing:
        others = f", found {_list(unknown)}" if unknown else ""
        raise ExportError(
            f"{where}: no tensor {_list(missing)}, needed by its config.json{others}; "
            "download or save the whole checkpoint again"
        )
    if unknown:
        raise ExportError(
            f"{where}: unknown tensor {_list(unknown)}: this model has a part that config.json "
            "does not describe or that is not supported"
        )


def _list(names: list[str]) -> str:
    first = shown(names[0])
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more ({len(names)} in all)"

"""The .tflite files, tokenizer and chat template -> one model.litertlm for the official runtime."""

import logging
import re
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from exporter.lower.litert import vendor
from exporter.lower.litert.modules import OFFICIAL_VERIFY_WIDTH
from exporter.lower.litert.tied_table import attach, detach
from exporter.text.files import TextFiles
from runtime_py.bundle.manifest import SlidingEntry
from runtime_py.bundle.sliding import KEY, write_sliding

logger = logging.getLogger(__name__)

# File stem -> name of the section's TfLiteModelType, in the order of the sections. The embedder
# lies right before the decoder, into which it may reach (see tied_table).
SECTIONS = {
    "per_layer_embedder": "PER_LAYER_EMBEDDER",
    "embedder": "EMBEDDER",
    "prefill_decode": "PREFILL_DECODE",
    "mtp_drafter": "MTP_DRAFTER",
}
# LiteRT-LM 0.18.1 passes every message as a list of pieces, even a plain text. The template of a
# text-only fine-tune would print the list; the recorded reference passed a string.
ONE_TEXT_IS_A_STRING = """\
{%- set plain = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set pieces = message.content -%}
{%- if pieces is sequence and pieces is not string and pieces | length == 1
    and pieces[0].type == 'text' -%}
{%- set message = dict(message, content=pieces[0].text) -%}
{%- endif -%}
{%- set plain.messages = plain.messages + [message] -%}
{%- endfor -%}
{%- set messages = plain.messages -%}
{{- '' }}"""  # what follows keeps its leading spaces
_EVERY_TOKEN = 1 << 20  # top_k for all tokens: the runtime refuses 0, which transformers uses
# Pieces of Gemma's syntax that the runtime itself parses: proto field -> token's name in
# tokenizer_config.json.
SYNTAX_TOKENS = {
    "code_fence_start": "stc_token",
    "code_fence_end": "etc_token",
    "open_quote": "escape_token",
    "close_quote": "escape_token",
    "function_response_start": "str_token",
}


def pack(
    folder: Path, text: TextFiles, cache_length: int, stamp: Mapping[str, str], out: Path
) -> Path:
    """Write `out`, streaming the .tflite files of `folder` into it.

    Args:
        folder: holds what `lower` wrote.
        text: the target's tokenizer, chat template and token ids.
        cache_length: KV rows the graphs were traced with.
        stamp: what the file says about itself, as `version_stamp` makes it.
        out: usually model.litertlm.
    """
    library = vendor.bundle_builder()
    builder, types = library.LitertLmFileBuilder(), library.TfLiteModelType
    for key, value in stamp.items():
        builder.add_system_metadata(library.Metadata(key, value, library.DType.STRING))
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        description = Path(scratch) / "llm_metadata.pb"  # the builder takes a path only
        description.write_bytes(llm_metadata(text, cache_length).SerializeToString())
        builder.add_llm_metadata(str(description))
        builder.add_hf_tokenizer(str(text.tokenizer))
        models = {stem: folder / f"{stem}.tflite" for stem in SECTIONS}
        tied = detach(models["embedder"], models["prefill_decode"], Path(scratch) / "embedder")
        if tied is not None:
            models["embedder"] = tied.embedder
        for stem, model in models.items():
            if model.is_file():
                builder.add_tflite_model(str(model), types[SECTIONS[stem]])
        with out.open("wb") as file:
            builder.build(file)
        if tied is not None:
            attach(out, tied)
    logger.debug("%s: %.1f MB", out.name, out.stat().st_size / 1e6)
    return out


def version_stamp(recipe_name: str, sliding: SlidingEntry | None) -> dict[str, str]:
    """What made the file, one entry per tool by package name, and which layers slide."""
    try:
        exporter = metadata.version("gemma-export")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        exporter = "source"
    tools = {package: metadata.version(package) for package in sorted(vendor.PACKAGES)}
    said = {} if sliding is None else {KEY: write_sliding(sliding)}
    return {"gemma-export": exporter, "recipe": recipe_name, **tools, **said}


def llm_metadata(text: TextFiles, cache_length: int) -> Any:
    """The LlmMetadata proto: what the official runtime needs to know besides the graphs."""
    tokens = _token_names(text.tokenizer_config)
    template = _official_template(text)
    description = vendor.llm_metadata()
    # Near its limit the official runtime still verifies its full width. A write past the last row
    # is clamped over committed rows and gives wrong tokens, so the limit leaves room for one
    # (LiteRT-LM 0.18.1).
    description.max_num_tokens = cache_length - (OFFICIAL_VERIFY_WIDTH - 1)
    description.llm_model_type.gemma4.SetInParent()
    for field, token in SYNTAX_TOKENS.items():
        setattr(description.llm_model_type.gemma4, field, tokens.get(token, ""))
    description.start_token.token_ids.ids.append(text.bos_token_id)
    for token_id in text.stop_token_ids:
        description.stop_tokens.add().token_ids.ids.append(token_id)
    if text.pad_token_id is not None:
        description.pad_token.token_ids.ids.append(text.pad_token_id)
    _set_sampler(description.sampler_params, text.generation)
    description.jinja_prompt_template = template
    description.supports_thinking = "enable_thinking" in template
    description.supports_function_calling = "tools" in template
    if "soc_token" in tokens and "eoc_token" in tokens:
        channel = description.channels.add()
        channel.channel_name = "thought"
        channel.start, channel.end = f"{tokens['soc_token']}thought\n", tokens["eoc_token"]
    return description


def _set_sampler(sampler: Any, generation: Mapping[str, Any]) -> None:
    sampler.type = vendor.top_p()
    if not generation.get("do_sample", False):
        # Greedy. LiteRT-LM 0.18.1 implements neither GREEDY nor TOP_K: every message without a
        # sampler of its own would fail ("UNIMPLEMENTED: Sampler type: 3").
        sampler.k, sampler.p, sampler.temperature = 1, 1.0, 1.0
        return
    # transformers' defaults, where generation_config.json leaves one out.
    sampler.k = generation.get("top_k", 50) or _EVERY_TOKEN
    sampler.p = generation.get("top_p", 1.0)
    sampler.temperature = generation.get("temperature", 1.0)


def _token_names(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by name ("bos_token", "soc_token"), from either place that holds them."""
    nested = tokenizer_config.get("model_specific_special_tokens", {})
    tokens = {}
    for key, value in {**tokenizer_config, **nested}.items():
        if key.endswith("_token"):
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                tokens[key] = text
    return tokens


def _official_template(text: TextFiles) -> str:
    """The chat template, changed for the runtime's template engine; "" for none.

    minijinja has no dict.get; litert-torch replaces it likewise, in
    generative/export_hf/core/litert_lm_builder.py.
    """
    if not text.chat_template:
        return ""
    template = re.sub(r"\.get\(\s*(['\"][^'\"]+['\"])\s*\)", r"[\1]", text.chat_template)
    return ONE_TEXT_IS_A_STRING + template

"""The tokenizer: byte-level BPE with 4096 pieces and Gemma 4's control tokens and turn format."""

import json
import logging
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .corpus import Chat, Document, chats

log = logging.getLogger(__name__)

VOCAB_SIZE = 4096
# The names are Gemma 4's; so are the first five ids. The others get the next ids in this order.
CONTROL_TOKENS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "<|turn>",
    "<turn|>",
    "<|channel>",
    "<channel|>",
    "<|think|>",
    "<|tool>",
    "<tool|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    '<|"|>',
    "<|image>",
    "<image|>",
    "<|image|>",
    "<|audio>",
    "<audio|>",
    "<|audio|>",
    "<|video|>",
)
PAD, EOS, BOS = (CONTROL_TOKENS.index(name) for name in ("<pad>", "<eos>", "<bos>"))
END_OF_TURN = CONTROL_TOKENS.index("<turn|>")

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{- '<|turn>' + role + '\\n' + (message['content'] | trim) + '<turn|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|turn>model\\n' -}}
{%- endif -%}
"""

TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 2048,
    "padding_side": "left",
    "clean_up_tokenization_spaces": False,
    "pad_token": "<pad>",
    "eos_token": "<eos>",
    "bos_token": "<bos>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
    "extra_special_tokens": list(CONTROL_TOKENS[5:]),
}


def train(documents: list[Document]) -> Tokenizer:
    """Learn the merges on pages and chats. The tokenizer adds no token by itself, not even bos."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [document.text for document in documents]
    texts += [chat.request for document in documents for chat in chats(document)]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.dumps(TOKENIZER_CONFIG, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def encode_request(tokenizer: Tokenizer, request: str) -> list[int]:
    """Return the tokens of one user turn and the opening of the model's turn, with bos."""
    text = f"<bos><|turn>user\n{request}<turn|>\n<|turn>model\n"
    return tokenizer.encode(text).ids


def encode_chat(tokenizer: Tokenizer, chat: Chat) -> list[int]:
    """Return the tokens of a whole exchange, up to and including the model's end of turn."""
    return encode_request(tokenizer, chat.request) + tokenizer.encode(chat.answer + "<turn|>\n").ids

"""model.litertlm: its sections, and what it tells the official runtime about the model."""

import json
import zlib

import jinja2
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from litert_lm_builder import litertlm_builder
from litert_lm_builder.runtime.proto import sampler_params_pb2

from exporter.lower.litert.pack import llm_metadata, pack, version_stamp
from exporter.text.files import read_text_files
from runtime_py.bundle.manifest import SlidingEntry
from runtime_py.bundle.sliding import KEY
from runtime_py.formats.litertlm import read_metadata

STAMP = version_stamp("int8", SlidingEntry(window=128, layers=(0, 2)))
TEMPLATE = "{{ bos_token }}{% generation %}{{ message.get('content') }}{% endgeneration %}"


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write(folder, "config.json", {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0})
    write(folder, "tokenizer.json", {"version": "1.0"})
    write(folder, "tokenizer_config.json", {"bos_token": "<bos>"})
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def write(folder, name, data):
    (folder / name).write_text(json.dumps(data))


def model_of_one_weight(name: str) -> bytes:
    """The least that `pack` looks at: a named weight behind the flatbuffer."""
    buffer = schema.BufferT()
    buffer.offset, buffer.size = 1024, 4
    tensor = schema.TensorT()
    tensor.name, tensor.buffer = name, 0
    graph = schema.SubGraphT()
    graph.tensors = [tensor]
    model = schema.ModelT()
    model.buffers, model.subgraphs = [buffer], [graph]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model)).ljust(1024) + b"data"


def test_the_sections_hold_the_files_byte_for_byte(checkpoint, tmp_path):
    stems = ("embedder", "prefill_decode", "mtp_drafter")
    models = [model_of_one_weight(stem) for stem in stems]
    for stem, model in zip(stems, models, strict=True):
        (tmp_path / f"{stem}.tflite").write_bytes(model)
    out = pack(tmp_path, read_text_files(checkpoint), 64, STAMP, tmp_path / "model.litertlm")

    unpacked = tmp_path / "unpacked"
    litertlm_builder.unpack(str(out), str(unpacked))

    found = sorted(path.read_bytes() for path in unpacked.glob("*.tflite"))
    assert found == sorted(models)
    toml = (unpacked / "model.toml").read_text()
    for stem in stems:
        assert f'model_type = "{stem}"' in toml.replace("tf_lite_", "")
    (tokenizer,) = unpacked.glob("*Tokenizer*")
    assert json.loads(zlib.decompress(tokenizer.read_bytes()[8:])) == {"version": "1.0"}
    for key, value in STAMP.items():
        assert f'"{key}"' in toml
        assert f'"{value}"' in toml
    assert read_metadata(out).items() >= STAMP.items()
    assert STAMP[KEY] == "128 0 2"


def test_tokens_template_and_limit_come_from_the_checkpoint(checkpoint):
    write(checkpoint, "generation_config.json", {"eos_token_id": [1, 106]})
    found = llm_metadata(read_text_files(checkpoint), 64)
    assert found.llm_model_type.WhichOneof("model_type") == "gemma4"
    assert list(found.start_token.token_ids.ids) == [2]
    assert [list(stop.token_ids.ids) for stop in found.stop_tokens] == [[1], [106]]
    assert list(found.pad_token.token_ids.ids) == [0]
    # verify writes 4 rows, the last of them must be row 63 at most
    assert found.max_num_tokens == 61
    said = (
        "{{ bos_token }}{% if true %}{{ message['content'] }}{% endif %}"  # not transformers' tag
    )
    assert found.jinja_prompt_template.endswith(said)
    assert found.HasField("supports_thinking")
    assert found.HasField("supports_function_calling")
    assert not found.channels


def test_the_official_template_gets_a_text_as_text(checkpoint):
    """LiteRT-LM passes each message as a list of pieces; transformers passed a string."""
    each = "{% for message in messages %}{{ message.content }}|{% endfor %}"
    (checkpoint / "chat_template.jinja").write_text(" " + each)
    template = llm_metadata(read_text_files(checkpoint), 64).jinja_prompt_template
    text, image = {"type": "text", "text": "Hi"}, {"type": "image"}
    messages = [
        {"content": [text]},
        {"content": "Ho"},
        {"content": [image, text]},
        {"role": "user"},
    ]
    rendered = jinja2.Template(template).render(messages=messages)
    assert rendered == f" Hi|Ho|{[image, text]}||"


def test_a_multimodal_config_keeps_its_tokens_one_level_down(checkpoint):
    write(checkpoint, "config.json", {"text_config": {"bos_token_id": 5, "eos_token_id": [7]}})
    found = llm_metadata(read_text_files(checkpoint), 64)
    assert list(found.start_token.token_ids.ids) == [5]
    assert [list(stop.token_ids.ids) for stop in found.stop_tokens] == [[7]]


def test_sampler_defaults_are_the_generation_configs(checkpoint):
    kinds = sampler_params_pb2.SamplerParameters
    greedy = llm_metadata(read_text_files(checkpoint), 64).sampler_params
    assert (greedy.type, greedy.k, greedy.p, greedy.temperature) == (kinds.TOP_P, 1, 1.0, 1.0)
    write(checkpoint, "generation_config.json", {"do_sample": True, "top_k": 64, "top_p": 0.95})
    sampler = llm_metadata(read_text_files(checkpoint), 64).sampler_params
    assert (sampler.type, sampler.k, sampler.temperature) == (kinds.TOP_P, 64, 1.0)
    assert sampler.p == pytest.approx(0.95)
    nothing = {"temperature": None, "top_k": None, "top_p": None}  # transformers' defaults
    write(checkpoint, "generation_config.json", {"do_sample": True, **nothing})
    sampler = llm_metadata(read_text_files(checkpoint), 64).sampler_params
    assert (sampler.k, sampler.p, sampler.temperature) == (50, 1.0, 1.0)


def test_a_top_k_of_zero_keeps_every_token(checkpoint):
    """LiteRT-LM refuses every message where k is 0."""
    write(checkpoint, "generation_config.json", {"do_sample": True, "top_k": 0})
    assert llm_metadata(read_text_files(checkpoint), 64).sampler_params.k >= 262144


def test_the_syntax_tokens_of_the_tokenizer_reach_the_runtimes_parser(checkpoint):
    named = {
        "stc_token": "<|tool_call>",
        "etc_token": "<tool_call|>",
        "escape_token": '<|"|>',
        "str_token": {"content": "<|tool_response>"},
    }
    write(
        checkpoint,
        "tokenizer_config.json",
        {**named, "model_specific_special_tokens": {"soc_token": "<|c>", "eoc_token": "<c|>"}},
    )
    found = llm_metadata(read_text_files(checkpoint), 64)
    gemma = found.llm_model_type.gemma4
    assert (gemma.code_fence_start, gemma.code_fence_end) == ("<|tool_call>", "<tool_call|>")
    assert gemma.open_quote == gemma.close_quote == '<|"|>'
    assert gemma.function_response_start == "<|tool_response>"
    (channel,) = found.channels
    assert (channel.channel_name, channel.start, channel.end) == (
        "thought",
        "<|c>thought\n",
        "<c|>",
    )

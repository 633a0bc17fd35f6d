"""Ways to spoil a checkpoint pair so that no export can come of it.

Each takes a source of chance and the folder with `target` and `drafter`, and says what it did.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Damage = Callable[[random.Random, Path], str]
INDEX = "model.safetensors.index.json"
HUGE = [2**20 + 1, 2**31, 2**40, 2**63, 10**30]
NONSENSE = [None, True, "8", "", 1.5, 0, -1, -(10**30), [], {}, [[]], "x" * 10_000, "\n", *HUGE]
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)


def weights_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def part(draw: random.Random, folder: Path) -> Path:
    return folder / draw.choice(["target", "target", "drafter"])


def read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write_header(path: Path, header: dict[str, Any] | bytes, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def cut(draw: random.Random, folder: Path) -> str:
    files = [*weights_of(part(draw, folder)), folder / "target" / "tokenizer.json"]
    path = draw.choice([*files, part(draw, folder) / "config.json"])
    data = path.read_bytes()
    length = len(data.rstrip()) if path.suffix == ".json" else len(data)
    kept = draw.choice([0, 1, 7, 8, 9, draw.randrange(length), length - 1])
    path.write_bytes(data[:kept])
    return f"{path.name} cut after {kept} of {len(data)} bytes"


def flip_in_header(draw: random.Random, folder: Path) -> str:
    """A byte that changes what the header says of a tensor."""
    path = draw.choice(weights_of(part(draw, folder)))
    header, data = read_header(path)
    header.pop("__metadata__", None)
    text = bytearray(json.dumps(header, separators=(",", ":")).encode())  # each byte counts
    where = draw.randrange(len(text))
    text[where] ^= draw.randrange(1, 128)
    write_header(path, bytes(text), data)
    return f"{path.name}: byte {where} of the header is {bytes(text[where : where + 1])!r}"


def header_length(draw: random.Random, folder: Path) -> str:
    path = draw.choice(weights_of(part(draw, folder)))
    data = path.read_bytes()
    length = draw.choice([2**64 - 1, 2**63, 2**40, 2**31, len(data), len(data) - 7, 0, 1])
    path.write_bytes(length.to_bytes(8, "little") + data[8:])
    return f"{path.name}: a header of {length} bytes"


def overlap(draw: random.Random, folder: Path) -> str:
    """Two tensors of one size on the same bytes, so that others belong to none."""
    path = weights_of(folder / "target")[0]
    header, data = read_header(path)
    by_size: dict[int, list[str]] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            by_size.setdefault(last - first, []).append(name)
    a, b = draw.sample(draw.choice([names for names in by_size.values() if len(names) > 1]), 2)
    header[a]["data_offsets"] = header[b]["data_offsets"]
    write_header(path, header, data)
    return f"{a} lies on {b}"


def not_a_number(draw: random.Random, folder: Path) -> str:
    """Bytes flipped in the data, so that one number is none."""
    path = draw.choice(weights_of(part(draw, folder)))
    tensors = load_file(path)
    name = draw.choice(sorted(key for key, value in tensors.items() if value.is_floating_point()))
    flat = tensors[name].reshape(-1)
    index = draw.randrange(flat.numel())
    flat[index] = draw.choice([float("nan"), float("inf"), float("-inf")])
    save_file(tensors, path)
    return f"{path.parent.name}: {name}: number {index} is {float(flat[index])}"


def all_not_numbers(draw: random.Random, folder: Path) -> str:
    path = draw.choice(weights_of(part(draw, folder)))
    tensors = load_file(path)
    for value in tensors.values():
        if value.is_floating_point():
            value.fill_(float("nan"))
    save_file(tensors, path)
    return f"{path.parent.name}/{path.name}: all NaN"


def wrong_shape(draw: random.Random, folder: Path) -> str:
    path = draw.choice(weights_of(part(draw, folder)))
    tensors = load_file(path)
    name = draw.choice(sorted(tensors))
    value = tensors[name]
    tensors[name] = draw.choice(
        [
            torch.cat((value.reshape(-1), value.reshape(-1))),
            value.reshape(1, *value.shape, 1),
            value.reshape(-1)[:-1].clone(),
            torch.zeros(0),
            value.to(torch.float64 if value.is_floating_point() else torch.uint8),
            (value * 0).to(torch.int8).bool(),
        ]
    )
    save_file(tensors, path)
    return f"{name} is {list(tensors[name].shape)} {tensors[name].dtype}"


def missing_or_unknown(draw: random.Random, folder: Path) -> str:
    path = draw.choice(weights_of(part(draw, folder)))
    tensors = load_file(path)
    name = draw.choice(sorted(tensors))
    value = tensors.pop(name)
    if draw.random() < 0.5:
        tensors[f"{name}{draw.choice(['x', '.lora_A', '_scale'])}"] = value
    save_file(tensors, path)
    return f"{name} is gone"


def absurd_size(draw: random.Random, folder: Path) -> str:
    path = part(draw, folder) / "config.json"
    key, value = draw.choice(SIZES), draw.choice([*NONSENSE[2:], *HUGE])

    def change(config: dict[str, Any]) -> None:
        config.get("text_config", config)[key] = value

    edit_json(path, change)
    return f"{key} is {str(value)[:40]!r}"


def absurd_token(draw: random.Random, folder: Path) -> str:
    """A token id beyond the vocabulary, or none."""
    value = draw.choice([-1, 10**9, 10**30, "1", [10**9], [-3], {}, [[]], True])
    folder = folder / "target"
    if draw.random() < 0.5:
        key = "bos_token_id"
        value = draw.choice([-1, 10**9, 10**30, "2", {}, True])
        edit_json(folder / "config.json", lambda c: c.get("text_config", c).update({key: value}))
    else:
        key = "eos_token_id"
        for name in ("config.json", "generation_config.json"):
            edit_json(folder / name, lambda config: config.update({key: value}))
    return f"{key} is {value!r}"


def absurd_value(draw: random.Random, folder: Path) -> str:
    """Values that are of no use wherever they stand."""
    path = part(draw, folder) / "config.json"
    choices: dict[str, list[Any]] = {
        "layer_types": [[], "full_attention", ["full_attention"], [7], {}],
        "sliding_window": [0, -1, "5", 10**30, [], 1.5],
        "rms_norm_eps": ["x", -1.0, 10**30, [], True],
        "rope_parameters": [[], 7, {"full_attention": 3}, {"sliding_attention": {}}],
        "num_kv_shared_layers": [-1, 10**9, "3", [], 1.5],
        "num_key_value_heads": [0, -1, 3, 10**9, "2", []],
        "head_dim": [0, -2, 7, 10**9, "8", []],
        "final_logit_softcapping": [-1, "x", [], True],
        "model_type": ["llama", 7, None, [], "x" * 5000],
        "hidden_activation": ["relu", 7, [], {}],
    }
    key = draw.choice(sorted(choices))
    value = draw.choice(choices[key])

    def change(config: dict[str, Any]) -> None:
        text = config.get("text_config", config)
        (config if key == "model_type" else text).update({key: value})
        if key in ("head_dim", "num_key_value_heads"):
            text["per_layer_config"] = None

    edit_json(path, change)
    return f"{path.parent.name}: {key} is {str(value)[:40]!r}"


def broken_text(draw: random.Random, folder: Path) -> str:
    """Tokenizer, template or JSON that cannot be read."""
    name, content = draw.choice(
        [
            ("tokenizer.json", b"{}"),
            ("tokenizer.json", b"[" * 100_000),
            ("tokenizer.json", b'{"version": "1.0", "model": {"type": "BPE", "vocab": 7}}'),
            ("tokenizer_config.json", b"[]"),
            ("tokenizer_config.json", b"{"),
            ("tokenizer_config.json", b'{"chat_template": 7}'),
            ("generation_config.json", b"null"),
            ("generation_config.json", b"\xff\xfe"),
            ("chat_template.jinja", b"{% if"),
            ("chat_template.jinja", b"{{ messages.nothing.at.all }}"),
            ("chat_template.jinja", b"\xff\xfe"),
            ("chat_template.jinja", b"{{ raise_exception('no') }}"),
            ("config.json", b"{} {}"),
            ("config.json", b"\xef\xbb\xbf{}"),
        ]
    )
    if name == "tokenizer_config.json":  # where a template is looked for when it has no file
        (folder / "target" / "chat_template.jinja").unlink()
    (folder / "target" / name).write_bytes(content)
    return f"{name} is {content[:40]!r}"


def broken_index(draw: random.Random, folder: Path) -> str:
    """The index of a sharded checkpoint; one file becomes a shard first."""
    folder = part(draw, folder)
    if not (folder / INDEX).is_file():
        shard = folder / "model-00001-of-00001.safetensors"
        weights_of(folder)[0].rename(shard)
        names = read_header(shard)[0].keys() - {"__metadata__"}
        (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, shard.name)}))
    text = (folder / INDEX).read_text()
    weight_map = json.loads(text)["weight_map"]
    name = draw.choice(sorted(weight_map))
    kind = draw.choice(["twice", "missing", "elsewhere", "outside", "ghost", "no map", "lost"])
    if kind == "twice":
        entry = json.dumps({name: weight_map[name]})[1:-1]
        text = text.replace('"weight_map": {', '"weight_map": {' + entry + ",")
    elif kind == "missing":
        del weight_map[name]
        text = json.dumps({"weight_map": weight_map})
    elif kind == "lost":
        (folder / weight_map[name]).unlink()
    else:
        other = {
            "elsewhere": {**weight_map, name: "model-00009-of-00009.safetensors"},
            "outside": {**weight_map, name: "../../model.safetensors"},
            "ghost": {**weight_map, "model.ghost.weight": weight_map[name]},
            "no map": draw.choice([None, [], {}, 7]),
        }[kind]
        text = json.dumps({"weight_map": other})
    (folder / INDEX).write_text(text)
    return f"{folder.name}: index: {name} {kind}"


def same_tensor_twice(draw: random.Random, folder: Path) -> str:
    """A name that stands twice in a header."""
    path = draw.choice(weights_of(part(draw, folder)))
    header, data = read_header(path)
    header.pop("__metadata__", None)
    name = draw.choice(sorted(header))
    text = json.dumps(header)
    entry = json.dumps({name: header[name]})[1:-1]
    write_header(path, ("{" + entry + ", " + text[1:]).encode(), data)
    return f"{path.name}: {name} twice in the header"


def wrong_pair(draw: random.Random, folder: Path) -> str:
    """A drafter that is none of this target's, or no drafter."""
    config = folder / "drafter" / "config.json"
    ordered = json.loads(config.read_text())["use_ordered_embeddings"]
    kinds = ["target", "width", "vocabulary", "centroids", *(["ordering"] if ordered else [])]
    kind = draw.choice(kinds)
    if kind == "target":
        config.write_bytes((folder / "target" / "config.json").read_bytes())
    elif kind == "width":
        edit_json(config, lambda values: values.update(backbone_hidden_size=1536))
    elif kind == "vocabulary":
        edit_json(config, lambda values: values["text_config"].update(vocab_size=262144))
    elif kind == "centroids":
        count = draw.choice([0, 5, -1, "x"])
        change = {"use_ordered_embeddings": True, "num_centroids": count}
        edit_json(config, lambda values: values.update(change))
    else:
        for path in weights_of(folder / "drafter"):
            tensors = load_file(path)
            for name in tensors:
                if name.endswith("token_ordering"):
                    tensors[name][0] = tensors[name][1]
            save_file(tensors, path)
    return f"drafter: wrong {kind}"


def folder_for_file(draw: random.Random, folder: Path) -> str:
    path = draw.choice(
        [
            folder / "target" / "config.json",
            folder / "target" / "tokenizer.json",
            weights_of(folder / "target")[0],
            weights_of(folder / "drafter")[0],
        ]
    )
    path.unlink()
    if draw.random() < 0.5:
        path.mkdir()
    else:
        path.symlink_to(path.name)  # to itself
    return f"{path.name} is {'a folder' if path.is_dir() else 'a link to itself'}"


DAMAGES: tuple[Damage, ...] = (
    cut,
    flip_in_header,
    header_length,
    overlap,
    not_a_number,
    all_not_numbers,
    wrong_shape,
    missing_or_unknown,
    absurd_size,
    absurd_token,
    absurd_value,
    broken_text,
    broken_index,
    same_tensor_twice,
    wrong_pair,
    folder_for_file,
)

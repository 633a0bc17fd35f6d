"""Damaged bundles whose checksums are right, so that the damage reaches what reads the files.

`python -m tests.end_to_end.fuzz_bundles FOLDER SEED…` runs one command on one damaged bundle per
seed, all in this process, and prints a line of JSON before and after each: a parent sees which seed
the process died of. FOLDER holds what `write_toys` wrote.
"""

import io
import json
import os
import random
import resource
import shutil
import sys
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from runtime_py.bundle.manifest import file_entry
from runtime_py.bundle.reference import Reference, write_reference
from runtime_py.cli import commands
from runtime_py.cli.commands import main
from runtime_py.decoding.sampling import GREEDY
from runtime_py.decoding.session import Session, Stops
from runtime_py.terminal.command import TRACEBACK
from tests.runtime_py.backends.toys import CACHE_LENGTH, HIDDEN_SIZE, TOYS, VOCAB_SIZE
from tests.runtime_py.bundles import manifest_values as valid_manifest

Damage = Callable[[random.Random, Path], str]  # changes a bundle, says what it did
LETTERS = "abcdefghijklmnopqrstuvwxyz [].,!?"
TEMPLATE = "{% for message in messages %}[{{ message.content }}]{% endfor %}"
MAX_ADDRESSES = 16 << 30  # of the process, so that a bomb does not take the machine
_PROMPTS = (("ab", [4, 5, 6]), ("c", [7]))
_NUM_TOKENS, _DRAFT_LENGTH = 8, 3


def write_toys(folder: Path) -> None:
    """A bundle for every runtime: the toy's graphs, with all that belongs to a bundle."""
    for runtime, toy in TOYS.items():
        bundle = folder / runtime
        bundle.mkdir(parents=True)
        files = toy.bundle.parent.glob("model.*") if runtime == "onnx" else [toy.bundle]
        for path in files:
            shutil.copy(path, bundle)
        _tokenizer().save(str(bundle / "tokenizer.json"))
        (bundle / "chat_template.jinja").write_text(TEMPLATE)
        with closing(toy.open()) as backend:
            write_reference(bundle / "reference.npz", _record(backend))
        tolerances = {"max_logit_error": 1e-3, "min_agreement": 0.9, "min_acceptance_ratio": 0.9}
        entry = {"model": toy.bundle.name, "recipe": "float32", "tolerances": tolerances}
        values = {
            **valid_manifest(),
            "name": "toy",
            "model": {
                "vocab_size": VOCAB_SIZE,
                "hidden_size": HIDDEN_SIZE,
                "num_layers": 3,
                "context_length": CACHE_LENGTH,
                "has_drafter": True,
            },
            "draft_length": _DRAFT_LENGTH,
            "runtimes": {runtime: entry},
        }
        (bundle / "manifest.json").write_text(json.dumps(values))
        list_files(bundle)


def _tokenizer() -> Tokenizer:
    vocabulary = {letter: index + 2 for index, letter in enumerate(LETTERS)}
    tokenizer = Tokenizer(models.BPE(vocab={"<bos>": 0, "<stop>": 1, **vocabulary}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<bos>", "<stop>"])
    return tokenizer


def _record(backend: Any) -> Reference:
    """What the toy itself says."""
    greedy, logits, drafts = [], [], []
    for _, ids in _PROMPTS:
        session = Session(backend, CACHE_LENGTH)
        steps = session.generate(ids, GREEDY, Stops(max_new_tokens=_NUM_TOKENS), 0)
        said = [token for step in steps for token in step.token_ids]
        greedy.append(said)
        rows, proposed = [], []
        for token in range(_NUM_TOKENS):
            text = [*ids, *said[:token]]
            for position, token_id in enumerate(text):
                found, hidden = backend.verify([token_id], position)
            rows.append(found[0].copy())
            if token < _NUM_TOKENS - _DRAFT_LENGTH:
                last, state, round_ids = said[token], hidden[0].copy(), []
                for _ in range(_DRAFT_LENGTH):
                    scores, state = backend.draft(last, state, len(text))
                    last, state = int(np.argmax(scores)), state.copy()
                    round_ids.append(last)
                proposed.append(round_ids)
        logits.append(rows)
        drafts.append(proposed)
    scores = np.array(logits, np.float32)
    probe_ids = np.argsort(-scores, axis=-1)[..., :8]
    return Reference(
        prompts=tuple(text for text, _ in _PROMPTS),
        prompt_ids=tuple(np.array(ids, np.int32) for _, ids in _PROMPTS),
        greedy_ids=np.array(greedy, np.int32),
        probe_ids=probe_ids.astype(np.int32),
        probe_logits=np.take_along_axis(scores, probe_ids, axis=-1),
        logit_scale=float(np.abs(scores).max()),
        draft_ids=np.array(drafts, np.int32),
    )


def list_files(bundle: Path) -> None:
    """Make sizes and checksums in the manifest right, as an enemy would."""
    path = bundle / "manifest.json"
    values = json.loads(path.read_text())
    files = (p for p in bundle.iterdir() if p != path and p.is_file())
    values["files"] = {p.name: file_entry(p).model_dump() for p in files}
    path.write_text(json.dumps(values))


# What readers stumble over, wherever it stands.
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2, 7, 2**31 - 1, 2**31, 2**63, -(2**63), 10**12, 10**30, 1e308, 1e-320,
    float("nan"), float("inf"), 0.5, "", "x", "[/b]\x1b]0;x\x07", "../../etc/passwd", "/dev/zero",
    "\ud800", "x" * 5000, [], {}, [[]], [0] * 300, {"a": {}}, ["a"], "model.data", "manifest.json",
)  # fmt: skip


def _bytes(draw: random.Random, data: bytearray) -> bytearray:
    """A few bytes changed, a range zeroed, cut off, repeated, or a number made huge."""
    if not data:
        return bytearray(b"\0")
    near = draw.choice([len(data), min(len(data), 512), min(len(data), 4096)])
    at = draw.randrange(near)
    kind = draw.choice(["flip", "flip", "flip", "zero", "cut", "huge", "repeat", "move"])
    if kind == "flip":
        for _ in range(draw.choice([1, 1, 2, 8, 64])):
            data[draw.randrange(near)] ^= 1 << draw.randrange(8)
    elif kind == "zero":
        end = min(len(data), at + draw.choice([1, 4, 8, 64, 4096]))
        data[at:end] = bytes(end - at)
    elif kind == "cut":
        del data[at:]
    elif kind == "huge":
        number = draw.choice([2**31 - 1, 2**32 - 1, 2**31, 65535, len(data)])
        at -= at % 4
        data[at : at + 4] = number.to_bytes(4, "little")
    elif kind == "repeat":
        data[at:at] = data[at : at + draw.choice([1, 16, 1024])]
    else:
        other = draw.randrange(len(data))
        data[at : at + 16] = data[other : other + 16].ljust(16, b"\0")
    return data


def graph_bytes(draw: random.Random, bundle: Path) -> str:
    paths = sorted(p for p in bundle.glob("*.*") if p.suffix in (".litertlm", ".pte", ".onnx"))
    return _damage_bytes(draw, draw.choice([*paths, *bundle.glob("model.data")]))


def reference_bytes(draw: random.Random, bundle: Path) -> str:
    return _damage_bytes(draw, bundle / "reference.npz")


def text_bytes(draw: random.Random, bundle: Path) -> str:
    return _damage_bytes(draw, bundle / "tokenizer.json")


def _damage_bytes(draw: random.Random, path: Path) -> str:
    path.write_bytes(_bytes(draw, bytearray(path.read_bytes())))
    return f"bytes of {path.name}"


def reference_arrays(draw: random.Random, bundle: Path) -> str:
    """An array of another shape, type or with another number."""
    path = bundle / "reference.npz"
    with np.load(path) as arrays:
        values = dict(arrays)
    name = draw.choice(sorted(values))
    array = values[name]
    kind = draw.choice(["value", "value", "shape", "type", "gone", "compressed", "more"])
    if kind == "value" and array.size:
        numbers: list[float] = [-1, 0, 48, 2**31 - 1, -(2**31), 7]
        if array.dtype.kind == "f":
            numbers += [float("nan"), float("inf"), 1e30, 1e-40]
        array = array.copy()
        value = draw.choice(numbers)
        array.flat[draw.randrange(array.size)] = value % 256 if array.dtype.kind == "u" else value
    elif kind == "shape":
        array = array if array.ndim else array.reshape(1, 1)
        array = draw.choice([array[..., :0], array[None], array.ravel(), array.T, array[:1]])
    elif kind == "type":
        array = array.astype(draw.choice([object, np.float64, np.int64, ">i4", "U4", bool]))
    elif kind == "more":
        array = np.repeat(array, draw.choice([2, 1000]), axis=0) if array.ndim else array
    values[name] = array
    if kind == "gone":
        del values[name]
    save = np.savez_compressed if kind == "compressed" else np.savez
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(path, **values)
    return f"{name} of the reference: {kind}"


def reference_header(draw: random.Random, bundle: Path) -> str:
    """The .zip is right, the header of an array is not."""
    path = bundle / "reference.npz"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(sorted(members))
    head = _bytes(draw, bytearray(members[name][:128]))
    members[name] = bytes(head) + members[name][128:]
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return f"header of {name}"


def _damage_json(draw: random.Random, values: Any) -> str:
    """Put something odd somewhere into nested lists and objects."""
    parent, where = values, []
    for _ in range(20):
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        if not keys:
            break
        key = draw.choice(keys)
        where.append(str(key))
        inner = parent[key]
        if isinstance(inner, dict | list) and inner and draw.random() < 0.8:
            parent = inner
            continue
        if draw.random() < 0.2:
            del parent[key]
        else:
            parent[key] = draw.choice(ODD)
        break
    if isinstance(parent, dict) and draw.random() < 0.2:
        parent[draw.choice(["surprise", "type", "\x1b[31m", ""])] = draw.choice(ODD)
    return ".".join(where)


def manifest_values(draw: random.Random, bundle: Path) -> str:
    path = bundle / "manifest.json"
    values = json.loads(path.read_text())
    where = _damage_json(draw, values)
    path.write_text(json.dumps(values))
    return f"manifest: {where}"


def manifest_bytes(draw: random.Random, bundle: Path) -> str:
    return _damage_bytes(draw, bundle / "manifest.json")


def tokenizer_values(draw: random.Random, bundle: Path) -> str:
    path = bundle / "tokenizer.json"
    values = json.loads(path.read_text())
    extra = draw.choice(["", "padding", "truncation", "normalizer", "post_processor"])
    if extra:
        values[extra] = draw.choice(_TOKENIZER_PARTS)
    where = _damage_json(draw, values)
    path.write_text(json.dumps(values))
    return f"tokenizer: {extra} {where}"


_TOKENIZER_PARTS: tuple[Any, ...] = (
    {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
     "pad_type_id": 0, "pad_token": "x"},
    {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 9},
    {"type": "Replace", "pattern": {"Regex": "(a|a)*$"}, "content": "x" * 500},
    {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Sequence", "normalizers": []},
    {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
)  # fmt: skip


def template_text(draw: random.Random, bundle: Path) -> str:
    text = draw.choice(_TEMPLATES)
    (bundle / "chat_template.jinja").write_bytes(text.encode("utf-8", "surrogateescape"))
    return f"template: {text[:40]!r}"


_TEMPLATES = (
    "{% if", "{{ 1/0 }}", "{{ nothing.at.all }}", "{{ ''.__class__.__mro__ }}", "\udcff", "",
    "{% set x = namespace() %}{{ x.__init__.__globals__ }}",
    "{{ raise_exception('\x1b]0;x\x07') }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ '%0999999999d' | format(1) }}",
    "{{ [1] * 10**9 }}", "{{ 'x' * 10**10 }}", "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}",
    "{% include 'manifest.json' %}", "{{ messages | map(attribute='x.y') | list }}",
    "{{ strftime_now('%Y' * 100000) }}", "{{ messages | tojson(indent=10**9) }}",
    "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}", "{{ range(10**9) | list }}",
)  # fmt: skip


def odd_file(draw: random.Random, bundle: Path) -> str:
    """Gone, empty, a folder, a pipe, or a link."""
    path = draw.choice(sorted(bundle.iterdir()))
    kind = draw.choice(["gone", "empty", "folder", "pipe", "loop", "outside", "other"])
    other = draw.choice(sorted(bundle.iterdir()))
    path.unlink()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "gone":
        path.symlink_to({"loop": path.name, "outside": "/etc/passwd", "other": other.name}[kind])
    return f"{path.name}: {kind}"


# (damage, of how many cases in all, whether checksums are made right afterwards)
DAMAGES: tuple[tuple[Damage, int, bool], ...] = (
    (graph_bytes, 12, True),
    (reference_bytes, 2, True),
    (reference_arrays, 4, True),
    (reference_header, 2, True),
    (text_bytes, 2, True),
    (tokenizer_values, 3, True),
    (template_text, 1, True),
    (manifest_values, 4, False),
    (manifest_bytes, 1, False),
    (odd_file, 1, False),
)


def damaged(seed: int, toys: Path, folder: Path) -> tuple[str, list[str]]:
    """Make the bundle of a seed; returns what is wrong with it, and a command to run on it."""
    draw = random.Random(seed)
    runtime = draw.choice(sorted(TOYS))
    shutil.copytree(toys / runtime, folder)
    weights = [weight for _, weight, _ in DAMAGES]
    damage, _, listed = draw.choices(DAMAGES, weights)[0]
    did = damage(draw, folder)
    if listed:
        list_files(folder)
    commands = [["check"], ["generate", "--prompt", "ab", "--raw"], ["inspect"]]
    if damage is template_text:
        commands = [["generate", "--prompt", "ab"]]
    elif damage in (reference_bytes, reference_arrays, reference_header):
        commands = commands[:1]
    name, *options = draw.choice(commands)
    if name == "generate":
        options += ["--max-new-tokens", "6", "--draft-length", str(draw.randrange(4))]
    if name != "inspect":
        options += ["--threads", "1"]
    return f"{runtime}: {did}", [name, str(folder), *options]


def run_case(seed: int, toys: Path, folder: Path) -> dict[str, Any]:
    """One command on one damaged bundle, as JSON values."""
    did, arguments = damaged(seed, toys, folder)
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.process_time()
    result = CliRunner().invoke(main, arguments, prog_name="gemma-run")
    after = resource.getrusage(resource.RUSAGE_SELF)
    error, broke = result.exception, ""
    if error is not None and not isinstance(error, SystemExit):
        broke = "".join(traceback.format_exception(error))[-2000:]
    return {
        "seed": seed,
        "did": did,
        "command": arguments[0],
        "code": result.exit_code,
        "stderr": result.stderr[-3000:],
        "broke": broke,
        "cpu_s": time.process_time() - start,
        "growth_bytes": (after.ru_maxrss - before.ru_maxrss) << 10,
    }


def _main() -> None:
    toys, seeds = Path(sys.argv[1]), map(int, sys.argv[2:])
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESSES, MAX_ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A process more for every case would take most of the time. Graphs that end this one are given
    # to the command as it is.
    commands.try_backend = lambda *_: None
    os.environ[TRACEBACK] = "1"  # errors nobody foresaw are found, not told in one line
    answers = io.TextIOWrapper(os.fdopen(os.dup(1), "wb", 0), write_through=True)
    for seed in seeds:
        print(json.dumps({"begins": seed}), file=answers)
        folder = toys / f"case-{os.getpid()}"
        print(json.dumps(run_case(seed, toys, folder)), file=answers)
        shutil.rmtree(folder)


if __name__ == "__main__":
    _main()

"""The JSON Schema of manifest.json, from its pydantic model, and cases for every reader's tests.

python -m tests.manifest_schema    # writes all three again, after the model has changed

docs/manifest.schema.json                   for the specification
exporter/webpage/web/manifest_schema.js     the web page checks manifests against it
tests/golden/manifest-cases.json            read by the Python, Kotlin and JavaScript tests
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from runtime_py.bundle.manifest import Manifest

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "docs" / "manifest.schema.json"
SCRIPT = ROOT / "exporter" / "webpage" / "web" / "manifest_schema.js"
CASES = ROOT / "tests" / "golden" / "manifest-cases.json"
GOLDEN = ROOT / "tests" / "golden" / "manifest-1.1.json"

WRONG_TYPES = {"string": 5, "integer": "5", "number": "5", "boolean": 1, "array": {}, "object": []}
BAD_PATHS = (
    *("../elsewhere", "/etc/passwd", "a/../../b", "..", "", ".", "./a", "a//b", "a/", "a/."),
    *("a\\b", "a\0b", "a\nb", "a/..", "x" * 1001),
)
GOOD_PATHS = ("a", "a/b.c/d", "..a", "a..", "...", ".a/b", "ü 1", "x" * 1000)
BAD_VERSIONS = (0, 2, 1.5, True, None, [1], "1", "1.0", "1.01", "1.1.1", " 1.1", "2.0")
Path_ = tuple[str | int, ...]
Edit = list[Any]  # [path] removes what is there, [path, value] puts a value there
Case = dict[str, Any]  # why, edits


def schema() -> dict[str, Any]:
    """As pydantic writes it, without the titles that only repeat the names."""
    found: dict[str, Any] = _without_titles(Manifest.model_json_schema())
    found["description"] = "manifest.json of a gemma-export bundle, format 1.1"
    return found


def _without_titles(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_titles(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _without_titles(value)
        for key, value in node.items()
        if not (key == "title" and isinstance(value, str))
    }


def example() -> dict[str, Any]:
    """A manifest with every field that a reader of format 1 knows."""
    values: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    values["model"]["sliding"] = {"window": 512, "layers": [0, 3]}
    return values


def edited(values: Any, edits: list[Edit]) -> Any:
    values = copy.deepcopy(values)
    for at, *value in edits:
        parent = values
        for key in at[:-1]:
            parent = parent[key]
        if value:
            parent[at[-1]] = value[0]
        else:
            del parent[at[-1]]
    return values


def cases() -> dict[str, Any]:
    """The example, and edits of it that a reader must refuse or accept."""
    values, root = example(), schema()
    found = list(_walk(root, root, (), values))
    return {
        "manifest": values,
        "refused_by_schema": [case for case in found if case["why"] != "allowed"]
        + [_case("bad version", ("format_version",), version) for version in BAD_VERSIONS]
        + [_case("bad path", ("reference",), path) for path in BAD_PATHS]
        + [_case("bad path", ("files", path), values["files"]["model.litertlm"])
           for path in BAD_PATHS],
        "refused_by_rules": list(_rules(values)),
        "accepted": [
            case for case in found if case["why"] == "allowed" and _is_taken(values, case)
        ]
        + [
            _edits("allowed", [["files", path], values["files"]["reference.npz"]],
                   [["reference"], path])
            for path in GOOD_PATHS
        ]
        + [_case("allowed", ("format_version",), 1)],
        "accepted_of_a_newer_minor": list(_newer()),
    }  # fmt: skip


def _is_taken(values: Any, case: Case) -> bool:
    """Of the values that the schema allows, some break a rule between two fields."""
    try:
        Manifest.model_validate(edited(values, case["edits"]))
    except ValidationError:
        return False
    return True


def _case(why: str, at: Path_, *value: Any) -> Case:
    return _edits(why, [list(at), *value])


def _edits(why: str, *edits: Edit) -> Case:
    return {"why": why, "edits": list(edits)}


def _walk(root: Any, node: Any, at: Path_, value: Any) -> Iterator[Case]:
    """Cases for one value of the example and everything in it."""
    if "$ref" in node:
        node = root["$defs"][node["$ref"].rpartition("/")[2]]
    if "anyOf" in node:
        if at == ("format_version",):
            return  # BAD_VERSIONS
        yield _case("allowed", at, None)
        yield from _walk(root, node["anyOf"][0], at, value)
        return
    if at:
        yield _case(f"no {node['type']}", at, WRONG_TYPES[node["type"]])
    yield from {"object": _object, "array": _array, "string": _string}.get(node["type"], _number)(
        root, node, at, value
    )


def _object(root: Any, node: Any, at: Path_, value: Any) -> Iterator[Case]:
    properties = node.get("properties", {})
    for key, inner in properties.items():
        why = "missing" if key in node.get("required", ()) else "allowed"
        yield _case(why, (*at, key))
        yield from _walk(root, inner, (*at, key), value[key])
    if properties:
        yield _case("unknown key", (*at, "surprise"), 1)
        return
    if node.get("minProperties"):
        yield _case("too few", at, {})
    if "maxProperties" in node:
        most = {str(index): "" for index in range(node["maxProperties"])}
        yield _case("allowed", at, most)
        yield _case("too many", at, {**most, "more": ""})
    if "maxLength" in node.get("propertyNames", {}):
        yield _case("too long a key", (*at, "x" * (node["propertyNames"]["maxLength"] + 1)), "")
    key = next(iter(value))
    if "enum" in node.get("propertyNames", {}):
        yield _case("unknown key", (*at, "surprise"), value[key])
    inner = node["additionalProperties"] or next(iter(node["patternProperties"].values()))
    yield from _walk(root, inner, (*at, key), value[key])


def _array(root: Any, node: Any, at: Path_, value: Any) -> Iterator[Case]:
    if node.get("minItems"):
        yield _case("too few", at, [])
    yield _case("allowed", at, [0] * node["maxItems"])
    yield _case("too many", at, [0] * (node["maxItems"] + 1))
    yield from _walk(root, node["items"], (*at, 0), value[0])


def _string(_root: Any, node: Any, at: Path_, _value: Any) -> Iterator[Case]:
    if "pattern" in node:
        yield _case("another pattern", at, "?/")
    if node.get("minLength"):
        yield _case("too short", at, "")
    if "maxLength" in node:  # in characters, of which this one is two UTF-16 units
        yield _case("allowed", at, "\U0001f600" * node["maxLength"])
        yield _case("too long", at, "x" * (node["maxLength"] + 1))


def _number(_root: Any, node: Any, at: Path_, _value: Any) -> Iterator[Case]:
    if node["type"] == "boolean":
        return
    if node["type"] == "integer":
        yield _case("no integer", at, 1.5)
    if "minimum" in node:
        yield _case("allowed", at, node["minimum"])
        yield _case("below the minimum", at, node["minimum"] - 1)
    if "exclusiveMinimum" in node:
        yield _case("at the exclusive minimum", at, node["exclusiveMinimum"])
    yield _case("allowed", at, node["maximum"])
    yield _case("above the maximum", at, node["maximum"] + 1)


def _rules(values: Any) -> Iterator[Case]:
    """Rules between fields, which no schema can say."""
    vocab_size = values["model"]["vocab_size"]
    yield _case("bad version", ("format_version",), "1.1\n")  # Python's "$" allows the newline
    yield _case("no such token", ("tokens", "bos_token_id"), vocab_size)
    yield _case("no such token", ("tokens", "stop_token_ids", 0), vocab_size)
    for at in (
        *(("reference",), ("tokens", "tokenizer"), ("tokens", "chat_template")),
        ("runtimes", "onnx", "model"),
    ):
        yield _case("not listed", at, "other")


def _newer() -> Iterator[Case]:
    newer = [["format_version"], "1.9999"]
    yield _edits("allowed", newer)
    for at in ((), ("model",), ("tokens",), ("runtimes", "onnx"), ("files", "reference.npz")):
        yield _edits("an unknown key", newer, [[*at, "surprise"], {"of": "any kind"}])
    yield _edits("an unknown runtime", newer, [["runtimes", "surprise"], 1])


def texts() -> dict[Path, str]:
    """What the files hold, by path."""
    text = json.dumps(schema(), indent=2)
    found = cases()
    lines = [f"{json.dumps(name)}: {_lines(item)}" for name, item in found.items()]
    return {
        SCHEMA: text + "\n",
        SCRIPT: "// Written by tests/manifest_schema.py from the Python runtime's model.\n"
        f"export const SCHEMA = {text};\n",
        CASES: "{\n" + ",\n".join(lines) + "\n}\n",
    }


def _lines(item: Any) -> str:
    """A list with one line for each item."""
    if not isinstance(item, list):
        return json.dumps(item, ensure_ascii=False)
    return "[\n" + ",\n".join(json.dumps(line, ensure_ascii=False) for line in item) + "\n]"


if __name__ == "__main__":
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")

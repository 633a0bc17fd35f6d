"""What a user asks for: the sizes graphs are traced with, the defaults of each device and model."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import ExportError
from runtime_py.manifest import RuntimeName

MODELS = Path(__file__).resolve().parents[1] / "models"
DEFAULT_PROMPTS = Path(__file__).with_name("prompts.jsonl")


@dataclass(frozen=True, kw_only=True)
class GraphShapes:
    """Static sizes every graph is traced with."""

    prefill_lengths: tuple[int, ...] = (128, 1024)  # tokens per prefill call, one graph each
    verify_widths: tuple[int, ...] = (2, 4, 8)  # tokens per verify call, one graph each
    cache_length: int = 2048  # KV rows per layer that owns a cache

    @property
    def max_draft_length(self) -> int:
        return max(self.verify_widths, default=1) - 1


@dataclass(frozen=True, kw_only=True)
class Device:
    """What `--target` chooses, unless the user does."""

    runtimes: tuple[RuntimeName, ...]
    recipe: str
    context_length: int  # tokens of prompt and answer together
    draft_length: int  # tokens drafted per round


# int8 keeps the text of any fine-tune; int4 halves the file but wants a checkpoint trained for it.
DEVICES = {
    "android": Device(runtimes=("litert",), recipe="int8", context_length=4096, draft_length=3),
    "desktop": Device(runtimes=("litert",), recipe="int8", context_length=8192, draft_length=3),
    "raspberry-pi": Device(
        runtimes=("litert",), recipe="int8", context_length=2048, draft_length=3
    ),
}


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model and what belongs to it lie."""

    name: str
    model: Path  # folder of the target checkpoint
    drafter: Path | None  # folder of the drafter checkpoint
    prompts: Path = DEFAULT_PROMPTS  # what the reference is recorded on
    prefill_lengths: tuple[int, ...] = GraphShapes.prefill_lengths
    max_context_length: int | None = None  # None: what the device's default is


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """One export, every choice made."""

    source: ModelSource
    output: Path  # the bundle folder to make
    overwrite: bool
    device: str
    runtimes: tuple[RuntimeName, ...]
    recipe: str  # a recipe's name, or the path of a recipe file
    shapes: GraphShapes
    draft_length: int


def known_sizes() -> list[str]:
    """The names `--size` takes: one TOML file each in models/."""
    return sorted(path.stem for path in MODELS.glob("*.toml"))


def load_size(size: str) -> ModelSource:
    """Read models/SIZE.toml.

    Raises:
        ExportError: if it has unknown keys, or names folders that are not there.
    """
    path = MODELS / f"{size}.toml"
    values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    known = {"name", "target", "drafter", "prompts", "prefill_lengths", "max_context_length"}
    if unknown := sorted(set(values) - known):
        raise ExportError(f"{path}: unknown key {', '.join(unknown)}; known are {sorted(known)}")
    return ModelSource(
        name=values["name"],
        model=MODELS / values["target"],
        drafter=MODELS / values["drafter"],
        prompts=MODELS / values["prompts"],
        prefill_lengths=tuple(values["prefill_lengths"]),
        max_context_length=values.get("max_context_length"),
    )

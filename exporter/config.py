"""What a user asks for: target, model, graph sizes, and the defaults of each."""

import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from exporter.errors import ExportError
from runtime_py.bundle.manifest import RuntimeName
from runtime_py.terminal.printable import shown

KvType = Literal["float32", "int8"]  # how KV rows are stored

MODELS = Path(__file__).with_name("models").resolve()  # a link to models/ in a checkout
RECIPES = Path(__file__).with_name("recipes")
DEFAULT_PROMPTS = Path(__file__).with_name("prompts.jsonl")
LITERT_JS = "@litertjs/core@2.5.3"  # the npm package that runs graphs in a browser
MAIN = "main"  # the branch a repository is read from by default
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)*", re.ASCII)
_SIZE_KEYS = {"name", "target", "drafter", "prompts", "prefill_lengths", "max_context_length"}
_SIZE_KEYS |= {"target_revision", "drafter_revision", "runtimes"}


@dataclass(frozen=True, kw_only=True)
class GraphShapes:
    """Static sizes every graph is traced with."""

    prefill_lengths: tuple[int, ...] = (128, 1024)  # tokens per prefill call, one graph each
    # Tokens per verify call, on LiteRT one graph each; lengths between them are verified with
    # padding. By the costs in docs/benchmarks.md, graphs for 3 and 6 tokens would gain auto at most
    # 2.3 % (0.4 % on average where more than half are accepted). On the tiny model they take half
    # as much lowering time again and 14 % more of the decoder's file: weights are shared, scales
    # and graphs are not.
    verify_widths: tuple[int, ...] = (2, 4, 8)
    cache_length: int = 2048  # KV rows per layer that owns a cache

    def within(self, context_length: int) -> "GraphShapes":
        """The same graphs for a context of so many tokens: longer prefill calls are left out."""
        fitting = tuple(length for length in self.prefill_lengths if length <= context_length)
        return replace(self, prefill_lengths=fitting, cache_length=context_length)


@dataclass(frozen=True, kw_only=True)
class Device:
    """The defaults of a `--target`."""

    runtimes: tuple[RuntimeName, ...]
    recipe: str
    context_length: int  # tokens of prompt and answer together
    draft_length: int  # tokens drafted per round
    verify_widths: tuple[int, ...] = GraphShapes.verify_widths
    page: bool = False  # whether a page for browsers is added


# int8 suits any fine-tune; int4 halves the file but needs a checkpoint trained for it.
DEVICES = {
    "android": Device(runtimes=("litert",), recipe="int8", context_length=4096, draft_length=3),
    "desktop": Device(runtimes=("litert",), recipe="int8", context_length=8192, draft_length=3),
    "raspberry-pi": Device(
        runtimes=("litert",), recipe="int8", context_length=2048, draft_length=3
    ),
    # In a browser every graph keeps a repacked copy of the weights, and WebAssembly has 2 GiB.
    "web": Device(
        runtimes=("litert",),
        recipe="int8",
        context_length=1024,
        draft_length=3,
        verify_widths=(4,),
        page=True,
    ),
}


@dataclass(frozen=True)
class HubModel:
    """A repository of the hub."""

    repo: str  # organisation/name
    revision: str = MAIN  # a branch, a tag or a commit

    def __str__(self) -> str:
        return self.repo if self.revision == MAIN else f"{self.repo}@{self.revision}"


Location = Path | HubModel


def parse_location(text: str) -> Location:
    """A folder if there is one of that name, else organisation/name[@revision] on the hub.

    Raises:
        ExportError: if the revision is malformed.
    """
    repo, at, revision = text.partition("@")
    if not _REPO.fullmatch(repo) or _is_there(Path(text)):
        return Path(text)
    if at and not _REVISION.fullmatch(revision):
        raise ExportError(
            f"{shown(text)}: {shown(revision)!r} is not a revision; give a branch, tag or commit"
        )
    return HubModel(repo, revision or MAIN)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name longer than the system's
        return False


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model and what belongs to it."""

    name: str
    model: Location  # the target's checkpoint
    drafter: Location | None  # the drafter's
    adapter: Path | None = None  # folder of a LoRA adapter to merge into the target
    prompts: Path = DEFAULT_PROMPTS  # what the reference is recorded on
    prefill_lengths: tuple[int, ...] = GraphShapes.prefill_lengths
    max_context_length: int | None = None  # None: the device's default
    runtimes: tuple[RuntimeName, ...] = ()  # the ones that can run it; (): the device's default


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """One export, with every choice made."""

    source: ModelSource
    output: Path  # the bundle folder to make
    overwrite: bool
    device: str
    runtimes: tuple[RuntimeName, ...]
    recipe: str  # a recipe's name, or the path of a recipe file
    shapes: GraphShapes
    draft_length: int
    requantize: bool = False  # quantize a checkpoint's own integers again, by the recipe
    kv: KvType = "float32"
    context_asked: bool = True  # by the user; a default is lowered to the model's own limit

    def __str__(self) -> str:
        """What was chosen, as one line."""
        source = self.source
        parts = [f"model {_short(source.model)}", f"drafter {_short(source.drafter)}"]
        if source.adapter is not None:
            parts.append(f"adapter {source.adapter}")
        parts += [
            f"recipe {self.recipe}",
            f"runtime {' and '.join(self.runtimes)}",
            f"context {self.shapes.cache_length}",
        ]
        if source.drafter is not None:
            parts.append(f"{self.draft_length} drafts per round")
        if self.kv != "float32":
            parts.append(f"KV rows {self.kv}")
        return f"{source.name} for {self.device}: {', '.join(parts)}"

    @property
    def sources(self) -> list[Path]:
        """The files and folders of this machine that the user named and the export reads."""
        source = self.source
        recipe = Path(self.recipe) if self.recipe.endswith(".toml") else None
        named = (source.model, source.drafter, source.adapter, source.prompts, recipe)
        return [path for path in named if isinstance(path, Path)]


def _short(location: Location | None) -> str:
    """Without the folder of the models that come with this tool."""
    if isinstance(location, Path) and location.is_relative_to(MODELS):
        return str(location.relative_to(MODELS))
    return str(location or "none")


def known_sizes() -> list[str]:
    """The names `--size` takes: one TOML file each in models/."""
    return sorted(path.stem for path in MODELS.glob("*.toml"))


def known_recipes() -> list[str]:
    """The names `--quantize` takes: one TOML file each in exporter/recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def recipe_text(name: str) -> str:
    """A recipe's file, comments included, for a user to copy and edit."""
    return (RECIPES / f"{name}.toml").read_text(encoding="utf-8")


def load_size(size: str) -> ModelSource:
    """Read models/SIZE.toml.

    Raises:
        ExportError: if it has unknown keys.
    """
    path = MODELS / f"{size}.toml"
    values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    if unknown := sorted(set(values) - _SIZE_KEYS):
        raise ExportError(
            f"{path}: unknown key {', '.join(unknown)}; known are {sorted(_SIZE_KEYS)}"
        )
    return ModelSource(
        name=values["name"],
        model=_size_part(values, "target"),
        drafter=_size_part(values, "drafter"),
        prompts=MODELS / values["prompts"] if "prompts" in values else DEFAULT_PROMPTS,
        prefill_lengths=tuple(values.get("prefill_lengths", GraphShapes.prefill_lengths)),
        max_context_length=values.get("max_context_length"),
        runtimes=tuple(values.get("runtimes", ())),
    )


def _size_part(values: dict[str, Any], part: str) -> Location:
    """A folder in models/, or a repository with its revision."""
    folder: Path = MODELS / values[part]
    if folder.is_dir():
        return folder
    return HubModel(values[part], values[f"{part}_revision"])

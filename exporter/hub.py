"""Fetches checkpoints from the hub into the hub's own cache: only what is read, nothing twice."""

import fnmatch
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_url, snapshot_download
from huggingface_hub import logging as hub_logging
from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from exporter.config import HubModel
from exporter.errors import ExportError
from exporter.hub_errors import FAILURES, KEPT, explained, no_answer, unreachable
from exporter.hub_transfer import WAIT_S, RemoteFile, Transfer
from exporter.progress import Bar

logger = logging.getLogger(__name__)

# What an export reads. No code and no pickle ever comes.
PATTERNS = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
ELSEWHERE = ["*/*"]  # a pattern's * stands for slashes too
MAX_SMALL_BYTES = 100 << 20  # of a file that git holds itself: text
MB = 1_000_000
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Where the hub is and where its cache: what HF_ENDPOINT and HF_HOME say."""

    endpoint: str = constants.ENDPOINT
    cache: Path = Path(constants.HF_HUB_CACHE)
    wait_s: float = WAIT_S  # before a broken transfer is gone on with

    def storage(self, model: HubModel) -> Path:
        """The cache's folder of a repository, as huggingface_hub's documentation lays it out."""
        return self.cache / _storage_name(model)

    def lock(self, model: HubModel, sha256: str) -> Path:
        return self.cache / ".locks" / _storage_name(model) / f"{sha256}.lock"


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint that is there in full."""

    folder: Path
    commit: str  # which one the asked-for revision was


@dataclass(frozen=True)
class _Listing:
    """What the hub has of one model, as far as an export reads it."""

    model: HubModel
    commit: str
    large: tuple[Transfer, ...]
    small: dict[str, tuple[int, str]]  # name -> size and git's own checksum

    @property
    def bytes_to_come(self) -> int:
        return sum(t.file.size_bytes - t.bytes_there for t in self.large)


def fetch(models: Sequence[HubModel], bar: Bar, hub: Hub | None = None) -> dict[HubModel, Snapshot]:
    """Bring the models into the cache; what is there already is not asked for again.

    Without network, or with HF_HUB_OFFLINE set, they are taken from the cache.

    Raises:
        ExportError: with one line for each way in which this can fail, and what to type then.
    """
    hub = hub or Hub()
    with _quiet():
        # All are looked up before one is downloaded: a refused drafter is known at once.
        found = {model: _ask(model, hub) for model in models}
        listings = [listing for listing in found.values() if isinstance(listing, _Listing)]
        _refuse_full_disk(listings, hub)
        _download(listings, bar, hub)
        return {
            model: _complete(listing, hub) if isinstance(listing, _Listing) else listing
            for model, listing in found.items()
        }


def _ask(model: HubModel, hub: Hub) -> _Listing | Snapshot:
    try:
        return _list(model, hub)
    except FAILURES as error:
        if unreachable(error):
            return _cached(model, hub, error)
        raise explained(error, model, hub.endpoint) from error


def _list(model: HubModel, hub: Hub) -> _Listing:
    info = HfApi(endpoint=hub.endpoint).model_info(
        model.repo, revision=model.revision, files_metadata=True
    )
    files = {file.rfilename: file for file in info.siblings or [] if _is_read(file.rfilename)}
    if info.sha is None or not _COMMIT.fullmatch(info.sha):
        raise ValueError(f"commit {info.sha}")
    _refuse_useless(model, [file.rfilename for file in info.siblings or []], list(files))
    headers = build_hf_headers()
    large, small = [], {}
    for name, file in files.items():
        if file.lfs is None:
            if file.size is None or file.blob_id is None or file.size > MAX_SMALL_BYTES:
                raise ValueError(f"{name} of {file.size} bytes")
            small[name] = (file.size, file.blob_id)
            continue
        if not _SHA256.fullmatch(file.lfs.sha256):
            raise ValueError(f"sha256 {file.lfs.sha256}")
        large.append(
            Transfer(
                url=hf_hub_url(model.repo, name, revision=info.sha, endpoint=hub.endpoint),
                headers=headers,
                file=RemoteFile(name=name, size_bytes=file.lfs.size, sha256=file.lfs.sha256),
                blob=hub.storage(model) / "blobs" / file.lfs.sha256,
                lock=hub.lock(model, file.lfs.sha256),
                wait_s=hub.wait_s,
            )
        )
    return _Listing(model, info.sha, tuple(large), small)


def _is_read(name: str) -> bool:
    return "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in PATTERNS)


def _refuse_useless(model: HubModel, names: list[str], wanted: list[str]) -> None:
    """Say what a repository is before gigabytes of it come."""
    if any(name.endswith(".safetensors") for name in wanted) and "config.json" in wanted:
        return
    if "adapter_config.json" in names:
        what = "a LoRA adapter, needed a whole checkpoint; give the model it was made for"
    elif any(name.endswith(".gguf") for name in names):
        what = "GGUF files, needed safetensors; give the checkpoint that they were made from"
    elif any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        what = "pickles, which can run code when opened; give a repository of safetensors"
    else:
        what = "no config.json with model*.safetensors; give a transformers checkpoint"
    raise ExportError(f"{model}: {what}")


def _cached(model: HubModel, hub: Hub, reason: Exception) -> Snapshot:
    try:
        folder = Path(
            snapshot_download(
                model.repo,
                revision=model.revision,
                cache_dir=hub.cache,
                allow_patterns=list(PATTERNS),
                ignore_patterns=ELSEWHERE,
                local_files_only=True,
            )
        )
    except LocalEntryNotFoundError as error:
        part = "only a part of it is" if isinstance(error, IncompleteSnapshotError) else "it is not"
        raise ExportError(
            f"{model}: {part} in the cache, and {no_answer(reason, hub.endpoint)}"
        ) from error
    logger.info("download    %s, from the cache, commit %s", model, folder.name[:12])
    return Snapshot(folder, folder.name)


def _refuse_full_disk(listings: Sequence[_Listing], hub: Hub) -> None:
    needed = sum(listing.bytes_to_come for listing in listings)
    there = next(path for path in (hub.cache, *hub.cache.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ExportError(
            f"{hub.cache}: the disk is too full: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB "
            "to download; free some room or set HF_HOME to a folder on another disk"
        )


def _download(listings: Sequence[_Listing], bar: Bar, hub: Hub) -> None:
    missing = [(listing.model, t) for listing in listings for t in listing.large]
    missing = [(model, transfer) for model, transfer in missing if not transfer.blob.exists()]
    total = sum(transfer.file.size_bytes for _, transfer in missing)
    if not missing:
        return
    there = {transfer.blob: transfer.bytes_there for _, transfer in missing}
    start = sum(there.values())
    kept = f", {start / MB:.0f} MB of them there already" if start else ""
    logger.info("download    %d files, %.0f MB%s", len(missing), total / MB, kept)
    with bar("download", -(-total // MB), "MB") as progress:
        for model, transfer in missing:
            try:
                transfer.run(_counted(transfer, there, progress))
            except ExportError as error:
                raise ExportError(f"{model}: {error}") from error
            except FAILURES as error:
                raise explained(error, model, hub.endpoint) from error
            except KeyboardInterrupt:
                done = sum(there.values())
                logger.info(
                    "download    stopped at %.0f of %.0f MB; %s", done / MB, total / MB, KEPT
                )
                raise


def _counted(
    transfer: Transfer, there: dict[Path, int], progress: Callable[[int], None]
) -> Callable[[int], None]:
    def on_length(length: int) -> None:
        there[transfer.blob] = length
        progress(sum(there.values()) // MB)

    return on_length


def _complete(listing: _Listing, hub: Hub) -> Snapshot:
    """Let huggingface_hub bring the small files and give every blob its name."""
    model = listing.model
    try:
        folder = Path(
            snapshot_download(
                model.repo,
                revision=model.revision,
                cache_dir=hub.cache,
                endpoint=hub.endpoint,
                allow_patterns=list(PATTERNS),
                ignore_patterns=ELSEWHERE,
            )
        )
    except FAILURES as error:
        raise explained(error, model, hub.endpoint) from error
    if folder.name != listing.commit:
        raise ExportError(
            f"{model}: it was changed in this moment, from commit {listing.commit[:12]} to "
            f"{folder.name[:12]}; run the command again"
        )
    for transfer in listing.large:
        _refuse_wrong_size(model, folder / transfer.file.name, transfer.file.size_bytes)
    for name, (size_bytes, blob_id) in listing.small.items():
        _refuse_wrong_size(model, folder / name, size_bytes)
        content = (folder / name).read_bytes()
        if hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != blob_id:
            _remove(folder / name)
            raise ExportError(
                f"{model}: {name} in the cache is not the hub's; it was removed, run the command "
                "again"
            )
    return Snapshot(folder, listing.commit)


def _refuse_wrong_size(model: HubModel, path: Path, size_bytes: int) -> None:
    found = path.stat().st_size
    if found != size_bytes:
        _remove(path)
        raise ExportError(
            f"{model}: {path.name} in the cache has {found} bytes, the hub's has {size_bytes}; it "
            "was removed, run the command again"
        )


def _remove(path: Path) -> None:
    """A file of the cache: its name, and the blob behind it."""
    Path(os.path.realpath(path)).unlink()
    path.unlink(missing_ok=True)


def _storage_name(model: HubModel) -> str:
    return "--".join(("models", *model.repo.split("/")))


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no advice of huggingface_hub's: the export shows its own progress."""
    verbosity, bars = hub_logging.get_verbosity(), not are_progress_bars_disabled()
    hub_logging.set_verbosity(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()

"""Download checkpoints into huggingface_hub's cache: only the files an export reads, each once."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, hf_hub_url, snapshot_download
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
from exporter.hub.errors import FAILURES, KEPT, explained, no_answer, unreachable
from exporter.hub.listing import COMMIT, PATTERNS, Listing, read_listing
from exporter.hub.request import TIMEOUT_S
from exporter.hub.transfer import WAIT_S, RemoteFile, Transfer
from exporter.progress import Bar
from runtime_py.device.caches import write_whole
from runtime_py.terminal.signals import Interrupted

logger = logging.getLogger(__name__)

ELSEWHERE = ["*/*"]  # in a pattern, * also matches slashes
MB = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Hub:
    """The hub's address and its cache, from HF_ENDPOINT and HF_HOME."""

    endpoint: str = constants.ENDPOINT
    cache: Path = Path(constants.HF_HUB_CACHE)
    wait_s: float = WAIT_S  # before a broken transfer is resumed
    timeout_s: float = TIMEOUT_S  # without an answer, or with hardly any bytes

    def storage(self, model: HubModel) -> Path:
        """A repository's folder in the cache, as huggingface_hub documents it."""
        return self.cache / _storage_name(model)

    def lock(self, model: HubModel, blob_id: str) -> Path:
        return self.cache / ".locks" / _storage_name(model) / f"{blob_id}.lock"

    def transfers(self, listing: Listing) -> list[Transfer]:
        """The transfers of a listing's files; each is verified before it gets its final name."""
        model, headers = listing.model, build_hf_headers()
        return [
            Transfer(
                url=hf_hub_url(
                    model.repo, file.name, revision=listing.commit, endpoint=self.endpoint
                ),
                headers=headers,
                file=file,
                blob=self.storage(model) / "blobs" / file.blob_id,
                lock=self.lock(model, file.blob_id),
                wait_s=self.wait_s,
                timeout_s=self.timeout_s,
            )
            for file in listing.files
        ]


@dataclass(frozen=True)
class Snapshot:
    """A complete checkpoint."""

    folder: Path
    commit: str  # of the requested revision


@dataclass(frozen=True)
class _Listed:
    """A model that the hub has, and its transfers."""

    listing: Listing
    transfers: list[Transfer]

    @property
    def model(self) -> HubModel:
        return self.listing.model

    @property
    def bytes_to_come(self) -> int:
        return sum(t.file.size_bytes - t.bytes_there for t in self.transfers)

    @property
    def small(self) -> list[Transfer]:
        return [transfer for transfer in self.transfers if not transfer.file.is_large]

    @property
    def large(self) -> list[Transfer]:
        return [transfer for transfer in self.transfers if transfer.file.is_large]


def fetch(
    models: Sequence[HubModel],
    bar: Bar,
    hub: Hub | None = None,
    check: Callable[[Mapping[HubModel, Path]], None] = lambda _: None,
) -> dict[HubModel, Snapshot]:
    """Download the models into the cache; files that are there already are not requested again.

    Without a network, or with HF_HUB_OFFLINE set, they come from the cache.

    Args:
        models: what to bring.
        bar: shows the weights coming.
        hub: from where and to where.
        check: called with folders that have all but the weights, before those come; may refuse.

    Raises:
        ExportError: with one line for each way in which this can fail, and what to type then.
    """
    hub = hub or Hub()
    with _quiet():
        # Look up all before downloading one, so that a wrong drafter is refused at once.
        found = {model: _ask(model, hub) for model in models}
        listed = [part for part in found.values() if isinstance(part, _Listed)]
        _refuse_full_disk(listed, hub)
        snapshots = {
            model: _begin(part, hub) if isinstance(part, _Listed) else part
            for model, part in found.items()
        }
        check({model: snapshot.folder for model, snapshot in snapshots.items()})
        _download(listed, bar, hub)
        for part in listed:
            _complete(part, snapshots[part.model].folder, hub)
        return snapshots


def _ask(model: HubModel, hub: Hub) -> _Listed | Snapshot:
    try:
        listing = read_listing(model, hub.endpoint, hub.timeout_s)
        return _Listed(listing, hub.transfers(listing))
    except FAILURES as error:
        if unreachable(error):
            return _cached(model, hub, error)
        raise explained(error, model, hub.endpoint) from error


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
        partly = isinstance(error, IncompleteSnapshotError)
        what = "only a part of it is" if partly else "it is neither a folder here nor"
        raise ExportError(
            f"{model}: {what} in the cache, and {no_answer(reason, hub.endpoint)}"
        ) from error
    snapshots, ref = (hub.storage(model) / name for name in ("snapshots", f"refs/{model.revision}"))
    if folder.parent != snapshots.resolve() or not COMMIT.fullmatch(folder.name):
        raise ExportError(
            f"{model}: {ref} in the cache names no commit, and {no_answer(reason, hub.endpoint)}"
        )
    logger.info("download    %s, from the cache, commit %s", model, folder.name[:12])
    return Snapshot(folder, folder.name)


def _refuse_full_disk(listed: Sequence[_Listed], hub: Hub) -> None:
    needed = sum(part.bytes_to_come for part in listed)
    there = next(path for path in (hub.cache, *hub.cache.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ExportError(
            f"{hub.cache}: the disk is too full: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB "
            "to download; free some room or set HF_HOME to a folder on another disk"
        )


def _begin(listed: _Listed, hub: Hub) -> Snapshot:
    """Download all files but the weights."""
    storage, commit = hub.storage(listed.model), listed.listing.commit
    folder = storage / "snapshots" / commit
    with _explained(listed.model, hub):
        # By this file, huggingface_hub recognizes an incomplete snapshot (_tree_cache.py, which
        # ignores a format that it does not know).
        tree = {"format_version": 1, "files": listed.listing.tree}
        _write(storage / "trees" / f"{commit}.json", json.dumps(tree, indent=1))
        for transfer in listed.small:
            transfer.run(lambda _: None)
            _name(transfer, folder)
    return Snapshot(folder, commit)


@contextmanager
def _explained(model: HubModel, hub: Hub) -> Iterator[None]:
    try:
        yield
    except ExportError as error:
        raise ExportError(f"{model}: {error}") from error
    except FAILURES as error:
        raise explained(error, model, hub.endpoint) from error


def _download(listed: Sequence[_Listed], bar: Bar, hub: Hub) -> None:
    missing = [(part.model, transfer) for part in listed for transfer in part.large]
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
                with _explained(model, hub):
                    transfer.run(_counted(transfer, there, progress))
            except (KeyboardInterrupt, Interrupted):
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


def _complete(listed: _Listed, folder: Path, hub: Hub) -> None:
    with _explained(listed.model, hub):
        for transfer in listed.large:
            _name(transfer, folder)
        if listed.model.revision != listed.listing.commit:
            ref = hub.storage(listed.model) / "refs" / listed.model.revision
            _write(ref, listed.listing.commit)


def _name(transfer: Transfer, folder: Path) -> None:
    """Give a blob its file name, as in huggingface_hub's cache."""
    path = folder / transfer.file.name
    if not path.is_file() or path.stat().st_size != transfer.file.size_bytes:
        _link(transfer.blob, path)
    _refuse_damaged(path, transfer.file)


def _link(blob: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except FileExistsError:  # another export was faster
        return
    except OSError:  # a file system without links
        shutil.copyfile(blob, path)


def _write(path: Path, text: str) -> None:
    """Write a file of the cache, which other programs may read meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


def _refuse_damaged(path: Path, file: RemoteFile) -> None:
    """Compare with the listing; only the size of large files, whose bytes were checked before."""
    found = path.stat().st_size
    if found != file.size_bytes:
        _remove(path)
        raise ExportError(
            f"{path.name} in the cache has {found} bytes, the hub's has "
            f"{file.size_bytes}; it was removed, run the command again"
        )
    if file.is_large:
        return
    digest = file.new_digest()
    digest.update(path.read_bytes())
    if digest.hexdigest() != file.blob_id:
        _remove(path)
        raise ExportError(
            f"{path.name} in the cache is not the hub's; it was removed, run the command again"
        )


def _remove(path: Path) -> None:
    """Remove a file of the cache: its name and its blob."""
    Path(os.path.realpath(path)).unlink()
    path.unlink(missing_ok=True)


def _storage_name(model: HubModel) -> str:
    return "--".join(("models", *model.repo.split("/")))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence huggingface_hub's bars and advice: the export shows its own progress."""
    verbosity, bars = hub_logging.get_verbosity(), not are_progress_bars_disabled()
    hub_logging.set_verbosity(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()

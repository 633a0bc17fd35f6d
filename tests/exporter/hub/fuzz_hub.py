"""Hubs that mean harm, on loopback; what comes of each is an ExportError or the right files.

    for attack in hostile_hubs(seed=1, count=50):
        attack.survive(folder)  # a new, empty folder; AssertionError where anything got through

An attack takes a tenth of a second, or up to one where it keeps silent. With HF_TOKEN set, survive
also asserts that no other host is told it.
"""

import contextlib
import copy
import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.config import HubModel
from exporter.errors import ExportError
from exporter.hub.snapshot import Hub, fetch
from exporter.progress import no_bar
from tests.exporter.hub.fake_hub import COMMIT, FakeHub, Repository, Request, _Handler, _siblings

MODEL = HubModel("maker/target")
WEIGHTS = "model.safetensors"
FILES = {
    "config.json": b'{"model_type": "gemma4"}',
    "tokenizer.json": b"{}" * 4000,
    "model.safetensors.index.json": b"{}",
    WEIGHTS: random.Random(0).randbytes(150_000),
}
TIMEOUT_S = 0.05
MOST_BYTES = 64 << 20  # that a client takes from one hostile hub: a listing, and what is buffered

Answer = Callable[[_Handler], None]  # to one request


@dataclass(frozen=True)
class Attack:
    """One hostile hub."""

    name: str
    where: str  # "listing", "small" or "large": the requests it answers itself
    answer: Answer

    def survive(self, folder: Path, timeout_s: float = TIMEOUT_S) -> str:
        """Download from it.

        Returns:
            The error's message; empty if the right files came all the same.
        """
        fake = FakeHub()
        fake.repositories[MODEL.repo] = Repository(dict(FILES))
        fake.attack = self._answered
        cache = folder / "home" / "cache"
        hub = Hub(endpoint=fake.endpoint, cache=cache, wait_s=0.0, timeout_s=timeout_s)
        message = ""
        try:
            snapshot = fetch([MODEL], no_bar, hub)[MODEL].folder
            found = {path.name: path.read_bytes() for path in snapshot.iterdir()}
            assert found.items() <= FILES.items(), self  # of a file not listed nobody knows
        except ExportError as error:
            message = str(error)
            assert message, self
            assert message.isprintable(), self
            assert len(message) < 600, self
        finally:
            fake.close()
        for path in folder.rglob("*"):
            inside = path.is_relative_to(cache) or cache.is_relative_to(path)
            assert inside, (self, path)
            assert path.resolve().is_relative_to(folder.resolve()), (self, path)
        assert {r.token for r in fake.requests if r.host != fake.endpoint} <= {None}, self
        assert sum(path.stat().st_size for path in cache.rglob("*")) < MOST_BYTES, self
        return message

    def _answered(self, handler: _Handler, request: Request) -> bool:
        if _place(handler, request) != self.where:
            return False
        with contextlib.suppress(OSError):  # the client left
            self.answer(handler)
        handler.close_connection = True
        return True


def hostile_hubs(seed: int, count: int) -> Iterator[Attack]:
    """`count` attacks: every kind in turn, each with what the seed draws for it."""
    rng = random.Random(seed)
    kinds = [(where, kind) for kind in BLUNT for where in ("listing", "small", "large")]
    kinds += [("listing", kind) for kind in LISTINGS] * 4
    for index in range(count):
        where, kind = kinds[index % len(kinds)] if index < len(kinds) else rng.choice(kinds)
        yield Attack(f"{index}: {kind.__name__} at {where}", where, kind(rng))


def _place(handler: _Handler, request: Request) -> str:
    if request.path.startswith("/api/"):
        return "listing"
    if request.host != handler.hub.endpoint:
        return "large"
    return "redirection" if request.path.endswith(WEIGHTS) else "small"


def silent(_: random.Random) -> Answer:
    return lambda handler: bool(handler.hub.over.wait(30)) and None


def slow_header(_: random.Random) -> Answer:
    return lambda handler: _trickle(handler, b"HTTP/1.1 200 OK\r\nX: " + b"y" * 10_000)


def slow_body(rng: random.Random) -> Answer:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 8000\r\n\r\n"
    return lambda handler: _trickle(handler, rng.randbytes(8000), head)


def slow_chunk(_: random.Random) -> Answer:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return lambda handler: _trickle(handler, b"5;" + b"x" * 8000, head)


def endless(rng: random.Random) -> Answer:
    status = rng.choice([200, 206, 404, 500])
    block = rng.choice([b" " * 65536, b"[" * 65536, b'{"sha":' * 8192])
    return lambda handler: _pour(handler, f"HTTP/1.1 {status} X\r\n\r\n".encode(), block)


def bomb(_: random.Random) -> Answer:
    content = gzip.compress(bytes(100 << 20), 1)
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    return lambda handler: handler.answer(200, headers, content)


def nonsense(rng: random.Random) -> Answer:
    content = rng.randbytes(rng.choice([0, 1, 100, 9000]))
    head = rng.choice([b"", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 99999 X\r\nContent-Length: -1"])
    return lambda handler: bool(handler.wfile.write(head + content)) and None


def status(rng: random.Random) -> Answer:
    code = rng.choice([204, 301, 304, 400, 401, 403, 404, 416, 418, 429, 500, 503, 599])
    said = rng.choice(["GatedRepo", "RepoNotFound", "EntryNotFound", "x\x1b]0;title"])
    return lambda handler: handler.answer(code, {"X-Error-Code": said, "X-Error-Message": said})


def wrong_range(rng: random.Random) -> Answer:
    said = rng.choice(["bytes 5-9/10", "bytes -1--1/-1", "bytes */*", "x" * 1000])
    return lambda handler: handler.answer(206, {"Content-Range": said}, rng.randbytes(50))


def wrong_headers(rng: random.Random) -> Answer:
    path = rng.choice(["../../../authorized_keys", "/tmp/x", "..\\..\\x", "a" * 300, ""])
    names = ("ETag", "X-Linked-ETag", "X-Repo-Commit", "X-Linked-Size", "Content-Disposition")
    headers = dict.fromkeys(names, f'"{path}"')
    return lambda handler: handler.answer(200, headers, FILES["config.json"])


def redirect(rng: random.Random) -> Answer:
    other = rng.choice(["file:///etc/passwd", "ftp://127.0.0.1/", "STORAGE", "http:///", "LOOP"])

    def answer(handler: _Handler) -> None:
        place = {"LOOP": handler.path, "STORAGE": f"{handler.hub.storage_url}/0"}.get(other, other)
        head = f"HTTP/1.1 302 X\r\nLocation: {place}\r\n\r\n".encode()
        _pour(handler, head, bytes(65536))

    return answer


BLUNT: tuple[Callable[[random.Random], Answer], ...] = (
    *(silent, slow_header, slow_body, slow_chunk, endless, bomb, nonsense, status),
    *(wrong_range, wrong_headers, redirect),
)

NAMES = (
    *(
        "model\\..\\x.safetensors",
        "model\0.safetensors",
        "model/../x.safetensors",
        "model.SAFETENSORS",
    ),
    *("modelä.safetensors", f"model{'x' * 300}.safetensors", "/model.safetensors", "..", ""),
    *("Model.safetensors", "model\x1b]0;title\x07.safetensors", "model .safetensors"),
)
VALUES: tuple[Any, ...] = (
    *("5", -1, True, 1e300, 2**62, 10**30, None, [], {}, "../../x", "0" * 39 + "\n", "\x1b[2J"),
    *("a" * 100_000, [[[[[]]]]], float("nan"), "G" * 40, "0" * 64),
)


def wrong_value(rng: random.Random) -> Answer:
    """One value of the listing is another."""

    def change(listing: dict[str, Any]) -> None:
        row = rng.choice(listing["siblings"])
        places = [(listing, key) for key in ("sha", "siblings")] + [(listing["siblings"], 0)]
        places += [(row, key) for key in ("size", "blobId", "lfs", "rfilename")]
        places += [(row.get("lfs", row), key) for key in ("size", "sha256")]
        place, key = rng.choice(places)
        place[key] = copy.deepcopy(rng.choice(VALUES))

    return _listing(change)


def wrong_name(rng: random.Random) -> Answer:
    """A file more, or one renamed."""

    def change(listing: dict[str, Any]) -> None:
        rows = listing["siblings"]
        if rng.random() < 0.5:
            rows.append(copy.deepcopy(rng.choice(rows)))
        rows[-1]["rfilename"] = rng.choice(NAMES)

    return _listing(change)


def many_files(rng: random.Random) -> Answer:
    count = rng.choice([5000, 200_000])

    def change(listing: dict[str, Any]) -> None:
        listing["siblings"] += [
            {**listing["siblings"][0], "rfilename": f"x{i}"} for i in range(count)
        ]

    return _listing(change)


def deep(rng: random.Random) -> Answer:
    content = rng.choice([b"[", b'{"sha":']) * 200_000
    return lambda handler: handler.answer(200, {}, content)


LISTINGS: tuple[Callable[[random.Random], Answer], ...] = (
    wrong_value,
    wrong_name,
    wrong_value,
    wrong_name,
    many_files,
    deep,
)


def _listing(change: Callable[[dict[str, Any]], None]) -> Answer:
    listing = {"id": "x", "sha": COMMIT, "siblings": _siblings(Repository(FILES))}
    change(listing)
    content = json.dumps(listing).encode()
    return lambda handler: handler.answer(200, {"Content-Type": "application/json"}, content)


def _trickle(handler: _Handler, content: bytes, head: bytes = b"") -> None:
    handler.wfile.write(head)
    for index in range(len(content)):
        if handler.hub.over.wait(TIMEOUT_S / 4):
            return
        handler.wfile.write(content[index : index + 1])


def _pour(handler: _Handler, head: bytes, block: bytes) -> None:
    """Without end, or as good as: a client that takes so much has no bound."""
    handler.wfile.write(head)
    for _ in range(5 * MOST_BYTES // len(block)):
        if handler.hub.over.is_set():
            return
        handler.wfile.write(block)

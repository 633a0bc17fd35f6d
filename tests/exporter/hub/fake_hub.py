"""A hub on loopback: the answers that huggingface_hub 2.4 asks for, and the ways they can fail.

Large files lie on a second server, as the hub's do: what reaches it must not carry a token.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

GOOD_TOKEN = "hf_known"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE_BYTES = 20_000  # from here on a file is stored aside, under its sha256


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    token: str | None
    host: str  # of the two servers


@dataclass
class Repository:
    """One model: its files and what is wrong with it."""

    files: dict[str, bytes]
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main",)
    gated: bool = False
    readers: tuple[str, ...] = ()  # tokens that a gated repository lets in
    sent: dict[str, bytes] = field(default_factory=dict)  # other bytes than the listing's


class FakeHub:
    """Both servers. Change `repositories` and the faults at any time."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.cut_after: int | None = None  # bytes of a large file before the connection breaks
        self.cuts_left = 0  # how often
        self.ignores_ranges = False
        self.over = threading.Event()
        self.status: int | None = None  # answer everything with it
        self.body: bytes | None = None  # answer everything with it
        # Called first with every request, on either server; it answers itself, or returns False.
        self.attack: Callable[[_Handler, Request], bool] | None = None
        self._hub, self._storage = _serve(_HubHandler, self), _serve(_StorageHandler, self)
        self.endpoint = f"http://127.0.0.1:{self._hub.server_address[1]}"
        self.storage_url = f"http://127.0.0.1:{self._storage.server_address[1]}"

    def close(self) -> None:
        self.over.set()
        for server in (self._hub, self._storage):
            server.shutdown()
            server.server_close()

    def add(self, name: str, folder: Path, **options: Any) -> Repository:
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.repositories[name] = Repository(files, **options)
        return self.repositories[name]

    def asked(self, method: str, part: str) -> list[Request]:
        return [r for r in self.requests if r.method == method and part in r.path]


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    try:
        yield hub
    finally:
        hub.close()


def _serve(handler: type[BaseHTTPRequestHandler], fake: FakeHub) -> ThreadingHTTPServer:
    bound = type("Handler", (handler,), {"hub": fake})
    server = _Server(("127.0.0.1", 0), bound)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that leaves in the middle is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def note(self) -> Request:
        if self.hub.over.is_set():  # a connection that was kept open
            raise ConnectionAbortedError
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        request = Request(
            method=self.command,
            path=self.path,
            range=self.headers.get("Range"),
            token=token if scheme else None,
            host=f"http://127.0.0.1:{self.server.server_address[1]}",
        )
        self.hub.requests.append(request)
        return request

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()


class _HubHandler(_Handler):
    def do_GET(self) -> None:
        request = self.note()
        if self.hub.attack is not None and self.hub.attack(self, request):
            return
        if self.hub.status is not None:
            self.answer(self.hub.status, {})
        elif self.hub.body is not None:
            self.answer(200, {}, self.hub.body)
        elif request.token not in (None, GOOD_TOKEN, "hf_other"):
            message = "Invalid credentials in Authorization header"
            self.answer(401, {"X-Error-Message": message})
        else:
            parts = [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]
            self.route(request, parts)

    def route(self, request: Request, parts: list[str]) -> None:
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        kind, revision = (parts[4], parts[5]) if api else (parts[2], parts[3])
        repository = self.hub.repositories.get(name)
        if repository is None:  # the hub does not say so to strangers
            self.answer(404 if request.token else 401, {"X-Error-Code": "RepoNotFound"})
        elif revision not in (*repository.revisions, repository.commit):
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        elif api and kind == "revision":
            self.json({"id": name, "sha": repository.commit, "siblings": _siblings(repository)})
        elif api and kind == "tree":
            self.json(_tree(repository))
        elif repository.gated and request.token not in repository.readers:
            status = 403 if request.token else 401
            self.answer(status, {"X-Error-Code": "GatedRepo"})
        else:
            self.resolve(repository, "/".join(parts[4:]))

    def resolve(self, repository: Repository, name: str) -> None:
        commit = {"X-Repo-Commit": repository.commit}
        content = repository.files.get(name)
        if content is None:
            self.answer(404, {"X-Error-Code": "EntryNotFound", **commit})
        elif len(content) < LARGE_BYTES:
            etag = {"ETag": f'"{_git_sha1(content)}"', **commit}
            self.answer(200, etag, repository.sent.get(name, content))
        else:
            sha256 = hashlib.sha256(content).hexdigest()
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha256}"'}
            place = {"Location": f"{self.hub.storage_url}/{sha256}"}
            self.answer(302, {**commit, **linked, **place})

    def json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.answer(200, {"Content-Type": "application/json"}, body)


class _StorageHandler(_Handler):
    def do_GET(self) -> None:
        request = self.note()
        if self.hub.attack is not None and self.hub.attack(self, request):
            return
        content = _stored(self.hub, self.path.strip("/"))
        start = 0
        if request.range is not None and not self.hub.ignores_ranges:
            start = int(request.range.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content) > 0 and start:
            self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
            return
        headers = {"Content-Length": str(len(content) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send_response(206 if start else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        body = content[start:]
        if self.hub.cut_after is not None and self.hub.cuts_left > 0:
            self.hub.cuts_left -= 1
            body = body[: self.hub.cut_after]
            self.close_connection = True
        self.wfile.write(body)


def _stored(fake: FakeHub, sha256: str) -> bytes:
    for repository in fake.repositories.values():
        for name, content in repository.files.items():
            if hashlib.sha256(content).hexdigest() == sha256:
                return repository.sent.get(name, content)
    return b""


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _siblings(repository: Repository) -> list[dict[str, Any]]:
    rows = []
    for name, content in repository.files.items():
        row: dict[str, Any] = {"rfilename": name, "size": len(content)}
        row["blobId"] = _git_sha1(content)
        if len(content) >= LARGE_BYTES:
            sha256 = hashlib.sha256(content).hexdigest()
            row["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 134}
        rows.append(row)
    return rows


def _tree(repository: Repository) -> list[dict[str, Any]]:
    rows = []
    for row in _siblings(repository):
        entry = {"type": "file", "path": row["rfilename"], "size": row["size"]}
        entry["oid"] = row["blobId"]
        if "lfs" in row:
            entry["lfs"] = {**row["lfs"], "oid": row["lfs"]["sha256"]}
        rows.append(entry)
    return rows

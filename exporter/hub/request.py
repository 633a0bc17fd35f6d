"""One request to a hub, bounded in time and bytes, because the server is untrusted.

What httpx does by itself has no bound: its time-outs hold for one read of the socket, it reads the
body of a redirection whole, and it unpacks whatever comes compressed.
"""

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpx2
from huggingface_hub import get_session, hf_raise_for_status

from runtime_py.terminal.printable import shown

TIMEOUT_S = 20.0
MIN_BYTES = 64 << 10  # in each TIMEOUT_S; a slower hub counts as silent
MAX_REDIRECTS = 10
WAITING_CHUNKS = 16  # received and not consumed yet
LOOK_S = 0.2  # between two checks whether the answer is still wanted


@dataclass(frozen=True)
class Answer:
    """The answer to one request."""

    response: httpx2.Response
    chunks: Iterator[bytes]  # of the body, as they arrive

    @property
    def status(self) -> int:
        return self.response.status_code

    def raise_for_status(self) -> None:
        """Raise huggingface_hub's error for an error status, without reading its body."""
        hf_raise_for_status(
            httpx2.Response(
                self.status,
                headers={
                    name: value
                    for name, value in self.response.headers.items()
                    if name.startswith("x-error-")
                },
                request=self.response.request,
            )
        )


@contextmanager
def ask(url: str, headers: Mapping[str, str], timeout_s: float = TIMEOUT_S) -> Iterator[Answer]:
    """GET `url`, following redirects; the token is sent to its own host only.

    Raises:
        httpx2.HTTPError: nothing comes, or less than MIN_BYTES in `timeout_s`; so may `chunks`.
        ValueError: the answer is no hub's.
    """
    pump = _Pump(url, {**headers, "Accept-Encoding": "identity"}, timeout_s)
    threading.Thread(target=pump.run, daemon=True).start()
    try:
        response = pump.response()
        if response.headers.get("Content-Encoding", "") not in ("", "identity"):
            raise ValueError("it compresses what was asked for as it is")
        yield Answer(response, pump.chunks())
    finally:
        pump.unwanted.set()


def read(url: str, headers: Mapping[str, str], max_bytes: int, timeout_s: float) -> bytes:
    """The body of a small answer.

    Raises:
        httpx2.HTTPError, ValueError: as ask, and when it is longer than `max_bytes`.
    """
    content = bytearray()
    with ask(url, headers, timeout_s) as answer:
        answer.raise_for_status()
        for chunk in answer.chunks:
            content += chunk
            if len(content) > max_bytes:
                raise ValueError(f"its answer is longer than {max_bytes} bytes")
    return bytes(content)


@dataclass
class _Pump:
    """Reads in a separate thread, which can be abandoned when nothing arrives.

    A socket's timeout does not end a header, or a chunk's first line, that arrives byte by byte.
    """

    url: str
    headers: Mapping[str, str]
    timeout_s: float
    unwanted: threading.Event = field(default_factory=threading.Event)
    came: "queue.Queue[httpx2.Response | bytes | Exception | None]" = field(
        default_factory=lambda: queue.Queue(WAITING_CHUNKS)
    )

    def run(self) -> None:
        try:
            with _follow(self.url, self.headers, self.timeout_s) as response:
                self._put(response)
                for chunk in response.iter_raw():
                    self._put(chunk)
            self._put(None)
        except _UnwantedError:
            pass
        except Exception as error:  # raised again in the waiting thread
            with suppress(_UnwantedError):
                self._put(error)

    def response(self) -> httpx2.Response:
        response = self._take()
        assert isinstance(response, httpx2.Response)
        return response

    def chunks(self) -> Iterator[bytes]:
        waited_s, came = 0.0, 0
        while True:
            start = time.monotonic()
            chunk = self._take()
            waited_s += time.monotonic() - start
            if chunk is None:
                return
            assert isinstance(chunk, bytes)
            yield chunk
            came += len(chunk)
            if waited_s > self.timeout_s:
                if came < MIN_BYTES:
                    raise httpx2.ReadTimeout(f"only {came} bytes came in {waited_s:.0f} s")
                waited_s, came = 0.0, 0

    def _take(self) -> httpx2.Response | bytes | None:
        try:
            item = self.came.get(timeout=self.timeout_s)
        except queue.Empty:
            raise httpx2.ReadTimeout(f"nothing came in {self.timeout_s:g} s") from None
        if isinstance(item, Exception):
            raise item
        return item

    def _put(self, item: httpx2.Response | bytes | Exception | None) -> None:
        while not self.unwanted.is_set():
            try:
                return self.came.put(item, timeout=LOOK_S)
            except queue.Full:
                continue
        raise _UnwantedError


class _UnwantedError(Exception):
    """The answer is no longer wanted."""


@contextmanager
def _follow(url: str, headers: Mapping[str, str], timeout_s: float) -> Iterator[httpx2.Response]:
    session = get_session()
    request = session.build_request("GET", url, headers=dict(headers), timeout=timeout_s)
    for _ in range(MAX_REDIRECTS + 1):
        response = session.send(request, stream=True, follow_redirects=False)
        try:
            if response.next_request is None:
                yield response
                return
        finally:
            response.close()
        following = response.next_request  # without the token if it goes to another host
        if following.url.scheme not in ("https", request.url.scheme):
            raise ValueError(f"it redirects to {shown(following.url)}")
        request = following
    raise ValueError(f"it redirects more than {MAX_REDIRECTS} times")

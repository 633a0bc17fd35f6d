"""The backends that test_backends.py holds to the same laws, each with a toy bundle.

A new backend is one entry of TOYS: write a generator next to toy_litert.py, keep its bundle and
what its eager modules computed in git. Every toy has 48 tokens, hidden size 16 and 24 KV rows;
those of INT8_TOYS are the same with int8 KV rows.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from runtime_py.backends import Backend
from runtime_py.backends.executorch import library as executorch_library
from runtime_py.backends.executorch.backend import open_executorch
from runtime_py.backends.fill_finish import FillFinishBackend
from runtime_py.backends.litert import library as litert_library
from runtime_py.backends.litert.backend import LiteRTBackend
from runtime_py.backends.onnx.backend import open_onnx

FOLDER = Path(__file__).parent
VOCAB_SIZE = 48
HIDDEN_SIZE = 16
CACHE_LENGTH = 24


@dataclass(frozen=True, kw_only=True)
class Toy:
    """What opens a backend, its toy bundle and what the tests must know besides."""

    extra: str  # the runtime's name, and that of the extra which installs it
    backend: Callable[..., Backend]
    bundle: Path
    reference: Path  # .npz: token_ids [C], and what follows each of them
    verify_widths: tuple[int, ...]
    without_drafter: Callable[[Path], Mapping[str, bytes]]  # the same files, less the drafter
    hide_runtime: Callable[[Any], None]  # takes pytest's monkeypatch

    def open(self, path: Path | None = None) -> Backend:
        return self.backend(path or self.bundle, num_threads=1)

    @staticmethod
    def kv(backend: Any) -> dict[str, np.ndarray]:
        """The KV buffers of a LiteRT or an ONNX backend, by name."""
        kv = backend._graphs.kv if isinstance(backend, FillFinishBackend) else backend._kv
        return cast(dict[str, np.ndarray], kv)

    def expected(self) -> dict[str, np.ndarray]:
        with np.load(self.reference) as arrays:
            return dict(arrays)


def _hide_litert(monkeypatch: Any) -> None:
    load = litert_library.load_library.__wrapped__  # loads again what the process has loaded
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setattr("runtime_py.backends.litert.model.environment", load)


def _hide_executorch(monkeypatch: Any) -> None:
    load = executorch_library.load_library.__wrapped__  # loads again what the process has loaded
    monkeypatch.setattr(executorch_library, "find_executorch", lambda: None)
    monkeypatch.setattr("runtime_py.backends.executorch.program.load_library", load)


def _hide_onnx(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)


def _litert_without_drafter(bundle: Path) -> dict[str, bytes]:
    named, other = b"tf_lite_mtp_drafter", b"tf_lite_mtp_unknown"
    return {bundle.name: bundle.read_bytes().replace(named, other, 1)}


def _onnx_without_drafter(bundle: Path) -> dict[str, bytes]:
    """Both graphs must say so; the one that drafts and its weights may be there or not."""
    number, other = b"has_drafter\x12\x011", b"has_drafter\x12\x010"
    files = {path.name: path.read_bytes() for path in bundle.parent.glob("model.*")}
    del files["model.draft.onnx"]
    return {name: content.replace(number, other) for name, content in files.items()}


LITERT = Toy(
    extra="litert",
    backend=LiteRTBackend,
    bundle=FOLDER / "toy.litertlm",
    reference=FOLDER / "toy_reference.npz",
    verify_widths=(1, 2, 4),
    without_drafter=_litert_without_drafter,
    hide_runtime=_hide_litert,
)
EXECUTORCH = Toy(
    extra="executorch",
    backend=open_executorch,
    bundle=FOLDER / "toy.pte",
    reference=FOLDER / "toy_executorch_reference.npz",
    verify_widths=(1, 2, 3, 4),
    without_drafter=lambda _: {"toy.pte": (FOLDER / "toy_without_drafter.pte").read_bytes()},
    hide_runtime=_hide_executorch,
)
ONNX = Toy(
    extra="onnx",
    backend=open_onnx,
    bundle=FOLDER / "toy_onnx" / "model.fill.onnx",
    reference=FOLDER / "toy_onnx" / "reference.npz",
    verify_widths=(1, 2, 3, 4),
    without_drafter=_onnx_without_drafter,
    hide_runtime=_hide_onnx,
)
LITERT_INT8 = replace(
    LITERT, bundle=FOLDER / "toy_int8.litertlm", reference=FOLDER / "toy_int8_reference.npz"
)
ONNX_INT8 = replace(
    ONNX,
    bundle=FOLDER / "toy_onnx_int8" / "model.fill.onnx",
    reference=FOLDER / "toy_onnx_int8" / "reference.npz",
)
TOYS = {"executorch": EXECUTORCH, "litert": LITERT, "onnx": ONNX}
INT8_TOYS = {"litert": LITERT_INT8, "onnx": ONNX_INT8}

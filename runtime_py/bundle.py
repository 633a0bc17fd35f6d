"""Open a bundle: manifest, tokenizer, reference, and the backend that runs its graphs."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from runtime_py.backends import Backend, SessionOptions
from runtime_py.bundle_folder import bundle_folder
from runtime_py.chat_template import read_template
from runtime_py.errors import RunError
from runtime_py.installed import is_installed, require
from runtime_py.manifest import (
    Manifest,
    RuntimeEntry,
    RuntimeName,
    bundle_path,
    read_manifest,
)
from runtime_py.onnx_files import onnx_files
from runtime_py.printable import shown
from runtime_py.probe import probe_model
from runtime_py.reference import Reference, read_reference
from runtime_py.speculative import Session
from runtime_py.tokenizer import Tokenizer
from runtime_py.verified import Bar, no_bar, verify_files


def _open_litert(model: Path, options: SessionOptions) -> Backend:
    from runtime_py.backends.litert import LiteRTBackend

    _refuse_providers(model, options)
    return LiteRTBackend(model, num_threads=options.num_threads)


def _open_executorch(model: Path, options: SessionOptions) -> Backend:
    from runtime_py.backends.executorch import ExecuTorchBackend

    _refuse_providers(model, options)
    return ExecuTorchBackend(model, num_threads=options.num_threads)


def _open_onnx(model: Path, options: SessionOptions) -> Backend:
    from runtime_py.backends.onnx import OnnxBackend

    return OnnxBackend(model, num_threads=options.num_threads, providers=options.providers)


def _refuse_providers(model: Path, options: SessionOptions) -> None:
    if options.providers:
        raise RunError(
            f"{model}: {', '.join(options.providers)}: only onnxruntime has execution providers; "
            "leave --provider out, or choose --runtime onnx"
        )


Open = Callable[[Path, SessionOptions], Backend]
BACKENDS: dict[RuntimeName, Open] = {
    "litert": _open_litert,
    "executorch": _open_executorch,
    "onnx": _open_onnx,
}


@dataclass(frozen=True)
class Bundle:
    """An exported model folder whose manifest was read and whose files are all there."""

    folder: Path
    manifest: Manifest
    bar: Bar = no_bar  # shows the reading of large files

    @classmethod
    def open(cls, folder: Path, bar: Bar = no_bar) -> "Bundle":
        """Read the manifest of a bundle's folder, or of the folder that a file of it lies in.

        Raises:
            RunError: if the folder is no bundle, or a file is missing, truncated or outside it.
        """
        try:
            os.path.abspath(folder).encode()
        except UnicodeEncodeError:
            raise RunError(
                f"{folder}: its path is not UTF-8, which no runtime can open; rename the folder"
            ) from None
        folder = bundle_folder(folder)
        return cls(folder, read_manifest(folder), bar)

    def verify_checksums(self) -> None:
        """Read every file. Raises RunError naming the first that is not what was exported."""
        verify_files(self.folder, self.manifest.files, self.bar, in_full=True)

    def _path(self, name: str) -> Path:
        """A file that is about to be opened: listed, and with the checksum that the list says."""
        entry = self.manifest.files.get(name)
        if entry is None:
            raise RunError(
                f"{self.folder}: {name!r} is used but not listed in the manifest; export again"
            )
        verify_files(self.folder, {name: entry}, self.bar)
        return bundle_path(self.folder, name)

    def tokenizer(self) -> Tokenizer:
        tokens = self.manifest.tokens
        template = tokens.chat_template
        return Tokenizer(
            self._path(tokens.tokenizer),
            tokens,
            None if template is None else read_template(self._path(template)),
            self.manifest.model.context_length,
        )

    def reference(self) -> Reference:
        """What the original said.

        Raises:
            RunError: if it is no recording, or one of other tokens than the manifest's.
        """
        model, tokens = self.manifest.model, self.manifest.tokens
        path = self._path(self.manifest.reference)
        reference = read_reference(path, model.vocab_size, model.context_length)
        recorded = tokens if reference.tokens is None else reference.tokens
        for name, said in tokens:
            if said != (found := getattr(recorded, name)):
                raise RunError(
                    f"{path}: recorded with {name} {shown(found)}, the manifest says "
                    f"{shown(said)}; copy all files of one bundle again"
                )
        return reference

    def pick_runtime(self, wanted: str | None) -> RuntimeName:
        """The runtime to use: the wanted one, or the first that is installed.

        Raises:
            RunError: if the bundle was not made for it, or none of the bundle's is installed.
        """
        names = list(self.manifest.runtimes)
        if wanted is None:
            name = next(filter(is_installed, names), names[0])
        else:
            name = self.made_for(wanted)
        require(name, self.folder)
        return name

    def made_for(self, wanted: str) -> RuntimeName:
        """The same name, if the bundle was made for it; installed or not.

        Raises:
            RunError: if it was not.
        """
        names = list(self.manifest.runtimes)
        for name in names:
            if name == wanted:
                return name
        raise RunError(
            f"{self.folder}: made for {', '.join(names)}; cannot be run with {wanted}; "
            f"export with --runtime {wanted}"
        )

    def entry(self, runtime: RuntimeName) -> RuntimeEntry:
        return self.manifest.runtimes[runtime]

    def model_path(self, runtime: RuntimeName) -> Path:
        """The file that the runtime loads, verified together with those that this one opens."""
        name = self.entry(runtime).model
        path = self._path(name)
        if runtime == "onnx":
            beside = PurePosixPath(name).parent
            for file in onnx_files(path):
                self._path((beside / file).as_posix())
        return path

    def backend(self, runtime: RuntimeName, options: SessionOptions) -> Backend:
        """Load the graphs; the caller closes the backend.

        Raises:
            RunError: if they do not load, or are of other sizes than the manifest says.
        """
        backend = BACKENDS[runtime](self.model_path(runtime), options)
        try:
            self._prove_sizes(runtime, backend)
        except RunError:
            backend.close()
            raise
        return backend

    def _prove_sizes(self, runtime: RuntimeName, backend: Backend) -> None:
        model = self.manifest.model
        for name, said, found in (
            ("vocab_size", model.vocab_size, backend.vocab_size),
            ("hidden_size", model.hidden_size, backend.hidden_size),
            ("context_length", model.context_length, backend.cache_length),
            ("has_drafter", model.has_drafter, backend.has_drafter),
        ):
            if said != found:
                raise RunError(
                    f"{self.folder}: the manifest says {name} is {said}, the graphs of {runtime} "
                    f"say {found}; copy all files of one bundle again"
                )

    def try_backend(self, runtime: RuntimeName, options: SessionOptions) -> None:
        """Load and call the graphs in a process of its own first, which they may end.

        Raises:
            RunError: if they ended it, or did not come to an end.
        """
        size_bytes = sum(entry.size_bytes for entry in self.manifest.files.values())
        probe_model(runtime, self.model_path(runtime), size_bytes, options)

    def session(self, backend: Backend) -> Session:
        """A new sequence over a loaded backend."""
        return Session(backend, self.manifest.model.context_length)

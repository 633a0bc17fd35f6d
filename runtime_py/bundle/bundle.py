"""Open a bundle. Each of its files is verified before it is used."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from runtime_py.bundle.chat_template import read_template
from runtime_py.bundle.folder import bundle_folder
from runtime_py.bundle.manifest import (
    Manifest,
    RuntimeEntry,
    RuntimeName,
    bundle_path,
    read_manifest,
)
from runtime_py.bundle.reference import Reference, read_reference
from runtime_py.bundle.tokenizer import Tokenizer
from runtime_py.bundle.verified import Bar, no_bar, verify_files
from runtime_py.errors import RunError
from runtime_py.formats.onnx_files import onnx_files
from runtime_py.terminal.printable import shown


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read and whose files all exist."""

    folder: Path
    manifest: Manifest
    bar: Bar = no_bar  # shows progress while large files are read

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
        """Compare every file with its checksum; raises RunError naming the first that differs."""
        verify_files(self.folder, self.manifest.files, self.bar, in_full=True)

    def _path(self, name: str) -> Path:
        """The path of a listed file, once its checksum was verified."""
        entry = self.manifest.files.get(name)
        if entry is None:
            raise RunError(
                f"{self.folder}: {name!r} is used but not listed in the manifest; export again"
            )
        verify_files(self.folder, {name: entry}, self.bar)
        return bundle_path(self.folder, name)

    def tokenizer(self) -> Tokenizer:
        """With the chat template; read when first asked for."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokens = self.manifest.tokens
        template = tokens.chat_template
        return Tokenizer(
            self._path(tokens.tokenizer),
            tokens,
            None if template is None else read_template(self._path(template)),
            self.manifest.model.context_length,
        )

    def reference(self) -> Reference:
        """The recorded reference.

        Raises:
            RunError: if it is damaged, or was recorded with other tokens than the manifest's.
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

    def made_for(self, wanted: str) -> RuntimeName:
        """`wanted`, if the bundle has graphs for it, installed or not.

        Raises:
            RunError: if it has none.
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
        """The file that the runtime loads; it and the files that it refers to are verified."""
        name = self.entry(runtime).model
        path = self._path(name)
        if runtime == "onnx":
            beside = PurePosixPath(name).parent
            for file in onnx_files(path):
                self._path((beside / file).as_posix())
        return path

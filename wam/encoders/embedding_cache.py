"""Embeddings of texts on disk: one file a text, written whole or not at all, readable by any number of processes."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import zipfile
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)


def default_directory() -> Path:
    """Where caches of the user lie: `$XDG_CACHE_HOME/wam/text`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wam" / "text"


class EmbeddingCache:
    """text -> tokens [n, D] float32, under the identity of what encoded it.

    An entry is a `.npz` without pickles that names its text and identity; its parts carry checksums. One that cannot be
    read, or is of something else, counts as absent, and the log says so.
    """

    def __init__(self, directory: str | Path, identity: str):
        self.identity = identity
        self.directory = Path(directory) / hashlib.sha256(identity.encode()).hexdigest()[:32]

    def path(self, text: str) -> Path:
        return self.directory / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"

    def read(self, text: str) -> np.ndarray | None:
        """The embedding of a text; None if there is none that can be trusted."""
        path = self.path(text)
        try:
            with np.load(path, allow_pickle=False) as entry:
                if (str(entry["text"]), str(entry["identity"])) != (text, self.identity):
                    raise ValueError("it is of another text or encoder")
                return np.asarray(entry["tokens"], np.float32)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("the cached embedding %s is damaged (%s): the text is encoded again", path, error)
            return None

    def write(self, text: str, tokens: np.ndarray) -> None:
        """Adds or replaces an entry. OSError names the cache when it cannot be written."""
        path = self.path(text)
        temporary = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.savez(file, tokens=np.asarray(tokens, np.float32), text=text, identity=self.identity)
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise OSError(f"cannot write the embedding cache {self.directory}: {error.strerror or error}") from None

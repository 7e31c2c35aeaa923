"""Compiled kernels between processes, as Numba keeps them, but found by their sources' content and
with a check sum before each file.

Numba looks for a kernel by the path and the time of its source. The sources of a submitted job lie
in a new folder each time, so it would compile all of them anew, for a minute. Numba also writes its
files without syncing them, so a machine that stops may leave empty ones, and Numba raises whatever
its unpickling raises. Here a file that is not as it was written counts as absent: the kernel is
compiled again and the file replaced. The classes are Numba's own apart from that.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

_DIGEST_BYTES = 16


def keep_compiled(dispatcher: Any) -> Any:
    """A function of `njit` that is compiled once per machine and version of its folder's sources;
    where nothing can be written, once per process.

    Kept in NUMBA_CACHE_DIR where that is set, else in the user's cache folder, else beside the
    source.
    """
    with suppress(RuntimeError):  # no folder that can be written to
        dispatcher._cache = _kernel_cache()(dispatcher.py_func)
    return dispatcher


@cache
def folder_for(sources: Path) -> Path | None:
    """Where kernels of the Python files in the folder `sources` are kept; None where no place can
    be written to. A kernel contains kernels of the files beside its own, so each version of all of
    them has a folder."""
    from numba import config

    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(sources.glob("[!.]*.py")):
        digest.update(f"{file.name}\0".encode() + file.read_bytes())
    own = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    places = [Path(own, "engram"), sources / "__pycache__"]
    for base in [Path(config.CACHE_DIR)] if config.CACHE_DIR else places:
        folder = base / f"kernels-{digest.hexdigest()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return None


@cache
def _kernel_cache() -> Any:
    """The class of the cache. Numba takes a second to import, and only a process that compiles
    needs it."""
    from numba.core.caching import CompileResultCacheImpl, FunctionCache

    files = _files()

    class Kept(CompileResultCacheImpl):
        _locator_classes = (_locator(),)

    class KernelCache(FunctionCache):
        _impl_class = Kept

        def __init__(self, function: Callable[..., Any]):
            super().__init__(function)
            self._cache_file = files(
                cache_path=self._cache_path,
                filename_base=self._impl.filename_base,
                source_stamp=self._impl.locator.get_source_stamp(),
            )

        def save_overload(self, sig: Any, data: Any) -> None:
            try:
                super().save_overload(sig, data)
            except OSError:
                self.disable()  # a full disk: the next process compiles it again

    return KernelCache


def _locator() -> Any:
    """The class that says where the files of one function lie."""
    from numba.core.caching import _CacheLocator

    class Locator(_CacheLocator):
        """Their folder's name is the stamp of their sources."""

        def __init__(self, function: Callable[..., Any], folder: Path):
            self._line, self._folder = function.__code__.co_firstlineno, folder

        def get_cache_path(self) -> str:
            return str(self._folder)

        def get_source_stamp(self) -> str:
            return self._folder.name

        def get_disambiguator(self) -> str:
            return str(self._line)

        @classmethod
        def from_function(cls, function: Callable[..., Any], file: str) -> Locator | None:
            folder = folder_for(Path(file).parent)
            return None if folder is None else cls(function, folder)

    return Locator


def _files() -> Any:
    """The class of the files of one function."""
    from numba.core.caching import IndexDataCacheFile

    class Files(IndexDataCacheFile):
        """An index from signatures to files of machine code."""

        def _load_index(self) -> dict[Any, str]:
            content = _read(self._index_path)
            if content is None:
                return {}
            version, data = pickle.loads(content)
            if version != self._version:
                return {}  # what follows may not be readable
            stamp, overloads = pickle.loads(data)
            return overloads if stamp == self._source_stamp else {}

        def _save_index(self, overloads: dict[Any, str]) -> None:
            data = self._dump((self._source_stamp, overloads))
            self._write(self._index_path, pickle.dumps((self._version, data)))

        def _load_data(self, name: str) -> Any:
            content = _read(self._data_path(name))
            if content is None:
                # For Numba's `load`, which then finds nothing.
                raise OSError(f"{name} is not whole")
            return pickle.loads(content)

        def _save_data(self, name: str, data: Any) -> None:
            self._write(self._data_path(name), self._dump(data))

        def _write(self, path: str, content: bytes) -> None:
            with self._open_for_write(path) as file:
                file.write(_digest(content) + content)

    return Files


def _read(path: str) -> bytes | None:
    """The bytes that were written to a file; None where it is not there or not whole."""
    try:
        content = Path(path).read_bytes()
    except OSError:
        return None
    digest, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return content if digest == _digest(content) else None


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()

"""Token stores in object storage: `s3://bucket/tokens/web`, or any other URL that fsspec knows.

Training reads at random, so the files are copied once into a folder of the machine and memory mapped from there:
`CACHE/NAME-HASH/VERSION/`. VERSION is a hash of the sizes and tags of the objects: changed objects make another version
and never mix with those before. A file is written aside, checked, and then gets its name; a copy that is stopped is
resumed. Of the processes of a machine one copies, others wait.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internevo.files.durable import aside_of, make_durable
from internevo.files.errors import UserError
from internevo.files.lock import locked
from internevo.files.urls import is_remote
from internevo.tokens.flat import ENDINGS, NAMED
from internevo.tokens.prepared_folder import HELDOUT, MANIFEST, TRAIN

_CHUNK = 16 * 2**20  # bytes that are asked for at a time
_FILES = 8  # files that are copied at the same time
_TAGS = ("ETag", "etag", "generation", "blob_id", "md5Hash", "sha", "LastModified", "mtime", "created")
"""File systems' names for what changes with an object, the best first."""
_PAIR = r"(-\d{5}-of-\d{5})?\.(bin|idx)"  # after a store's name: a pair's files, or those of a shard
_PACKAGES = {
    "s3": "s3fs: pip install 'internevo[s3]'",
    "gs": "gcsfs: pip install gcsfs",
    "gcs": "gcsfs: pip install gcsfs",
    "hf": "huggingface_hub: pip install huggingface_hub",
}
_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "huggingface_hub", "httpx", "requests")
"""Packages whose errors come from the connection to the storage."""

Show = Callable[[int, int], None]  # called with how many bytes are copied, and of how many


@dataclass(frozen=True)
class RemoteFile:
    path: str
    size: int
    tag: str  # changes when the object does

    @property
    def name(self) -> str:
        return _last(self.path)


@dataclass(frozen=True)
class RemoteStore:
    """What stands at a URL: a folder of files, or the files of one store in it."""

    url: str
    fs: Any
    files: dict[str, RemoteFile]  # the files of stores, by name
    name: str  # of a single store within its folder; empty for a folder

    def folder(self, cache: Path) -> Path:
        tags = [f"{name} {file.size} {file.tag}" for name, file in sorted(self.files.items())]
        return cache.expanduser() / f"{_last(self.url)}-{_hash(self.url)}" / _hash("\n".join(tags))

    def wanted(self, part: str) -> list[RemoteFile]:
        """The files of `train` or `heldout`, the manifest first. A single store has no held-out documents."""
        if self.name:
            return list(self.files.values()) if part == TRAIN else []
        flat = part == TRAIN
        chosen = [name for name in self.files if re.fullmatch(part + _PAIR, name) or (flat and _flat(name))]
        return [self.files[name] for name in (MANIFEST, *sorted(chosen)) if name in self.files]


def local_copy(path: str | Path, part: str, cache: str | Path, show: Show = lambda done, total: None) -> Path:
    """Where the store `path` is on this machine: itself, or its copy, which is made or completed now.

    Of a prepared folder, the files of `part` (`train` or `heldout`) are copied. Raises UserError when there is no
    store, it cannot be reached or read, the disk is too small, or what arrives is not what was written.
    """
    if not is_remote(path):
        return Path(path)
    url = str(path)
    store = look(url)
    folder, files = store.folder(Path(cache)), store.wanted(part)
    if _missing(folder, files):
        with _as_user_error(url), locked(folder / "lock", wait=True):
            _copy(store, folder, _missing(folder, files), show)
    return folder / store.name


@functools.cache
def look(url: str) -> RemoteStore:
    """What stands at `url` when this process first asks: a run must not end when the storage cannot be reached later,
    nor see other objects. Raises UserError when there is no store or it cannot be reached."""
    with _as_user_error(url):
        from fsspec.core import url_to_fs

        fs, path = url_to_fs(url, use_listings_cache=False)
        inside = fs.isdir(path)
        folder, _, name = (path.rstrip("/"), "", "") if inside else path.rstrip("/").rpartition("/")
        files = {}
        for info in fs.ls(folder, detail=True):
            own = _last(info["name"])
            if info["type"] == "file" and _of_a_store(own, name):
                files[own] = RemoteFile(info["name"], int(info["size"] or 0), _tag(info))
        store = RemoteStore(url, fs, files, name)
        if len(store.wanted(TRAIN)) == (MANIFEST in files):
            raise FileNotFoundError
        return store


def fetch(urls: dict[str, str], show: Show) -> None:
    """Copy the training and held-out documents of stores, each URL with its cache, with one account of all bytes."""
    sizes = {(url, part): sum(one.size for one in look(url).wanted(part)) for url in urls for part in (TRAIN, HELDOUT)}
    before, total = 0, sum(sizes.values())
    for (url, part), size in sizes.items():
        local_copy(url, part, urls[url], lambda done, _, base=before: show(base + done, total))  # type: ignore[misc]
        before += size
        show(before, total)


def _flat(name: str) -> bool:
    return name.removesuffix(".index").removesuffix(".metadata").endswith(ENDINGS)


def _of_a_store(file: str, name: str) -> bool:
    """Whether a file belongs to the store `name` in its folder; to any store when that is empty."""
    if file == MANIFEST:
        return True
    if name.endswith(NAMED):
        return file in (name, f"{name}.index", f"{name}.metadata")
    prefix = re.escape(name) if name else f"({TRAIN}|{HELDOUT})"
    return bool(re.fullmatch(prefix + _PAIR, file)) or (not name and _flat(file))


def _missing(folder: Path, files: list[RemoteFile]) -> list[RemoteFile]:
    return [file for file in files if not (folder / file.name).is_file()]


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _copy(store: RemoteStore, folder: Path, files: list[RemoteFile], show: Show) -> None:
    """The files that are missing, several at a time; first the manifest, which has their checksums."""
    total = sum(file.size for file in files)
    kept = sum(path.stat().st_size for file in files if (path := aside_of(folder / file.name)).exists())
    if (free := shutil.disk_usage(folder).free) < total - kept:
        raise UserError(
            f"{store.url}: copying it into {folder} needs {(total - kept) / 1e9:,.2f} GB, and {free / 1e9:,.2f} GB are "
            "free. Make room, or name a folder on another disk by data.cache."
        )
    done, counting, stop = 0, threading.Lock(), threading.Event()

    def count(size: int) -> None:
        nonlocal done
        if stop.is_set():
            raise InterruptedError
        with counting:
            done += size
            show(done, total)

    sums: dict[str, str] = {}
    if (manifest := store.files.get(MANIFEST)) is not None:
        if manifest in files:
            _copy_file(store.fs, manifest, folder, None, count)
        sums = _sums(manifest, folder / MANIFEST)
    with ThreadPoolExecutor(_FILES) as threads:
        others = [file for file in files if file is not manifest]
        copies = [threads.submit(_copy_file, store.fs, one, folder, sums.get(one.name), count) for one in others]
        try:
            for copy in wait(copies, return_when=FIRST_EXCEPTION).done:
                copy.result()
        except BaseException:
            stop.set()  # the others keep what they have
            threads.shutdown(cancel_futures=True)
            raise


def _sums(manifest: RemoteFile, copied: Path) -> dict[str, str]:
    """The SHA-256 of files by their names, as far as the manifest knows them."""
    try:
        found = json.loads(copied.read_bytes())
    except ValueError as error:
        copied.unlink()
        raise UserError(
            f"{manifest.path} is no JSON, perhaps torn: {error}; nothing of it is kept. Write it anew."
        ) from None
    return found.get("sha256", {}) if isinstance(found, dict) else {}


def _copy_file(fs: Any, file: RemoteFile, folder: Path, sha256: str | None, count: Callable[[int], None]) -> None:
    """Copy one object under its name, after what is there of it."""
    target, seen = folder / file.name, hashlib.sha256()
    with aside_of(target).open("a+b") as out:
        out.truncate(min(out.tell(), file.size))
        out.seek(0)
        while data := out.read(_CHUNK):
            seen.update(data)
            count(len(data))
        place = out.tell()
        while place < file.size and (data := _piece(fs, file, place)):
            out.write(data)
            seen.update(data)
            place += len(data)
            count(len(data))
    wrong = place != file.size or _changed(fs, file)
    if wrong or (sha256 is not None and seen.hexdigest() != sha256):
        aside_of(target).unlink()
        what = "was changed while it was copied" if wrong else "is not what its manifest.json says (SHA-256)"
        raise UserError(f"{file.path} {what}; nothing of it is kept. Run the same command again, or write it anew.")
    make_durable(target)


def _piece(fs: Any, file: RemoteFile, start: int) -> bytes:
    """The next bytes of an object; none when it was changed, as it may have become too short for the request."""
    try:
        return fs.cat_file(file.path, start=start, end=min(start + _CHUNK, file.size))
    except Exception:
        try:
            changed = _changed(fs, file)
        except Exception:  # nothing answers: the first error tells more
            changed = False
        if changed:
            return b""
        raise


def _changed(fs: Any, file: RemoteFile) -> bool:
    now = fs.info(file.path)
    return (int(now["size"]), _tag(now)) != (file.size, file.tag)


def _tag(info: dict[str, Any]) -> str:
    return next((str(info[key]) for key in _TAGS if info.get(key)), "")


@contextmanager
def _as_user_error(url: str) -> Iterator[None]:
    """Every way in which storage fails as one message."""
    protocol = url.partition("://")[0]
    try:
        yield
    except ImportError:
        package = _PACKAGES.get(protocol, f"the package that fsspec reads {protocol}:// with")
        raise UserError(f"{url}: reading it needs {package}") from None
    except FileNotFoundError:
        raise UserError(
            f"{url}: there is no token store there (train.bin and train.idx, their shards, .ds or .npy files), or no "
            "such bucket."
        ) from None
    except PermissionError as error:
        raise UserError(f"{url}: these credentials may not read it ({error}).") from None
    except UserError:
        raise
    except Exception as error:
        if (cause := _cause(error)) is None:
            raise
        raise UserError(f"{url}: {cause}") from None


def _cause(error: Exception) -> str | None:
    """What failed, if it was not our code."""
    kind = type(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space is left for its copy. Make some and run the same command again: it resumes."
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return f"fsspec knows no storage of this kind: {error}"
    if "Credentials" in kind.__name__:
        return "no credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
    if isinstance(error, OSError) or kind.__module__.partition(".")[0] in _CLIENTS:
        return f"the storage cannot be reached, or failed: {error}"
    return None


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

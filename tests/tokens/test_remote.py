"""Token stores in object storage: a real S3 server on this machine, real processes, and all that may go wrong."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from internevo.config.load import load_config
from internevo.config.read import ConfigError
from internevo.data.check_stores import store_problems
from internevo.files.errors import UserError
from internevo.files.urls import is_remote
from internevo.tokens import remote
from internevo.tokens.remote import fetch, local_copy, look
from internevo.tokens.store import TokenStore
from tests.tokens.stores import numbered
from tests.tokens.stores import write_store as write_pair
from tests.tokens.test_flat import datatrove_writes
from tests.train.runs import evals, finish, start, steps, write_config, write_store

boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto.server")
pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The server by its own client, in an environment where everybody finds it."""
    environment = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    forget()
    yield client
    forget()
    for one in client.list_objects_v2(Bucket="bucket").get("Contents", ()):
        client.delete_object(Bucket="bucket", Key=one["Key"])


def forget() -> None:
    """As a new process is."""
    from s3fs import S3FileSystem

    look.cache_clear()
    S3FileSystem.clear_instance_cache()


def upload(s3: Any, folder: Path, key: str) -> None:
    for file in sorted(folder.iterdir()):
        s3.upload_file(str(file), "bucket", f"{key}/{file.name}")


def prepared(folder: Path, documents: int = 300) -> Path:
    """A prepared folder whose manifest knows the files' checksums."""
    write_store(folder, documents, 0)
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps({"sha256": sums}))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*") if file.is_file() and file.name != "lock")


def same(one: TokenStore, other: TokenStore) -> bool:
    return len(one) == len(other) and np.array_equal(one.slice(0, one.tokens), other.slice(0, other.tokens))


def test_what_a_url_is() -> None:
    assert all(map(is_remote, ("s3://bucket/a", "hf://datasets/a/b", "gs://b", "memory://x")))
    assert not any(map(is_remote, ("tokens/web", "/s3://x", "C:\\x", Path("s3://bucket/a"))))


def test_a_prepared_folder(tmp_path: Path, s3: Any) -> None:
    upload(s3, prepared(tmp_path / "store"), "tokens/web")
    cache = tmp_path / "cache"
    source = TokenStore.open_source("s3://bucket/tokens/web", cache)
    assert same(source, TokenStore.open_source(tmp_path / "store"))
    assert names(cache) == ["manifest.json", "train.bin", "train.idx"]  # held-out documents only when they are needed
    heldout = TokenStore.open_heldout("s3://bucket/tokens/web/", cache)
    assert heldout is not None
    assert same(heldout, TokenStore(tmp_path / "store" / "heldout"))
    forget()
    before = {file: file.stat().st_mtime_ns for file in cache.rglob("*")}
    TokenStore.open_source("s3://bucket/tokens/web", cache)
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*")} == before


def test_every_other_kind_of_store(tmp_path: Path, s3: Any) -> None:
    documents = [[1, 2, 3], [4], list(range(90))]
    folder = tmp_path / "in"
    folder.mkdir()
    for number, one in enumerate(documents):
        write_pair(folder / f"web-{number:05}-of-00003", [np.array(one)])
    write_pair(folder / "web2", numbered([5]))
    for number in (0, 1):
        datatrove_writes(folder, f"{number}.ds", documents, 2)
    upload(s3, folder, "all")
    for name in ("0.ds", "0.ds.index"):
        s3.upload_file(str(folder / name), "bucket", f"flat/{name}")

    def read(url: str) -> list[list[int]]:
        store = TokenStore.open_source(url, tmp_path / "cache")
        return [store.read(number).tolist() for number in range(len(store))]

    assert read("s3://bucket/all/web") == documents
    assert read("s3://bucket/all/web2") == [[1, 2, 3, 4, 5]]
    assert read("s3://bucket/all/1.ds") == documents
    assert read("s3://bucket/flat") == documents
    assert TokenStore.open_heldout("s3://bucket/all/web", tmp_path / "cache") is None
    assert len(names(tmp_path / "cache")) == 6 + 2 + 3 + 2  # each has its own files alone


def test_any_storage_that_fsspec_knows(tmp_path: Path) -> None:
    write_pair(tmp_path / "web" / "train", numbered([4, 2]))
    assert TokenStore.open_source(f"file://{tmp_path}/web", tmp_path / "cache").tokens == 6
    assert names(tmp_path / "cache") == ["train.bin", "train.idx"]


COPY = """
import sys
from internevo.tokens import remote
from internevo.tokens.store import TokenStore
url, cache, remote._CHUNK = sys.argv[1], sys.argv[2], 2**16
copied = 0
def show(done, total):
    global copied
    copied = done
remote.local_copy(url, "train", cache, show)
print(copied, TokenStore.open_source(url, cache).tokens)
"""


def copying(tmp_path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COPY, "s3://bucket/tokens/web", str(tmp_path / "cache")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def large(tmp_path: Path) -> Path:
    """A store of 4 MB, which is copied in sixty requests."""
    folder = tmp_path / "store"
    write_pair(folder / "train", [np.random.default_rng(0).integers(0, 2**31, 2**20)])
    return folder


def test_of_racing_processes_one_copies(tmp_path: Path, s3: Any) -> None:
    upload(s3, large(tmp_path), "tokens/web")
    size = sum(file.stat().st_size for file in (tmp_path / "store").iterdir())
    racing = [copying(tmp_path) for _ in range(4)]
    said = sorted(process.communicate(timeout=100)[0].split() for process in racing)
    assert said == [["0", "1048576"]] * 3 + [[str(size), "1048576"]]
    assert same(
        TokenStore.open_source("s3://bucket/tokens/web", tmp_path / "cache"), TokenStore(tmp_path / "store/train")
    )


def test_killed_in_the_middle_it_goes_on(tmp_path: Path, s3: Any) -> None:
    upload(s3, large(tmp_path), "tokens/web")
    for least in (1, 10**6, 2 * 10**6):
        process = copying(tmp_path)
        while not any(file.stat().st_size >= least for file in (tmp_path / "cache").rglob("train.bin.partial")):
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
        process.communicate()
        assert "train.bin" not in names(tmp_path / "cache")
    (partial,) = (tmp_path / "cache").rglob("train.bin.partial")
    kept = partial.stat().st_size
    asked = []
    fs = look("s3://bucket/tokens/web").fs
    real = fs.cat_file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fs, "cat_file", lambda path, **given: asked.append((path, given["start"])) or real(path, **given))
        store = TokenStore.open_source("s3://bucket/tokens/web", tmp_path / "cache")
    assert min(start for path, start in asked if path.endswith(".bin")) == kept
    assert same(store, TokenStore(tmp_path / "store" / "train"))
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_what_is_not_what_the_manifest_says(tmp_path: Path, s3: Any) -> None:
    folder = prepared(tmp_path / "store")
    content = bytearray((folder / "train.bin").read_bytes())
    content[-1] ^= 1
    (folder / "train.bin").write_bytes(content)
    upload(s3, folder, "tokens/web")
    with pytest.raises(UserError, match=r"bucket/tokens/web/train\.bin is not what its manifest\.json says"):
        TokenStore.open_source("s3://bucket/tokens/web", tmp_path / "cache")
    assert "train.bin" not in names(tmp_path / "cache")
    assert "train.bin.partial" not in names(tmp_path / "cache")


def test_a_manifest_that_is_torn(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "store")
    whole = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(whole[:-20])
    for _ in range(2):
        with pytest.raises(UserError, match=r"store/manifest\.json is no JSON, perhaps torn: .* Write it anew"):
            TokenStore.open_source(f"file://{folder}", tmp_path / "cache")
        assert names(tmp_path / "cache") == []
    (folder / "manifest.json").write_bytes(whole)
    forget()
    assert same(TokenStore.open_source(f"file://{folder}", tmp_path / "cache"), TokenStore(folder / "train"))


def test_changed_objects_are_another_version(tmp_path: Path, s3: Any) -> None:
    url, cache = "s3://bucket/tokens/web", tmp_path / "cache"
    upload(s3, prepared(tmp_path / "old"), "tokens/web")
    old = TokenStore.open_source(url, cache)
    upload(s3, prepared(tmp_path / "new", documents=100), "tokens/web")
    # a process keeps to what it saw first, and says so when it can no longer have it
    assert same(TokenStore.open_source(url, cache), old)
    with pytest.raises(UserError, match=r"heldout\.\w+ was changed while it was copied"):
        TokenStore.open_heldout(url, cache)
    forget()
    new = TokenStore.open_source(url, cache)
    assert same(new, TokenStore(tmp_path / "new" / "train"))
    assert same(old, TokenStore(tmp_path / "old" / "train"))
    assert len(list(cache.rglob("train.bin"))) == 2


@pytest.mark.parametrize("other", [b"", b"short", bytes(2**20)])
def test_changed_before_it_is_copied(other: bytes, tmp_path: Path, s3: Any) -> None:
    """What is asked for may begin after the end of the new object, which storage calls an error."""
    upload(s3, prepared(tmp_path / "store"), "tokens/web")
    look("s3://bucket/tokens/web")
    for name in ("heldout.bin", "heldout.idx"):
        s3.put_object(Bucket="bucket", Key=f"tokens/web/{name}", Body=other)
    with pytest.raises(UserError, match=r"heldout\.\w+ was changed while it was copied"):
        TokenStore.open_heldout("s3://bucket/tokens/web", tmp_path / "cache")


def test_changed_while_it_is_copied(tmp_path: Path, s3: Any) -> None:
    upload(s3, large(tmp_path), "tokens/web")

    def change(done: int, total: int) -> None:
        s3.put_object(Bucket="bucket", Key="tokens/web/train.bin", Body=b"other")

    with pytest.raises(UserError, match=r"train\.bin was changed while it was copied"):
        local_copy("s3://bucket/tokens/web", "train", tmp_path / "cache", change)
    assert "train.bin" not in names(tmp_path / "cache")


def test_a_disk_that_is_too_small(tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(s3, prepared(tmp_path / "store"), "tokens/web")
    # how much is free is the machine's; that less is free than is needed, is asked of a far larger object
    store = look("s3://bucket/tokens/web")
    huge = {name: remote.RemoteFile(file.path, 2**60, file.tag) for name, file in store.files.items()}
    monkeypatch.setattr(remote, "look", lambda url: remote.RemoteStore(url, store.fs, huge, ""))
    with pytest.raises(UserError, match=r"needs [\d,.]+ GB, and [\d,.]+ GB are free. Make room, or .* data\.cache"):
        local_copy("s3://bucket/tokens/web", "train", tmp_path / "cache")
    assert names(tmp_path / "cache") == []


FULL = """
import sys
from pathlib import Path
from internevo.files.errors import UserError
from internevo.tokens import remote
from internevo.tokens.store import TokenStore
url, cache, remote._CHUNK = sys.argv[1], Path(sys.argv[2]), 2**16
def fill(done, total):
    if done > 10**6 and not (cache / "other").exists():
        with (cache / "other").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(2**16))
            except OSError:
                pass
try:
    remote.local_copy(url, "train", cache, fill)
except UserError as error:
    print(error)
(cache / "other").unlink()
print(TokenStore.open_source(url, cache).tokens)
"""


def test_a_disk_that_others_fill_meanwhile(tmp_path: Path, s3: Any) -> None:
    """A real small disk: it is said, and when there is room again the copy goes on."""
    namespace = ["unshare", "--map-root-user", "--mount"]  # the disk is seen by this test alone
    probe = subprocess.run([*namespace, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no disk can be mounted here: {probe.stderr.strip()}")
    upload(s3, large(tmp_path), "tokens/web")
    (tmp_path / "disk").mkdir()
    script = 'mount -t tmpfs -o size=6m tmpfs "$1" && exec "$2" -c "$3" s3://bucket/tokens/web "$1"'
    command = [*namespace, "sh", "-c", script, "sh", tmp_path / "disk", sys.executable, FULL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    said, tokens = done.stdout.splitlines()
    assert said.startswith("s3://bucket/tokens/web: no space is left for its copy. Make some and run the same command")
    assert tokens == "1048576"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://no-such-bucket/tokens/web", "there is no token store there .*, or no such bucket"),
        ("s3://bucket/tokens/wbe", "there is no token store there"),
        ("s3://bucket/notes", "there is no token store there"),
        ("s3://bucket/tokens/web/heldou", "there is no token store there"),
        ("floppy://a/b", "fsspec knows no storage of this kind: Protocol not known: floppy"),
    ],
)
def test_nothing_there(tmp_path: Path, s3: Any, url: str, message: str) -> None:
    upload(s3, prepared(tmp_path / "store"), "tokens/web")
    s3.put_object(Bucket="bucket", Key="notes/readme.md", Body=b"x")
    with pytest.raises(UserError, match=f"{url}: {message}"):
        TokenStore.open_source(url, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_no_credentials(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    forget()
    with pytest.raises(UserError, match=r"no credentials were found\. Set AWS_ACCESS_KEY_ID"):
        look("s3://bucket/tokens/web")


def test_credentials_that_may_not(s3: Any, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server asks who someone is, from now on, and does not know them."""
    import requests

    upload(s3, prepared(tmp_path / "store"), "tokens/web")
    requests.post(f"{server}/moto-api/reset-auth", data="0", timeout=10)
    try:
        with pytest.raises(UserError, match="s3://bucket/tokens/web: these credentials may not read it"):
            look("s3://bucket/tokens/web")
    finally:
        requests.post(f"{server}/moto-api/reset-auth", data="inf", timeout=10)


def test_a_server_that_is_down(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    forget()
    with pytest.raises(UserError, match=r"s3://bucket/tokens/web: the storage cannot be reached, or failed: .*connect"):
        look("s3://bucket/tokens/web")


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.registry import _registry

    monkeypatch.delitem(_registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    look.cache_clear()
    with pytest.raises(UserError, match=r"reading it needs s3fs: pip install 'internevo\[s3\]'"):
        look("s3://bucket/tokens/web")


def test_all_bytes_are_told_of(tmp_path: Path, s3: Any) -> None:
    told = []
    for name in ("a", "b"):
        upload(s3, prepared(tmp_path / name, documents=20), name)
    urls = {f"s3://bucket/{name}": str(tmp_path / "cache") for name in "ab"}
    fetch(urls, lambda done, total: told.append((done, total)))
    size = sum(file.stat().st_size for name in "ab" for file in (tmp_path / name).iterdir())
    manifests = sum((tmp_path / name / "manifest.json").stat().st_size for name in "ab")
    assert told[-1] == (size + manifests, size + manifests)  # a manifest belongs to both parts
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_config_looks_and_copies_nothing(tmp_path: Path, s3: Any) -> None:
    upload(s3, prepared(tmp_path / "store"), "tokens/web")
    source = [{"path": "s3://bucket/tokens/web"}]
    file = write_config(tmp_path, data={"sources": source, "cache": str(tmp_path / "cache")}, stages=STAGES)
    process = start("config", file)
    assert "s3://bucket/tokens/web" in finish(process)
    assert process.returncode == 0
    assert not (tmp_path / "cache").exists()
    source[0]["path"] = "s3://bucket/tokens/wbe"
    stages = load_config(write_config(tmp_path, data={"sources": source}, stages=STAGES)).stages
    assert store_problems(stages, copy=False)[0].startswith("s3://bucket/tokens/wbe: ")
    source[0]["path"] = "tokens/wbe"
    with pytest.raises(ConfigError, match="there is no token store at tokens/wbe"):
        load_config(write_config(tmp_path, data={"sources": source}, stages=STAGES))


STAGES = [{"name": "base", "train": {"steps": 4}}]


@pytest.mark.slow
def test_runs_from_a_bucket(tmp_path: Path, s3: Any) -> None:
    """The real command, on one rank and on two; the same data and evaluations as from the folder that was uploaded."""
    upload(s3, prepared(tmp_path / "store"), "tokens/web")
    seen = {}
    for name, path, command in (
        ("local", str(tmp_path / "store"), ["train"]),
        ("remote", "s3://bucket/tokens/web", ["train"]),
        ("two ranks", "s3://bucket/tokens/web", ["launch", "--nproc", "2"]),
    ):
        folder, cache = tmp_path / name, tmp_path / f"{name} cache"
        folder.mkdir()
        data = {"sources": [{"path": path, "name": "web"}], "eval_tokens": 500, "cache": str(cache)}
        process = start(command[0], write_config(folder, data=data, stages=STAGES), *command[1:])
        said = finish(process)
        assert process.returncode == 0, said
        run = folder / "runs" / "run"
        seen[name] = [(one["digest"], one["sources"]) for one in steps(run)]
        seen[name] += [(one["when"], one["tokens"], one["source"]) for one in evals(run)]
        if name != "local":
            everything = ["heldout.bin", "heldout.idx", "manifest.json", "train.bin", "train.idx"]
            assert names(cache) == everything
    assert seen["local"] == seen["remote"] == seen["two ranks"]
    assert len(seen["local"]) == 6

"""InternEvo's token files: what is imported, what masked tokens become, and everything that may be wrong with them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internevo.config.schema import SourceConfig
from internevo.data.batch import IGNORE, Batch, combine_digests, digest
from internevo.data.loader import Loader, Part, evaluation_batches
from internevo.data.mixing import Plan
from internevo.files.errors import UserError
from internevo.tokens.import_internevo import import_internevo
from internevo.tokens.shards import Joiner
from internevo.tokens.store import TokenStore
from internevo.tokens.workers import Ready


def write_bin(path: Path, documents: Sequence[Sequence[int]], dtype: str = "int32") -> Path:
    """As InternEvo's tools write it: a line a document, and `.meta` with where each begins, as far as int32 goes."""
    rows, place = [], 0
    with path.open("wb") as file:
        for document in documents:
            line = json.dumps({"tokens": list(document)}).encode() + b"\n"
            rows.append((place, len(document)))
            place += file.write(line)
    write_meta(path, rows, dtype)
    return path


def write_meta(path: Path, rows: Sequence[tuple[int, int]], dtype: str = "int32") -> None:
    with path.with_name(path.name + ".meta").open("wb") as file:
        np.save(file, np.array(rows, np.int64).astype(dtype))


def read(folder: Path, kind: str = "train") -> list[list[int]]:
    store = TokenStore(folder / kind)
    return [store.read(number).tolist() for number in range(len(store))]


IDS = st.lists(st.integers(-(2**31) + 1, 2**31 - 1), max_size=12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(IDS, max_size=8), min_size=1, max_size=3), st.integers(1, 300), st.booleans())
def test_all_documents_in_order_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[list[int]]], piece_bytes: int, meta: bool
) -> None:
    folder = tmp_path_factory.mktemp("import")
    (folder / "in" / "en").mkdir(parents=True)
    for number, documents in enumerate(files):
        path = write_bin(folder / "in" / "en" / f"{number}.bin", documents)
        if not meta:
            path.with_name(path.name + ".meta").unlink()
    wanted = [document for documents in files for document in documents]
    if not any(wanted):
        with pytest.raises(UserError, match="no document is left"):
            import_internevo([folder / "in"], folder / "out", piece_bytes=piece_bytes)
        return
    made = import_internevo([folder / "in"], folder / "out", piece_bytes=piece_bytes)
    assert read(folder / "out") == [document for document in wanted if document]
    negative = sum(one < 0 for document in wanted for one in document)
    assert (made.masked, made.masked_tokens) == (negative > 0, negative)
    assert made.empty == wanted.count([])
    store = TokenStore.open_source(folder / "out")
    assert (store.masked, store.dtype) == (made.masked, np.int32)


def test_stopped_it_goes_on_and_workers_change_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    path = write_bin(tmp_path / "a.bin", [rng.integers(-9, 500, rng.integers(1, 60)).tolist() for _ in range(300)])
    options = {"piece_bytes": 2000, "shard_tokens": 1500, "held_out": 0.2}
    import_internevo([path], tmp_path / "unbroken", **options)
    real, left = Joiner.add, 9

    def add(joiner: Joiner, ready: Ready) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        real(joiner, ready)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Joiner, "add", add)
        with pytest.raises(KeyboardInterrupt):
            import_internevo([path], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    import_internevo([path], tmp_path / "out", workers=2, **options)
    for file in (tmp_path / "unbroken").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    assert 20 < len(read(tmp_path / "out", "heldout")) < 110


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"tokens": [1, 2', "not JSON"),
        (b"[1, 2]", "no list under 'tokens'"),
        (b'{"text": "x"}', "no list under 'tokens'"),
        (b'{"tokens": [1.5]}', "holds ids that are no whole numbers"),
        (b'{"tokens": ["1"]}', "holds ids that are no whole numbers"),
        (b'{"tokens": [[1], [2, 3]]}', "holds ids that are no whole numbers"),
        (b'{"tokens": [1, null]}', "holds ids that are no whole numbers"),
        (b'{"tokens": [2147483648]}', "holds id 2,147,483,648"),
        (b'{"tokens": [-9223372036854775808]}', "holds id 9,223,372,036,854,775,808"),
        (b'{"tokens": [99999999999999999999999]}', "holds ids that are no whole numbers"),
    ],
)
def test_a_line_that_cannot_be_used(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b'{"tokens": [1]}\n' + line + b'\n{"tokens": [2]}\n')
    with pytest.raises(UserError) as caught:
        import_internevo([path], tmp_path / "out")
    assert f"a.bin:2: {reason}" in str(caught.value)
    made = import_internevo([path], tmp_path / "out", max_rejects=0.5)
    assert read(tmp_path / "out") == [[1], [2]]
    assert made.rejected == 1
    (kept,) = [json.loads(one) for one in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert kept["where"] == f"{path}:2"
    assert kept["raw"].encode() == line + b"\n"


GOOD = [[1, 2, 3], [4], [5, 6]]
OFFSETS = [0, 22, 38]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, 3), (22, 1)], "line 3: it has no row for the line at byte 38"),
        ([(0, 3), (22, 1), (38, 2), (60, 9)], "line 4: it is to begin at byte 60, and there is none"),
        ([(0, 3), (22, 2), (38, 2)], "line 2: it is to have 2 tokens, and has 1"),
        ([(0, 3), (21, 1), (38, 2)], "line 2: it is to begin at byte 21, and begins at 22"),
        ([(5, 3), (22, 1), (38, 2)], "line 1: it is to begin at byte 5"),
    ],
)
@pytest.mark.parametrize("piece_bytes", [10, 2**20])
def test_a_meta_of_another_file(tmp_path: Path, rows: list[tuple[int, int]], message: str, piece_bytes: int) -> None:
    path = write_bin(tmp_path / "a.bin", GOOD)
    write_meta(path, list(zip(OFFSETS, map(len, GOOD), strict=True)))
    import_internevo([path], tmp_path / "good", piece_bytes=piece_bytes)
    write_meta(path, rows)
    with pytest.raises(UserError, match=rf"a\.bin\.meta disagrees with a\.bin at {message}"):
        import_internevo([path], tmp_path / "out", piece_bytes=piece_bytes)
    assert not (tmp_path / "out").exists()


def test_a_meta_that_is_none(tmp_path: Path) -> None:
    path = write_bin(tmp_path / "a.bin", GOOD)
    meta = path.with_name("a.bin.meta")
    meta.write_bytes(b"no")
    with pytest.raises(UserError, match=r"a\.bin\.meta is not an array that numpy saved"):
        import_internevo([path], tmp_path / "out")
    np.save(meta.open("wb"), np.array([{"a": 1}]), allow_pickle=True)  # never unpickled
    with pytest.raises(UserError, match=r"a\.bin\.meta is not an array that numpy saved"):
        import_internevo([path], tmp_path / "out")
    np.save(meta.open("wb"), np.arange(3))
    with pytest.raises(UserError, match=r"a\.bin\.meta is an array int64 \[3\], not rows"):
        import_internevo([path], tmp_path / "out")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.bin", "a.bin.meta"]


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.bin does not exist"):
        import_internevo([tmp_path / "no.bin"], tmp_path / "out")
    with pytest.raises(UserError, match=r"holds no \.bin files"):
        import_internevo([tmp_path], tmp_path / "out")


@pytest.mark.slow
def test_past_2_gib(tmp_path: Path) -> None:
    """A real file of 2.2 GiB, most of it spaces: its int32 offsets are wrong as InternEvo's are."""
    path, rows, place = tmp_path / "a.bin", [], 0
    padding = b" " * (2**20 - 100)
    with path.open("wb") as file:
        for number in range(2250):
            rows.append((place, 2))
            place += file.write(b'{"tokens": [%d, %d]%s}\n' % (number, -number, padding))
    assert place > 2**31 + 2**25
    write_meta(path, rows)
    assert np.load(path.with_name("a.bin.meta"))[-1, 0] < 0  # it has overflowed
    made = import_internevo([path], tmp_path / "out", workers=2, piece_bytes=2**27)
    assert (made.documents, made.masked_tokens) == (2250, 2249)
    store = TokenStore.open_source(tmp_path / "out")
    ids = np.arange(2250)
    assert np.array_equal(np.asarray(store.slice(0, 4500)).reshape(-1, 2), np.stack([ids, -ids], 1))
    rows[-1] = (rows[-1][0] + 1, 2)
    write_meta(path, rows)
    with pytest.raises(UserError, match="line 2,250: it is to begin at byte -"):
        import_internevo([path], tmp_path / "again", piece_bytes=2**27)


def test_offsets_past_4_gib_are_unwrapped() -> None:
    from internevo.tokens.import_internevo import _unwrapped

    true = np.cumsum(np.random.default_rng(0).integers(1, 2**31, 50)) - 1
    true -= true[0]
    assert true[-1] > 2**34
    assert np.array_equal(_unwrapped(true.astype(np.int32)), true)
    assert np.array_equal(_unwrapped(true), true)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**30), st.sampled_from(["concat", "best_fit"]), st.integers(2, 40))
def test_masked_tokens_are_read_and_never_predicted(
    tmp_path_factory: pytest.TempPathFactory, seed: int, packing: str, seq_len: int
) -> None:
    """Every third id is masked in one of two stores that are otherwise the same; beside a source without any."""
    folder, rng = tmp_path_factory.mktemp("masked"), np.random.default_rng(seed)
    documents = [rng.integers(1, 900, n).tolist() for n in rng.integers(1, 50, 60)]
    masked = [[-one if one % 3 == 0 else one for one in document] for document in documents]
    for name, content in (("plain", documents), ("masked", masked), ("other", documents)):
        write_bin(folder / f"{name}.bin", content)
        import_internevo([folder / f"{name}.bin"], folder / name, shard_tokens=700, piece_bytes=500)

    def steps(name: str, parts: int) -> list[list[Batch]]:
        sources = [SourceConfig(str(folder / name), 0.6, "a"), SourceConfig(str(folder / "other"), 0.4, "b")]
        ranks = []
        for number in range(parts):
            plan = Plan.constant(sources, seq_len=seq_len, rows=8, packing=packing)
            with Loader(plan, seed=3, part=Part(number, parts)) as loader:
                ranks.append([loader.next() for _ in range(4)])
        return [list(step) for step in zip(*ranks, strict=True)]

    for parts in (1, 2, 4):
        for ranks, (plain,) in zip(steps("masked", parts), steps("plain", 1), strict=True):
            tokens, labels = (np.concatenate([getattr(one, name) for one in ranks]) for name in ("tokens", "labels"))
            of_a = (np.array(plain.sources) == "a")[:, None]
            wanted = np.where(of_a & (plain.labels % 3 == 0), IGNORE, plain.labels)
            assert np.array_equal(tokens, plain.tokens)
            assert np.array_equal(labels, wanted)
            assert {one.label_count for one in ranks} == {int((wanted != IGNORE).sum())}
            assert plain.label_count == int((plain.labels != IGNORE).sum())
            count = ranks[0].label_count
            made = combine_digests([one.row_digests for one in ranks], count)
            assert made == digest(replace(plain, labels=wanted, label_count=count))
            assert (made == digest(plain)) == (count == plain.label_count)


def test_masked_labels_by_hand(tmp_path: Path) -> None:
    write_bin(tmp_path / "a.bin", [[1, -5, 6, -7, 8, 9], [-3, 4]])
    import_internevo([tmp_path / "a.bin"], tmp_path / "a")
    store = TokenStore.open_source(tmp_path / "a")
    (batch,) = evaluation_batches("a", store, 4, 9, 99)
    rows = dict(zip(map(tuple, batch.tokens.tolist()), map(tuple, batch.labels.tolist()), strict=True))
    assert rows == {
        (1, 5, 6, 7): (IGNORE, 6, IGNORE, 8),  # the label past the cut is that of 8
        (8, 9, 3, 4): (9, IGNORE, 4, IGNORE),
    }
    assert batch.label_count == 4


def test_the_command(tmp_path: Path) -> None:
    write_bin(tmp_path / "a.bin", GOOD)
    command = [sys.executable, "-m", "internevo", "data", "import", tmp_path / "a.bin", "--out", tmp_path / "out"]
    done = subprocess.run([*command, "--from", "internevo"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "3 documents, 6 tokens" in done.stdout
    other = subprocess.run([*command, "--from", "mds"], capture_output=True, text=True, timeout=60)
    assert other.returncode == 2
    assert "Traceback" not in other.stderr

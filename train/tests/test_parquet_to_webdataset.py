"""scripts/parquet_to_webdataset.py: every row is in the shards or in skipped.jsonl; the bytes follow from the input alone."""

from __future__ import annotations

import datetime
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import tarfile
from decimal import Decimal
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "parquet_to_webdataset.py"
BROKEN = b"GIF89a is nothing that lvpipe reads"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parquet_to_webdataset", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


script = load_script()


def picture(kind: str, grey: int, side: int = 8) -> bytes:
    """An image file; other greys give other bytes."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (grey, grey, grey)).save(file, kind)
    return file.getvalue()


def mixed(n: int) -> list[bytes]:
    return [picture(("JPEG", "PNG", "WEBP")[i % 3], i) for i in range(n)]


def write(path: Path, columns: dict[str, object], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def convert(source: object, output: Path, *options: object) -> int:
    """The exit status."""
    sources = source if isinstance(source, list) else [source]
    try:
        return script.main([str(a) for a in ("--input", *sources, "--output", output, *options)])
    except SystemExit as error:
        return error.code


def shards(output: Path) -> list[str]:
    return sorted(path.name for path in output.glob("*.tar"))


def members(output: Path) -> list[tuple[str, bytes]]:
    """Names and contents of all shards, in order."""
    found = []
    for name in shards(output):
        with tarfile.open(output / name, "r:") as tar:
            found += [(member.name, tar.extractfile(member).read()) for member in tar]
    return found


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir()}


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """25 rows in two files with row groups of 4; two have no image, one has one that is none."""
    images: list[bytes | None] = list(mixed(25))
    images[3] = images[20] = None
    images[7] = BROKEN
    table = pa.table({"image": images, "caption": [f"caption {i}" for i in range(25)]})
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(table[:15], folder / "a.parquet", row_group_size=4)
    pq.write_table(table[15:], folder / "b.parquet", row_group_size=4)
    return folder


def test_bytes_come_back_by_content_and_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [*mixed(4), BROKEN, b""]
    source = write(tmp_path / "a.parquet", {"image": images, "n": list(range(6))})
    assert convert(source, tmp_path / "out") == 0
    endings = ["jpg", "png", "webp", "jpg", "jpg", "jpg"]
    expected = []
    for i, (image, ending) in enumerate(zip(images, endings, strict=True)):
        expected += [(f"{i:09d}.{ending}", image), (f"{i:09d}.json", b'{"n":%d}' % i)]
    assert members(tmp_path / "out") == expected
    messages = capsys.readouterr().err
    assert "2 are neither JPEG, PNG nor WebP" in messages
    assert messages.endswith(f"lvpipe caption --input {tmp_path}/out/shard-0000.tar ...\n")


def test_members_are_plain_files_of_nobody(dataset: Path, tmp_path: Path) -> None:
    assert convert(dataset, tmp_path / "out") == 0
    with tarfile.open(tmp_path / "out" / "shard-0000.tar", "r:") as tar:
        for member in tar:
            assert member.isreg() and member.mode == 0o644
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar")
def test_tar_extracts_a_shard(tmp_path: Path) -> None:
    """Long and non-ASCII names too, without a word."""
    image = picture("PNG", 1)
    source = write(tmp_path / "a.parquet", {"image": [image] * 2, "id": ["x" * 200, "grün/日本"]})
    assert convert(source, tmp_path / "out", "--id-column", "id") == 0
    command = ["tar", "-xf", tmp_path / "out" / "shard-0000.tar", "-C", tmp_path]
    done = subprocess.run(command, check=True, capture_output=True)
    assert done.stderr == b""
    assert (tmp_path / f"{'x' * 200}.png").read_bytes() == (tmp_path / "grün%2F日本.png").read_bytes() == image


def test_struct_of_bytes_and_path(tmp_path: Path) -> None:
    """What Hugging Face datasets writes: the path is only a name where bytes are there."""
    jpeg, png = picture("JPEG", 1), picture("PNG", 2)
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "b.jpg").write_bytes(png)  # its name lies
    rows = [{"bytes": jpeg, "path": "a.png"}, {"bytes": None, "path": "images/b.jpg"}, {"bytes": None, "path": None}, None]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    source = write(tmp_path / "data" / "a.parquet", {"image": pa.array(rows, kind)})
    assert convert(source, tmp_path / "out", "--columns", "none") == 0
    assert members(tmp_path / "out") == [("000000000.jpg", jpeg), ("000000001.png", png)]
    assert [(row["row"], row["reason"]) for row in lines(tmp_path / "out" / "skipped.jsonl")] == [
        (2, "the image is null"),
        (3, "the image is null"),
    ]


def test_paths_start_at_the_parquet_file_or_at_image_root(tmp_path: Path) -> None:
    here, there = picture("PNG", 1), picture("PNG", 2)
    source = write(tmp_path / "data" / "a.parquet", {"file": ["x.png", str(tmp_path / "other" / "x.png")]})
    (tmp_path / "other").mkdir()
    (tmp_path / "data" / "x.png").write_bytes(here)
    (tmp_path / "other" / "x.png").write_bytes(there)
    assert convert(source, tmp_path / "out", "--image-column", "file") == 0
    root = ("--image-root", tmp_path / "other")
    assert convert(source, tmp_path / "out2", "--image-column", "file", "--columns", "file", *root) == 0
    assert [data for name, data in members(tmp_path / "out") if name.endswith(".png")] == [here, there]
    assert members(tmp_path / "out2")[:2] == [("000000000.png", there), ("000000000.json", b'{"file":"x.png"}')]


def test_missing_files_are_skipped_or_with_strict_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.png").write_bytes(picture("PNG", 1))
    paths = ["x.png", "gone.png", ".", "nul\0.png", "x.png"]  # a folder is no image
    source = write(tmp_path / "a.parquet", {"image": paths, "id": list("abcde")})
    assert convert(source, tmp_path / "out", "--id-column", "id") == 0
    assert "3 rows without an image were skipped" in capsys.readouterr().err
    assert [name for name, _ in members(tmp_path / "out")] == ["a.png", "a.json", "e.png", "e.json"]
    skipped = lines(tmp_path / "out" / "skipped.jsonl")
    assert skipped[0] == {"key": "b", "file": str(source), "row": 1, "reason": f"no such file: {tmp_path}/gone.png"}
    assert [row["key"] for row in skipped] == ["b", "c", "d"]
    assert convert(source, tmp_path / "strict", "--strict") == 1
    message = capsys.readouterr().err
    assert f"{source} row 1" in message and "'image'" in message and "gone.png" in message
    assert shards(tmp_path / "strict") == []


def test_json_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moment = datetime.datetime(2024, 2, 29, 12, 30, 15, 250000)
    columns = {
        "image": [picture("PNG", 1)],
        "text": ["grün “日本”"],
        "nested": pa.array([{"boxes": [[1.5, float("nan")]], "tag": None, "on": datetime.date(2024, 2, 29)}]),
        "score": [float("-inf")],
        "nanoseconds": pa.array([moment.replace(tzinfo=None)], pa.timestamp("us")).cast(pa.timestamp("ns")),
        "odd_nanoseconds": pa.array([1_000_000_001], pa.timestamp("ns", "UTC")),
        "price": [Decimal("12.50")],
        "large": [2**63 - 1],
        "yes": [True],
        "embedding": [b"\0\1"],
        "mask": pa.array([{"bytes": b"x", "path": "m.png"}]),
    }
    source = write(tmp_path / "a.parquet", columns)
    assert convert(source, tmp_path / "out") == 0
    data = dict(members(tmp_path / "out"))["000000000.json"]
    assert data == json.dumps(json.loads(data), ensure_ascii=False, separators=(",", ":")).encode()
    assert json.loads(data) == {
        "text": "grün “日本”",
        "nested": {"boxes": [[1.5, None]], "tag": None, "on": "2024-02-29"},
        "score": None,
        "nanoseconds": "2024-02-29T12:30:15.250000",
        "odd_nanoseconds": "1970-01-01T00:00:01+00:00",
        "price": "12.50",
        "large": 2**63 - 1,
        "yes": True,
    }
    assert capsys.readouterr().err.count("columns that hold bytes are not in the JSON: embedding, mask\n") == 1
    assert convert(source, tmp_path / "two", "--columns", "yes,large,mask") == 0
    assert dict(members(tmp_path / "two"))["000000000.json"] == b'{"yes":true,"large":%d}' % (2**63 - 1)


def test_ids_become_keys_that_can_be_turned_back(tmp_path: Path) -> None:
    ids = ["a.b", "a/b", "a%2Eb", "__x", "_x", "x__", "日本 ü", "tab\tnul\0", "..", "-"]
    keys = ["a%2Eb", "a%2Fb", "a%252Eb", "%5F_x", "_x", "x__", "日本 ü", "tab%09nul%00", "%2E%2E", "-"]
    source = write(tmp_path / "a.parquet", {"image": mixed(10), "id": ids})
    assert convert(source, tmp_path / "out", "--id-column", "id") == 0
    found = members(tmp_path / "out")
    assert [name.split(".")[0] for name, _ in found[::2]] == [name.removesuffix(".json") for name, _ in found[1::2]] == keys
    assert [json.loads(data)["id"] for _, data in found[1::2]] == ids


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2, 3, 4, 2], "'2' a second time in row 1"),
        ([1, 2, 3, 4, None], "null in row 1"),
        (["a", "b", "c", "d", ""], "key of 0 bytes"),
        (["a", "b", "c", "d", "." * 84], "key of 252 bytes"),
    ],
)
def test_ids_that_cannot_be_keys(ids: list[object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the first of two equal ones is in another file; nothing is written where that is known at once."""
    table = pa.table({"image": mixed(5), "id": ids})
    pq.write_table(table[:3], tmp_path / "a.parquet")
    pq.write_table(table[3:], tmp_path / "b.parquet")
    assert convert(tmp_path, tmp_path / "out", "--id-column", "id") == 1
    error = capsys.readouterr().err
    assert message in error and "b.parquet" in error and "'id'" in error
    assert not (tmp_path / "out").exists() or shards(tmp_path / "out") == []
    if "second" in message or "null" in message:
        assert not (tmp_path / "out").exists()
        assert convert(tmp_path, tmp_path / "out", "--id-column", "id", "--limit", 4) == 0


@pytest.mark.parametrize(("n", "sizes"), [(10, [5, 5]), (11, [5, 5, 1]), (5, [5]), (4, [4])])
def test_samples_per_shard(n: int, sizes: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "a.parquet", {"image": mixed(n)}, row_group_size=3)
    out = tmp_path / "out"
    assert convert(source, out, "--samples-per-shard", 5, "--prefix", "my") == 0
    assert shards(out) == [f"my-{i:04d}.tar" for i in range(len(sizes))]
    for name, size in zip(shards(out), sizes, strict=True):
        with tarfile.open(out / name) as tar:
            assert len(tar.getnames()) == 2 * size
    numbers = "0000" if len(sizes) == 1 else f"{{0000..{len(sizes) - 1:04d}}}"
    assert f"{out}/my-{numbers}.tar" in capsys.readouterr().err


def test_skipped_rows_do_not_count_for_a_shard(dataset: Path, tmp_path: Path) -> None:
    assert convert(dataset, tmp_path / "out", "--samples-per-shard", 10) == 0
    assert [line["rows"] for line in lines(tmp_path / "out" / "shards.jsonl")] == [11, 22, 25]
    assert [line["samples"] for line in lines(tmp_path / "out" / "shards.jsonl")] == [10, 20, 23]


def test_max_shard_bytes_holds_except_for_a_larger_sample(tmp_path: Path) -> None:
    images = [b"\xff\xd8\xff" + bytes(n) for n in (9000, 9000, 9000, 50000, 10, 10)]
    source = write(tmp_path / "a.parquet", {"image": images})
    out = tmp_path / "out"
    assert convert(source, out, "--max-shard-bytes", "20k", "--columns", "none") == 0
    names = []
    for name in shards(out):
        with tarfile.open(out / name) as tar:
            names.append([int(n.split(".")[0]) for n in tar.getnames()])
    assert names == [[0, 1], [2], [3], [4, 5]]
    sizes = [(out / name).stat().st_size for name in shards(out)]
    assert sizes == [20480, 20480, 61440, 10240]  # two fill theirs to the last byte


def test_limit_counts_rows(dataset: Path, tmp_path: Path) -> None:
    assert convert(dataset, tmp_path / "all", "--columns", "none") == 0
    for limit, n_samples in ((3, 3), (4, 3), (17, 16), (100, 23)):
        out = tmp_path / str(limit)
        assert convert(dataset, out, "--limit", limit, "--columns", "none") == 0
        assert members(out) == members(tmp_path / "all")[:n_samples]


def test_two_runs_and_any_number_of_workers_give_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2), ("again", 2), ("many", 7)):
        assert convert(dataset, tmp_path / name, "--samples-per-shard", 7, "--workers", workers) == 0
    assert len(shards(tmp_path / "one")) == 4
    for name in ("two", "again", "many"):
        assert contents(tmp_path / name) == contents(tmp_path / "one")


def test_inputs_are_taken_in_order_of_path_each_once(dataset: Path, tmp_path: Path) -> None:
    nested = tmp_path / "nested"
    shutil.copytree(dataset, nested / "b.parquet")  # a folder may have that name
    ways = [dataset], [dataset / "b.parquet", dataset / "a.parquet"], [f"{dataset}/*.parquet", dataset / "a.parquet"], [nested]
    found = []
    for i, way in enumerate(ways):
        assert convert(way, tmp_path / str(i)) == 0
        found.append(members(tmp_path / str(i)))
    assert found[0] == found[1] == found[2] == found[3]


@pytest.mark.parametrize("damage", ["last", "middle", "first", "all", "unrecorded", "cut record", "short", "no skipped"])
def test_resume_gives_the_same_bytes(damage: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ("--samples-per-shard", 7)
    assert convert(dataset, out, *options) == 0
    whole = contents(out)
    times = {name: (out / name).stat().st_mtime_ns for name in shards(out)}
    records = (out / "shards.jsonl").read_bytes()
    kept = {"last": 3, "middle": 2, "unrecorded": 3, "cut record": 3, "short": 1}.get(damage, 0)
    if damage in ("last", "middle", "first"):
        (out / shards(out)[kept]).unlink()
    elif damage == "all":
        for name in shards(out):
            (out / name).unlink()
    elif damage == "unrecorded":  # killed between the two
        (out / "shards.jsonl").write_bytes(b"".join(records.splitlines(keepends=True)[:3]))
    elif damage == "cut record":
        (out / "shards.jsonl").write_bytes(records[:-10])
    elif damage == "short":
        (out / "shard-0001.tar").write_bytes(b"")
    else:
        (out / "skipped.jsonl").unlink()
        kept = 0  # the first shard's end already has a skipped row before it
    (out / "shard-0003.tar.tmp").write_bytes(b"left over")
    (out / "skipped.jsonl").open("ab").write(b'{"left over"')
    capsys.readouterr()
    assert convert(dataset, out, *options) == 0
    assert contents(out) == whole
    for name in shards(out)[:kept]:
        assert (out / name).stat().st_mtime_ns == times[name]
    assert (f"{kept} finished shards are kept" in capsys.readouterr().err) == (kept > 0)


def test_an_interruption_while_writing_resumes(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--samples-per-shard", 4, "--workers", 2)
    assert convert(dataset, tmp_path / "whole", *options) == 0
    add, out = script.ShardWriter.add, tmp_path / "out"
    for stop in (2, 9, 13, 24):

        def add_until(writer: object, row: object, stop: int = stop) -> None:
            if writer.totals.rows == stop:
                raise KeyboardInterrupt
            add(writer, row)

        monkeypatch.setattr(script.ShardWriter, "add", add_until)
        assert convert(dataset, out, *options) == 1
        assert (out / f"shard-{len(shards(out)):04d}.tar.tmp").exists()
    monkeypatch.undo()
    assert convert(dataset, out, *options) == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_a_finished_conversion_is_left_as_it_is(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert convert(dataset, out) == 0
    before = {path.name: path.stat().st_ino for path in out.iterdir()}, contents(out)
    assert convert(dataset, out, "--workers", 3) == 0
    assert ({path.name: path.stat().st_ino for path in out.iterdir()}, contents(out)) == before
    assert convert(dataset, out, "--strict") == 1  # rows were skipped
    assert contents(out) == before[1]


def test_another_conversion_needs_overwrite(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert convert(dataset, out, "--samples-per-shard", 5) == 0
    before = contents(out)
    assert convert(dataset, out, "--samples-per-shard", 6) == 2
    assert "(another samples-per-shard); --overwrite" in capsys.readouterr().err
    assert convert(dataset / "a.parquet", out, "--samples-per-shard", 5) == 2
    assert "(another files)" in capsys.readouterr().err
    assert contents(out) == before
    assert convert(dataset, out, "--samples-per-shard", 20, "--prefix", "new", "--overwrite") == 0
    assert convert(dataset, tmp_path / "fresh", "--samples-per-shard", 20, "--prefix", "new") == 0
    assert contents(out) == contents(tmp_path / "fresh")
    (out / "conversion.json").unlink()
    assert convert(dataset, out, "--samples-per-shard", 20, "--prefix", "new") == 2
    assert "shards without conversion.json" in capsys.readouterr().err


IMAGE = picture("PNG", 1)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"image": [[IMAGE]]}, [], "column 'image' holds lists"),
        ({"image": [[{"bytes": IMAGE, "path": None}]]}, [], "column 'image' holds lists"),
        ({"image": [5]}, [], "column 'image' holds neither"),
        ({"picture": [IMAGE], "n": [1]}, [], "no column 'image'; there are picture, n"),
        ({"image": [IMAGE]}, ["--columns", "caption"], "no column 'caption'"),
        ({"image": [IMAGE]}, ["--id-column", "key"], "no column 'key'"),
        ({"image": [IMAGE], "key": [1.5]}, ["--id-column", "key"], "column 'key' holds neither text nor integers"),
        ({"image": [IMAGE]}, ["--max-shard-bytes", "2X"], "--max-shard-bytes"),
        ({"image": [IMAGE]}, ["--workers", "0"], "--workers"),
        ({"image": [IMAGE]}, ["--prefix", "a/b"], "--prefix"),
        ({"image": [IMAGE]}, ["--image-root", "nowhere"], "--image-root"),
    ],
)
def test_usage_errors(columns: dict[str, object], options: list[str], message: str, tmp_path: Path,
                      capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    source = write(tmp_path / "a.parquet", columns)
    assert convert(source, tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert message in error and (message.startswith("--") or str(source) in error)
    assert not (tmp_path / "out").exists()


def test_input_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "gone.parquet", "*.parquet"):
        assert convert(tmp_path / name, tmp_path / "out") == 2
        assert f"{tmp_path / name}: no parquet file there" in capsys.readouterr().err


def test_damaged_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A message with file and column, not a traceback, and no finished shard."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1 is not enough")
    assert convert(tmp_path / "a.parquet", tmp_path / "out") == 1
    assert f"{tmp_path}/a.parquet: " in capsys.readouterr().err
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    source = write(tmp_path / "b.parquet", {"image": [IMAGE], "caption": broken})
    assert convert(source, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert f"{source}: column 'caption'" in error and "Traceback" not in error
    assert shards(tmp_path / "out") == []
    assert convert(source, tmp_path / "out2", "--columns", "none") == 0
    pages = bytearray((write(tmp_path / "c.parquet", {"image": [bytes(10000)]}, compression="none")).read_bytes())
    pages[4:40] = bytes(36)
    (tmp_path / "c.parquet").write_bytes(pages)
    assert convert(tmp_path / "c.parquet", tmp_path / "out3") == 1
    assert f"{tmp_path}/c.parquet: columns image: " in capsys.readouterr().err


def test_no_rows(tmp_path: Path) -> None:
    source = write(tmp_path / "a.parquet", {"image": pa.array([], pa.binary()), "id": pa.array([], pa.int64())})
    assert convert(source, tmp_path / "out", "--id-column", "id") == 0
    assert shards(tmp_path / "out") == []


def test_a_column_whose_name_has_a_dot(tmp_path: Path) -> None:
    source = write(tmp_path / "a.parquet", {"image": [IMAGE], "a.b": [1], "a": [{"b": 2}]})
    assert convert(source, tmp_path / "out") == 0
    assert members(tmp_path / "out")[1][1] == b'{"a.b":1,"a":{"b":2}}'


def test_as_a_program(dataset: Path, tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--input", dataset, "--output", tmp_path / "out", "--samples-per-shard", "10"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == ""
    assert done.stderr.endswith(f"lvpipe caption --input '{tmp_path}/out/shard-{{0000..0002}}.tar' ...\n")
    usage = subprocess.run([sys.executable, SCRIPT, "--help"], check=True, capture_output=True, text=True).stdout
    assert usage.count("  parquet_to_webdataset.py --input") == 2
    assert subprocess.run([sys.executable, SCRIPT], capture_output=True).returncode == 2

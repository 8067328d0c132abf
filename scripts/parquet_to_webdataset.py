#!/usr/bin/env python3
"""Convert parquet datasets of images into WebDataset tar shards, which lvpipe reads by range.

DATA is parquet files, folders of them (searched in depth) or glob patterns, taken in order of path. The image column holds
bytes, a struct {bytes, path} as Hugging Face datasets writes it, or paths. Each row becomes KEY.jpg, KEY.png or KEY.webp (by
content; anything else is written as KEY.jpg and counted) and KEY.json with its other columns. KEY is the row's number, or the
value of the id column; in that, '.', '/', '%', control characters and the first of two leading '_' are percent-encoded.

A row without an image goes to DIR/skipped.jsonl with the reason. The same command resumes after an interruption, to the same
bytes: DIR/conversion.json says what is converted, DIR/shards.jsonl how far each finished shard reaches. Needs pyarrow.
"""

from __future__ import annotations

import argparse
import datetime
import glob
import json
import math
import os
import re
import shlex
import sys
import tarfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

EXAMPLES = """examples:
  parquet_to_webdataset.py --input coco/data --output coco-shards --id-column image_id --columns caption,license
  parquet_to_webdataset.py --input 'laion/part-*.parquet' --output shards --image-column path --image-root laion/images
then: lvpipe caption --input 'shards/shard-{0000..0041}.tar' ...
"""
TEXT, BYTES = (pa.string(), pa.large_string()), (pa.binary(), pa.large_binary())
FORMAT = 1  # in conversion.json; goes up when the same options give other bytes
NOT_IN_CONVERSION = {"input", "output", "workers", "strict", "overwrite"}  # options that leave finished shards as they are
MAX_BATCH_ROWS, MAX_BATCH_BYTES = 32, 16 << 20  # about 2 * workers batches are in memory
MAX_ID_ROWS = 1 << 16  # of a batch with nothing but ids
READ_BUFFER = 1 << 20  # without one, or with pre_buffer, pyarrow reads a whole column of a row group at once
PROGRESS_SECONDS = 5.0
MAX_KEY_BYTES = 250  # file names end at 255; .webp and .json are the longest extensions
# What lvpipe knows an image by, too.
SIGNATURE = re.compile(rb"(?P<jpg>\xff\xd8\xff)|(?P<png>\x89PNG\r\n\x1a\n)|(?P<webp>RIFF....WEBP)", re.DOTALL)
# '.' ends the key in a member's name; WebDataset skips "__x__"; with '%' itself escaped, no two ids share a key.
ESCAPED_IN_KEY = re.compile(r"[./%\x00-\x1f\x7f]|^_(?=_)")


class Failure(Exception):
    """Ends the program with a message and an exit status: 2 for what was asked, 1 for what went wrong."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Source:
    """One parquet file."""

    path: Path
    first_row: int  # the number of its row 0 in the whole input
    n_rows: int
    columns: list[str]  # those that go into KEY.json


@dataclass(frozen=True)
class Row:
    """What is written for one row: its tar members, or a line of skipped.jsonl."""

    members: bytes = b""
    is_image: bool = True  # JPEG, PNG or WebP by content
    skipped: dict[str, object] | None = None


@dataclass
class Totals:
    """What is done so far. A line of shards.jsonl has them as they were when its shard ended."""

    rows: int = 0
    samples: int = 0
    skipped: int = 0
    not_images: int = 0
    bytes: int = 0  # of finished shards
    skipped_bytes: int = 0  # length of skipped.jsonl


def find_files(patterns: Iterable[str]) -> list[Path]:
    """The parquet files that the arguments name, absolute, each once, in order of path."""
    found: set[Path] = set()
    for pattern in patterns:
        matches = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
        files = [f for m in map(Path, matches) for f in ([m] if m.is_file() else m.rglob("*.parquet")) if f.is_file()]
        if not files:
            raise Failure(f"--input {pattern}: no parquet file there", 2)
        found.update(Path(os.path.abspath(file)) for file in files)
    return sorted(found, key=os.fsencode)


def holds_bytes(kind: pa.DataType) -> bool:
    """At any depth: JSON cannot represent such a column."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_bytes = kind in BYTES or pa.types.is_fixed_size_binary(kind)
    return is_bytes or any(holds_bytes(kind.field(i).type) for i in range(kind.num_fields))


def json_columns(path: Path, schema: pa.Schema, options: argparse.Namespace) -> list[str]:
    """The columns for KEY.json, some of which may hold bytes. Refuses a schema that cannot be converted."""
    if options.columns == ["all"]:
        columns = [name for name in schema.names if name != options.image_column]
    else:
        columns = [] if options.columns == ["none"] else options.columns
    for name in [options.image_column, *filter(None, [options.id_column]), *columns]:
        if schema.names.count(name) != 1:
            number = "several columns" if name in schema.names else "no column"
            raise Failure(f"{path}: {number} '{name}'; there are {', '.join(schema.names)}", 2)
    kind = schema.field(options.image_column).type
    parts = {part.name: part.type for part in kind} if pa.types.is_struct(kind) else {}
    is_pair = parts.get("bytes") in (*BYTES, pa.null()) and parts.get("path") in (*TEXT, pa.null())
    if not (kind in BYTES or kind in TEXT or is_pair):
        why = "lists; one image a row is needed" if "list<" in str(kind) else "neither bytes, nor {bytes, path}, nor paths"
        raise Failure(f"{path}: column '{options.image_column}' holds {why} (its type is {kind})", 2)
    kind = schema.field(options.id_column).type if options.id_column else pa.string()
    if not (kind in TEXT or pa.types.is_integer(kind)):
        raise Failure(f"{path}: column '{options.id_column}' holds neither text nor integers, as ids need (but {kind})", 2)
    return columns


def open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, buffer_size=READ_BUFFER, pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise Failure(f"{path}: {error}") from error


def open_sources(files: list[Path], options: argparse.Namespace) -> list[Source]:
    """Looks at the schema and the number of rows of every file."""
    sources: list[Source] = []
    left_out: set[str] = set()
    first_row = 0
    for path in files:
        with open_parquet(path) as file:
            schema, n_rows = file.schema_arrow, file.metadata.num_rows
        columns = json_columns(path, schema, options)
        left_out.update(name for name in columns if holds_bytes(schema.field(name).type))
        columns = [name for name in columns if not holds_bytes(schema.field(name).type)]
        sources.append(Source(path, first_row, n_rows, columns))
        first_row += n_rows
    if left_out:
        say(f"columns that hold bytes are not in the JSON: {', '.join(sorted(left_out))}")
    return sources


def read_source(
    source: Source, columns: list[str], start: int, stop: int, max_rows: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Rows start..stop - 1 of a file in small batches, each with the number of its first row."""
    with open_parquet(source.path) as file:
        end = 0
        for g in range(file.num_row_groups):
            group = file.metadata.row_group(g)
            row, end = end, end + group.num_rows
            if end <= start or row >= stop:
                continue
            n_rows = max(1, min(max_rows, MAX_BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
            try:
                for batch in file.iter_batches(n_rows, row_groups=[g], columns=columns):
                    first, last = max(row, start), min(row + batch.num_rows, stop)
                    if first < last:
                        yield first, batch.slice(first - row, last - first)
                    row += batch.num_rows
            except (OSError, pa.ArrowException) as error:
                raise Failure(f"{source.path}: columns {', '.join(columns)}: {error}") from error


def check_ids(sources: list[Source], column: str, stop: int) -> None:
    """Every id is there, and once. This needs memory for all ids, as nothing else does."""
    ids = pa.chunked_array([], pa.large_string())
    for source in sources:
        batches = read_source(source, [column], 0, stop - source.first_row, MAX_ID_ROWS)
        ids = pa.chunked_array([*ids.chunks, *(batch.column(0).cast(pa.large_string()) for _, batch in batches)], ids.type)
        if ids.null_count:
            row = ids.is_null().index(True).as_py() - source.first_row
            raise Failure(f"{source.path}: column '{column}' is null in row {row}")
    counts = ids.value_counts()
    for count in counts.filter(pc.greater(counts.field("counts"), 1)):
        row = ids.index(count["values"], start=ids.index(count["values"]).as_py() + 1).as_py()
        source = next(s for s in reversed(sources) if s.first_row <= row)
        raise Failure(f"{source.path}: column '{column}' has '{count['values']}' a second time in row {row - source.first_row}")


def python_values(source: Source, batch: pa.RecordBatch, name: str) -> list[object]:
    """A column, its times in whole microseconds: finer ones become Python objects only where pandas is installed."""
    column = batch.column(name)
    try:
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
        elif pa.types.is_time64(column.type):
            column = column.cast(pa.time64("us"), safe=False)
        return column.to_pylist()
    except Exception as error:  # pyarrow raises many kinds: invalid UTF-8, the year 10000, an unknown time zone
        raise Failure(f"{source.path}: column '{name}' cannot be represented: {error}") from error


def plain(value: object) -> object:
    """As JSON has it: times in ISO 8601, durations in seconds, decimals as text, NaN and infinities as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return value if value is None or isinstance(value, (str, int)) else str(value)


def to_json(value: object) -> bytes:
    return json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def load_image(value: object, folder: Path) -> bytes | str:
    """The image's bytes, in the row or in the file that it names; else why there is none."""
    if isinstance(value, dict):
        value = value["path"] if value["bytes"] is None else value["bytes"]
    if value is None or isinstance(value, bytes):
        return "the image is null" if value is None else value
    path = folder / value
    try:
        # Not a pipe or a device: reading it might never end.
        return path.read_bytes() if os.path.isfile(path) else f"no such file: {path}"
    except PermissionError:
        return f"no permission to read {path}"


def tar_member(name: str, data: bytes) -> bytes:
    """Header and padded data. TarInfo begins with mtime 0, uid and gid 0, mode 0644."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8") + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def prepare(source: Source, first: int, batch: pa.RecordBatch, options: argparse.Namespace) -> list[Row]:
    """What to write for the rows of a batch. Runs in a worker thread."""
    columns = {name: python_values(source, batch, name) for name in batch.schema.names}
    rows: list[Row] = []
    for i, number in enumerate(range(first, first + batch.num_rows)):
        where = f"{source.path} row {number}"
        key = f"{source.first_row + number:09d}"
        if options.id_column:
            key = ESCAPED_IN_KEY.sub(lambda match: f"%{ord(match[0]):02X}", str(columns[options.id_column][i]))
        if not 0 < (n_bytes := len(key.encode())) <= MAX_KEY_BYTES:
            raise Failure(f"{where}: column '{options.id_column}' gives a key of {n_bytes} bytes, not 1 to {MAX_KEY_BYTES}")
        try:
            image = load_image(columns[options.image_column][i], options.image_root or source.path.parent)
        except OSError as error:
            raise Failure(f"{where}: column '{options.image_column}': {error}") from error
        if isinstance(image, str):
            if options.strict:
                raise Failure(f"{where}: column '{options.image_column}': {image}")
            rows.append(Row(skipped={"key": key, "file": str(source.path), "row": number, "reason": image}))
            continue
        kind = SIGNATURE.match(image)
        members = tar_member(f"{key}.{kind.lastgroup if kind else 'jpg'}", image)
        if options.columns != ["none"]:
            members += tar_member(f"{key}.json", to_json({name: columns[name][i] for name in source.columns}))
        rows.append(Row(members, kind is not None))
    return rows


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def publish(file: IO[bytes], path: Path) -> None:
    """Gives a file that was written as PATH.tmp its name; after a power cut, it has all its bytes or is not there."""
    sync(file)
    file.close()
    os.replace(f"{path}.tmp", path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def claim_folder(sources: list[Source], options: argparse.Namespace) -> None:
    """Makes the output folder this conversion's; refuses one that is another's."""
    chosen = {name: value for name, value in vars(options).items() if name not in NOT_IN_CONVERSION}
    chosen["image_root"] = options.image_root and os.path.abspath(options.image_root)
    files = [{"path": str(source.path), "bytes": source.path.stat().st_size} for source in sources]
    path = options.output / "conversion.json"
    options.output.mkdir(parents=True, exist_ok=True)
    old = json.loads(path.read_bytes()) if path.exists() else {}
    settings = {"format": FORMAT, "files": files} | chosen
    different = sorted(name for name in settings | old if name not in old or old[name] != settings.get(name))
    prefixes = "|".join(re.escape(prefix) for prefix in {options.prefix, old.get("prefix", options.prefix)})
    shards = [f for f in options.output.iterdir() if re.fullmatch(rf"({prefixes})-\d{{4,}}\.tar(\.tmp)?", f.name)]
    if not different and not options.overwrite:
        return
    if (old or shards) and not options.overwrite:
        why = f"another {', '.join(different)}".replace("_", "-") if old else "shards without conversion.json"
        raise Failure(f"{options.output} holds another conversion ({why}); --overwrite deletes its shards", 2)
    for file in [path, *shards, options.output / "shards.jsonl", options.output / "skipped.jsonl"]:
        file.unlink(missing_ok=True)
    file = open(f"{path}.tmp", "wb")
    file.write(json.dumps(settings, indent=1).encode() + b"\n")
    publish(file, path)


class ShardWriter:
    """Writes shards, shards.jsonl and skipped.jsonl, row after row, beginning after the shards that are finished."""

    def __init__(self, options: argparse.Namespace, n_rows: int) -> None:
        self.options = options
        # Four times as many as the samples need: sizes may end shards too, and a pattern's numbers have one width.
        self.digits = max(4, len(str(4 * n_rows // options.samples_per_shard)))
        self.totals = Totals()
        self.n_shards = 0  # finished
        self.n_samples = self.n_bytes = 0  # in the shard that is open
        self.shard: IO[bytes] | None = None
        self.records = open(options.output / "shards.jsonl", "ab+")
        self.skipped = open(options.output / "skipped.jsonl", "ab")
        self.keep_finished()

    def path(self, number: int) -> Path:
        return self.options.output / f"{self.options.prefix}-{number:0{self.digits}}.tar"

    def keep_finished(self) -> None:
        """Goes on after the last of the shards that are all there, with their lines in shards.jsonl."""
        self.records.seek(0)
        kept = 0
        for line in self.records:
            path = self.path(self.n_shards)
            record = json.loads(line) if line.endswith(b"\n") else {}  # cut short by an interruption
            totals = {name: record.get(name, 0) for name in asdict(self.totals)}
            if record.get("shard") != path.name or self.skipped.tell() < totals["skipped_bytes"]:
                break
            if not path.exists() or path.stat().st_size != totals["bytes"] - self.totals.bytes:
                break
            self.totals = Totals(**totals)
            self.n_shards += 1
            kept += len(line)
        self.records.truncate(kept)
        self.skipped.truncate(self.totals.skipped_bytes)

    def add(self, row: Row) -> None:
        if row.skipped is not None:
            self.totals.skipped_bytes += self.skipped.write(to_json(row.skipped) + b"\n")
            self.totals.skipped += 1
        else:
            full = self.n_samples == self.options.samples_per_shard
            if full or (self.n_samples and ended(self.n_bytes + len(row.members)) > self.options.max_shard_bytes):
                self.finish_shard()
            if self.n_shards == 10**self.digits:
                raise Failure(f"{self.options.output}: {self.n_shards} shards and more to come; raise --max-shard-bytes")
            if self.shard is None:
                self.shard = open(f"{self.path(self.n_shards)}.tmp", "wb")
            self.shard.write(row.members)
            self.n_bytes += len(row.members)
            self.n_samples += 1
            self.totals.samples += 1
            self.totals.not_images += not row.is_image
        self.totals.rows += 1

    def finish_shard(self) -> None:
        """The shard first, then the lines of the rows skipped before its end, then the line that says so."""
        path = self.path(self.n_shards)
        self.shard.write(bytes(ended(self.n_bytes) - self.n_bytes))
        publish(self.shard, path)
        sync(self.skipped)
        self.totals.bytes += ended(self.n_bytes)
        self.records.write(to_json({"shard": path.name} | asdict(self.totals)) + b"\n")
        sync(self.records)
        self.shard, self.n_samples, self.n_bytes = None, 0, 0
        self.n_shards += 1

    def pattern(self) -> str:
        """What `lvpipe caption --input` takes."""
        first, last = (f"{n:0{self.digits}}" for n in (0, self.n_shards - 1))
        numbers = first if first == last else f"{{{first}..{last}}}"
        return shlex.quote(f"{self.options.output}/{self.options.prefix}-{numbers}.tar")


def ended(n_bytes: int) -> int:
    """Size of a tar file with that many bytes of members: two zero blocks, and zeros to a full record, as tar writes it."""
    return -(-(n_bytes + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def prepared_batches(sources: list[Source], start: int, stop: int, options: argparse.Namespace) -> Iterator[list[Row]]:
    """Rows start..stop - 1 of the whole input, in order. One thread reads parquet, the workers do the rest."""
    with ThreadPoolExecutor(options.workers) as pool:
        waiting: deque[Future[list[Row]]] = deque()
        for source in sources:
            chosen = {options.image_column, options.id_column, *source.columns} - {None}
            begin, end = start - source.first_row, stop - source.first_row
            for first, batch in read_source(source, sorted(chosen), begin, end, MAX_BATCH_ROWS):
                waiting.append(pool.submit(prepare, source, first, batch, options))
                if len(waiting) > 2 * options.workers:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def convert(options: argparse.Namespace) -> None:
    sources = open_sources(find_files(options.input), options)
    n_rows = sources[-1].first_row + sources[-1].n_rows
    n_rows = n_rows if options.limit is None else min(n_rows, options.limit)
    if options.id_column:
        check_ids(sources, options.id_column, n_rows)
    claim_folder(sources, options)
    writer = ShardWriter(options, n_rows)
    totals, before = writer.totals, writer.totals.rows
    if totals.skipped and options.strict:
        raise Failure(f"{options.output}/skipped.jsonl: {totals.skipped} rows were skipped already")
    if writer.n_shards:
        say(f"{writer.n_shards} finished shards are kept; going on at row {before}")
    begin = shown = time.monotonic()
    for rows in prepared_batches(sources, before, n_rows, options):
        for row in rows:
            writer.add(row)
        now = time.monotonic()
        if now - shown >= PROGRESS_SECONDS:
            shown = now
            speed = (totals.rows - before) / (now - begin)
            say(f"{totals.rows} of {n_rows} rows, {speed:.0f} rows/s, {writer.n_shards} shards")
    if writer.shard is not None:
        writer.finish_shard()
    sync(writer.skipped)
    seconds = time.monotonic() - begin
    say(f"{totals.rows} rows: {totals.samples} samples, {writer.n_shards} shards, {totals.bytes / 1e9:.2f} GB, {seconds:.0f} s")
    if totals.not_images:
        say(f"{totals.not_images} are neither JPEG, PNG nor WebP by content: written as .jpg, lvpipe will list them as errors")
    if totals.skipped:
        say(f"{totals.skipped} rows without an image were skipped: {options.output}/skipped.jsonl")
    if writer.n_shards:
        say(f"lvpipe caption --input {writer.pattern()} ...")


def positive(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 up")
    return int(text)


def size(text: str) -> int:
    """A number of bytes, or of KiB, MiB, GiB or TiB."""
    number, unit = (text[:-1], text[-1]) if text[-1:].upper() in set("KMGT") else (text, "")
    return positive(number) << (10 * " KMGT".index(unit.upper()) if unit else 0)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="DATA", help="parquet files, folders of them, patterns")
    add("--output", type=Path, required=True, metavar="DIR")
    add("--image-column", default="image", metavar="NAME", help="default: image")
    add("--id-column", metavar="NAME", help="text or integers, unique over all files; by default a row's number is its key")
    about_columns = "for KEY.json; all (default), or none: no KEY.json. Those that hold bytes are left out"
    add("--columns", type=lambda text: text.split(","), default=["all"], metavar="A,B,C", help=about_columns)
    add("--samples-per-shard", type=positive, default=10000, metavar="N", help="at most; default: 10000")
    add("--max-shard-bytes", type=size, default="2G", metavar="SIZE", help="default: 2G; one larger sample gets its own shard")
    add("--image-root", type=Path, metavar="DIR", help="where paths start; default: the folder of the parquet file")
    add("--prefix", default="shard", help="of the shards' names; default: shard")
    add("--workers", type=positive, default=min(8, os.cpu_count() or 1), metavar="N", help="threads; no effect on the bytes")
    add("--limit", type=positive, metavar="N", help="only the first N rows")
    add("--strict", action="store_true", help="a row without an image is an error")
    add("--overwrite", action="store_true", help="start anew in a folder that holds another conversion")
    options = parser.parse_args(arguments)
    if options.image_root and not options.image_root.is_dir():
        parser.error(f"--image-root {options.image_root}: no such folder")
    if re.search(r"[/{}]|^$", options.prefix):
        parser.error(f"--prefix '{options.prefix}': it begins file names in a pattern, so no '/', '{{' and '}}'")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    try:
        convert(options)
    except Failure as error:
        say(f"parquet_to_webdataset.py: {error}")
        return error.status
    except (OSError, KeyboardInterrupt) as error:
        say(f"parquet_to_webdataset.py: {options.output}: {str(error) or 'interrupted; the same command resumes'}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

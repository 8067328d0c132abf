"""Reading what others published, with errors that name file and field, and writing whole files or none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


class Failure(Exception):
    """Ends the program with this message and status 2: something given to it is not as it must be."""


@dataclass(frozen=True)
class Row:
    """One object of a file, and how to tell a reader where it stands."""

    where: str
    values: dict[str, object]

    def raw(self, name: str) -> object:
        if self.values.get(name) is None:
            raise Failure(f'{self.where}: no field "{name}"')
        return self.values[name]

    def text(self, name: str) -> str:
        value = self.raw(name)
        if not isinstance(value, str):
            raise Failure(f'{self.where}: "{name}" must be a text')
        return value

    def number(self, name: str) -> int:
        value = self.raw(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise Failure(f'{self.where}: "{name}" must be a whole number')
        return value

    def id(self, name: str) -> str:
        """An id is a number in some files and a text in others."""
        value = self.raw(name)
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            raise Failure(f'{self.where}: "{name}" must be a text or a whole number')
        return str(value)

    def list(self, name: str) -> list[Row]:
        """A field that is a list of objects."""
        value = self.raw(name)
        if not isinstance(value, list):
            raise Failure(f'{self.where}: "{name}" must be a list')
        return rows(value, f'{self.where}, "{name}"')


def rows(value: object, where: str) -> list[Row]:
    """The objects of a list, or of an object by key."""
    named = value.items() if isinstance(value, dict) else enumerate(value, 1)
    found = [Row(f"{where}, entry {name}", row) for name, row in named]
    for row in found:
        if not isinstance(row.values, dict):
            raise Failure(f"{row.where}: not a JSON object")
    return found


def read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def read_json(path: Path) -> object:
    """A JSON file, or JSON lines as a list; several benchmarks name the latter .json too."""
    try:
        return json.loads(read_text(path))
    except ValueError:
        return read_lines(path)


def read_lines(path: Path) -> list[object]:
    values = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        try:
            if line.strip():
                values.append(json.loads(line))
        except ValueError as error:
            raise Failure(f"{path}, line {number}: not JSON: {error}") from None
    return values


def sort_files(paths: list[Path], kinds: dict[str, Callable[[object], bool]]) -> dict[str, list[tuple[Path, object]]]:
    """Files by what is in them: `kinds` says how each kind is recognised, its name is told where none fits."""
    found: dict[str, list[tuple[Path, object]]] = {kind: [] for kind in kinds}
    for path in paths:
        value = read_json(path)
        forms = (value, [value])  # JSON lines with a single line are an object at first sight
        fitting = [(kind, form) for kind, fits in kinds.items() for form in forms if fits(form)]
        if not fitting:
            raise Failure(f"{path}: not one of the files wanted here: {', '.join(kinds)}")
        kind, form = fitting[0]
        found[kind].append((path, form))
    return found


def lists(*fields: str) -> Callable[[object], bool]:
    """Recognises a list whose first object has these fields."""
    return lambda value: isinstance(value, list) and has_fields(value, fields)


def maps(field: str) -> Callable[[object], bool]:
    """Recognises an object whose first value is an object with this field."""
    return lambda value: isinstance(value, dict) and has_fields(value.values(), [field])


def has_fields(objects: Iterable[object], fields: Iterable[str]) -> bool:
    row = next(iter(objects), None)
    return isinstance(row, dict) and all(field in row for field in fields)


def write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from None

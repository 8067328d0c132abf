"""Questions with options: ScienceQA and MMBench in both languages."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

from scripts.eval.files import Failure, Row, lists, read_text, rows, sort_files
from scripts.eval.question import Question

LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CN = "请直接回答选项字母。"
OPTIONS = "ABCD"
NOTHING = {"", "NA", "N/A", "n/a", "NULL", "null"}  # how pandas reads an empty cell, and in any case nan and none; Na is sodium
CIRCLE = 1_000_000  # question k with its options turned n times round has index n * CIRCLE + k
REFERENCE = 64  # characters; an image shorter than that is the index of the row that holds it


def scienceqa(paths: list[Path]) -> list[Question]:
    """Questions without an image are left out: the figure reported is of those with one."""
    files = sort_files(paths, {"llava_test_CQM-A.json": lists("id", "conversations")})
    found = []
    for path, value in files["llava_test_CQM-A.json"]:
        for row in rows(value, str(path)):
            turns = row.list("conversations")
            if len(turns) < 2:
                raise Failure(f'{row.where}: "conversations" must hold a question and an answer')
            if "image" in row.values:
                prompt = turns[0].text("value").replace("<image>", "").strip() + "\n" + LETTER
                answers = (turns[1].text("value"),)
                found.append(Question(row.id("id"), row.text("image"), prompt, row, "scienceqa", answers))
    return found


def mmbench(paths: list[Path], language: str = "en") -> list[Question]:
    return [question for path in paths for question in mmbench_table(path, language)]


def mmbench_table(path: Path, language: str) -> list[Question]:
    table = read_table(path)
    pictures = {row.text("index"): row.text("image") for row in table}
    found = []
    for row in table:
        picture = row.text("image")
        if len(picture) <= REFERENCE:
            if picture not in pictures or len(pictures[picture]) <= REFERENCE:
                raise Failure(f'{row.where}: "image" is neither a picture nor the index of a row with one')
            picture = pictures[picture]
        index = row.text("index")
        if not index.isdecimal():
            raise Failure(f'{row.where}: "index" must be a whole number')
        answer = row.values.get("answer", "")
        answers = () if is_nothing(answer) else (answer,)
        group = str(int(index) % CIRCLE)
        family = "mmbench" if language == "en" else "mmbench-" + language
        found.append(Question(index, "", prompt(row, language), row, family, answers, group, picture))
    return found


def prompt(row: Row, language: str) -> str:
    lines = [] if is_nothing(row.values.get("hint", "")) else [row.text("hint")]
    lines.append(row.text("question"))
    for letter in OPTIONS:
        if is_nothing(row.text(letter)):
            break
        lines.append(f"{letter}. {row.text(letter)}")
    return "\n".join([*lines, LETTER_CN if language == "cn" else LETTER])


def is_nothing(cell: str) -> bool:
    return cell in NOTHING or cell.lower() in ("nan", "none")


def read_table(path: Path) -> list[Row]:
    csv.field_size_limit(sys.maxsize)  # a cell holds a picture
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter="\t")
    names = next(reader, [])
    wanted = ["index", "question", "image", *OPTIONS]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise Failure(f"{path}, line 1: no column {', '.join(missing)}; MMBench's .tsv file is wanted here")
    table = []
    for cells in filter(None, reader):  # without blank lines
        if len(cells) != len(names):
            raise Failure(f"{path}, line {reader.line_num}: {len(cells)} columns where line 1 names {len(names)}")
        table.append(Row(f"{path}, line {reader.line_num}", dict(zip(names, cells, strict=True))))
    return table

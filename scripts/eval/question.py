"""A question as lvpipe asks it, and what the benchmarks have in common."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.eval.files import Failure, Row, lists, rows, write

SHORT = "\nAnswer the question using a single word or phrase."
SIGNATURES = {"jpg": re.compile(rb"\xff\xd8\xff"), "png": re.compile(rb"\x89PNG\r\n"), "webp": re.compile(rb"RIFF....WEBP", re.S)}


@dataclass(frozen=True)
class Question:
    id: str  # unique in its file
    image: str  # path below the image folder
    prompt: str
    row: Row  # as it was published, for the export
    family: str
    answers: tuple[str, ...] = ()  # none: not public
    group: str | None = None  # right only where all of the group are
    picture: str = ""  # base64, where the file holds the image itself

    def manifest_row(self, metric: str, image: str) -> dict[str, object]:
        row: dict[str, object] = {"id": self.id, "image": image, "prompt": self.prompt, "family": self.family}
        if self.answers:
            likeliest = Counter(self.answers).most_common(1)[0][0]
            # Measured as LLaVA-1.5 was taught to say it: "Yes", not "yes".
            row |= {"metric": metric, "answers": list(self.answers), "answer": likeliest[:1].upper() + likeliest[1:]}
        return row | ({"group": self.group} if self.group is not None else {})


LLAVA = lists("question_id", "text", "category")  # lines as LLaVA asks any benchmark


def from_llava(files: list[tuple[Path, object]], name: Callable[[Row], str], family: str) -> list[Question]:
    """LLaVA's own question files: question_id, image, text (the whole prompt), category. `name` makes the id."""
    found = []
    for path, value in files:
        for row in rows(value, str(path)):
            row.id("question_id")
            found.append(Question(name(row), row.text("image"), row.text("text"), row, family))
    return found


def join(questions: list[Question], answers: dict[Hashable, tuple[str, ...]],
         key: Callable[[Question], Hashable]) -> list[Question]:  # fmt: skip
    """Gives the questions their answers. With answers at all, every question must have them."""
    if not answers:
        return questions
    for question in questions:
        if key(question) not in answers:
            raise Failure(f"{question.row.where}: no answer to this question in the other files of --questions")
    return [replace(question, answers=answers[key(question)]) for question in questions]


def check_ids(questions: list[Question]) -> None:
    known: dict[str, Question] = {}
    for question in questions:
        before = known.setdefault(question.id, question)
        if before is not question:
            raise Failure(f"{question.row.where}: the id {question.id} was there before, in {before.row.where}")


def place_images(questions: list[Question], images: Path | None, output: Path) -> list[str]:
    """Every question's image as a path relative to the task folder. Pictures of the file itself are written there."""
    if any(not q.picture for q in questions) and images is None:
        raise Failure("--images is missing: the folder with this benchmark's images")
    root = os.path.relpath(images.resolve(), output.resolve()) if images is not None else ""
    places: list[str] = []
    missing: list[str] = []
    written: set[str] = set()
    for question in questions:
        if question.picture:
            name, data = decode(question)
            if name not in written:
                write(output / name, data)
                written.add(name)
            places.append(name)
            continue
        if not (images / question.image).is_file():
            missing.append(question.image)
        places.append(f"{root}/{question.image}")
    if missing:
        raise Failure(f"--images {images}: {len(missing)} of {len(questions)} images are not there, the first is {missing[0]}")
    return places


def decode(question: Question) -> tuple[str, bytes]:
    """Named by content: a picture that several questions show is one file, and counts as one image."""
    try:
        data = base64.b64decode(question.picture, validate=True)
    except (binascii.Error, ValueError):
        raise Failure(f'{question.row.where}: "image" is not base64') from None
    ending = next((ending for ending, sign in SIGNATURES.items() if sign.match(data)), None)
    if ending is None:
        raise Failure(f'{question.row.where}: "image" is neither JPEG, PNG nor WebP')
    return f"images/{hashlib.sha256(data).hexdigest()[:20]}.{ending}", data

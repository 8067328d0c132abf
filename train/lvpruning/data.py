"""Training data: LLaVA's instruction JSON and lvpipe's manifests, as prompts and answers that the engine would see.

One question a sample: what a module reads is the prompt before the first answer token, and survivors see survivors, so one
set of vision rows cannot carry the masks of two questions.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessor, LlavaImageProcessor
from transformers.utils.chat_template_utils import render_jinja_template

from train.checkpoint import read_config
from train.lvpruning.batch import Example

DEFAULT_PROMPT = "Describe the image."  # lvpipe's, for manifest rows without one


@dataclass(frozen=True, slots=True)
class Sample:
    images: tuple[str, ...]
    prompt: str  # the question's text: no template, no <image>
    answer: str


def read_samples(files: list[Path], images: Path | None, turns: str) -> tuple[list[Sample], Counter[str]]:
    """Samples of all files in their order, and how many were skipped, by reason.

    *.json is a LLaVA list, whose images lie below `images` (default: the file's folder); *.jsonl a manifest, whose images lie
    beside it. turns: "first" makes a conversation one sample, "each" every question of it with its image.
    """
    samples: list[Sample] = []
    skipped: Counter[str] = Counter()
    exists = _Folders()
    for file in files:
        if file.suffix == ".jsonl":
            found = _manifest(file, skipped)
        else:
            found = _conversations(file, images or file.parent, turns, skipped)
        for sample in found:
            if all(map(exists, sample.images)):
                samples.append(sample)
            else:
                skipped["image missing"] += 1
    return samples, skipped


class _Folders:
    """Whether a file exists, by one listing per folder: a question per file takes minutes on a network file system."""

    def __init__(self) -> None:
        self.names: dict[str, frozenset[str]] = {}

    def __call__(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self.names:
            self.names[folder] = frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset()
        return name in self.names[folder]


def _as_list(value: Any) -> list[str]:
    """A text or a list of texts; whatever else stands there counts as nothing."""
    values = value if isinstance(value, list) else [value]
    return values if all(isinstance(v, str) and v for v in values) else []


def _turns(said: Any) -> list[tuple[str, str]]:
    """Questions with their answers."""
    turns = [(t.get("from"), t.get("value")) if isinstance(t, dict) else (None, None) for t in (said if isinstance(said, list) else [])]
    return [(q, a) for (asks, q), (says, a) in zip(turns[::2], turns[1::2])
            if (asks, says) == ("human", "gpt") and isinstance(q, str) and isinstance(a, str)]  # fmt: skip


def _conversations(file: Path, folder: Path, turns: str, skipped: Counter[str]) -> Iterator[Sample]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise SystemExit(f"{file}: not JSON: {error}") from error
    if not isinstance(rows, list):
        raise SystemExit(f"{file}: not a list of conversations")
    for row in rows:
        if not isinstance(row, dict):
            skipped["bad entry"] += 1
            continue
        images = _as_list(row.get("image"))
        if not images:
            skipped["no image"] += 1
            continue
        pairs = _turns(row.get("conversations"))
        if not pairs:
            skipped["no answer"] += 1
        for question, answer in pairs[: 1 if turns == "first" else None]:
            # The mark may stand before or after the question; the template puts images first.
            prompt = question.replace("<image>", "").strip()
            yield Sample(tuple(str(folder / i) for i in images), prompt, answer.strip())


def _manifest(file: Path, skipped: Counter[str]) -> Iterator[Sample]:
    for line in file.read_text(encoding="utf-8-sig").split("\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            skipped["bad line"] += 1
            continue
        images = _as_list(row.get("image"))
        answers = row.get("answers")
        answer = row.get("answer") or (answers[0] if isinstance(answers, list) and answers else answers)
        prompt = row.get("prompt")
        if not images or not answer or not isinstance(answer, str):
            skipped["no answer" if images else "no image"] += 1
        elif prompt is not None and not isinstance(prompt, str):
            skipped["bad line"] += 1
        else:
            yield Sample(tuple(str(file.parent / i) for i in images), DEFAULT_PROMPT if prompt is None else prompt, answer)


def fingerprint(samples: list[Sample]) -> str:
    """Tells two sample lists apart, so that a run does not go on with other data; where the images are does not matter."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr(([Path(image).name for image in sample.images], sample.prompt, sample.answer)).encode())
    return digest.hexdigest()[:16]


def chat_template(folder: Path) -> str | None:
    """The folder's template, looked for where lvpipe looks."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text()
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).exists():
            found = json.loads((folder / name).read_text()).get("chat_template")
            if found is not None:
                return found
    return None


def image_processor(folder: Path) -> CLIPImageProcessor | LlavaImageProcessor:
    """What the folder names; LLaVA's own pads to a square where the folder says so, as lvpipe does."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if not (folder / name).exists():
            continue
        settings = json.loads((folder / name).read_text())
        settings = settings.get("image_processor", settings)
        kind = settings.get("image_processor_type", settings.get("feature_extractor_type"))
        if kind is not None:
            return (LlavaImageProcessor if kind.startswith("Llava") else CLIPImageProcessor)(**settings)
    return CLIPImageProcessor.from_pretrained(folder)


class Encoder:
    """From samples to ids and pixels, with what the model's folder says."""

    def __init__(self, folder: Path, max_rows: int, system: str | None = None) -> None:
        config = read_config(folder)
        self.system = system
        vision = config.vision_config
        self.image_token: int = config.image_token_index
        self.vision_tokens = (vision.image_size // vision.patch_size) ** 2 + (config.vision_feature_select_strategy == "full")
        self.max_rows = min(max_rows, config.text_config.max_position_embeddings)
        self.template = chat_template(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.processor = image_processor(folder)

    def prompt_text(self, text: str, n_images: int) -> str:
        if self.template is None:
            images = "<image>\n" * n_images
            return f"{self.system + ' ' if self.system else ''}USER: {images}{text} ASSISTANT:"
        content = [{"type": "image"}] * n_images + [{"type": "text", "text": text}]
        system = [{"role": "system", "content": [{"type": "text", "text": self.system}]}] if self.system else []
        messages = [*system, {"role": "user", "content": content}]
        return render_jinja_template([messages], chat_template=self.template, add_generation_prompt=True)[0][0]

    def encode(self, sample: Sample) -> tuple[list[int], int] | None:
        """Ids of prompt, answer and end of sequence, each image's token repeated, and the rows of the prompt. None where the
        sample cannot be used: the image's mark in the text, a prompt that is too long, an answer that melts into it."""
        n_images = len(sample.images)
        text = self.prompt_text(sample.prompt, n_images)
        prompt = self.tokenizer(text)["input_ids"]
        whole = self.tokenizer(f"{text} {sample.answer}")["input_ids"]
        answer = [*whole[len(prompt) :], self.tokenizer.eos_token_id]
        if whole[: len(prompt)] != prompt or len(answer) == 1 or whole.count(self.image_token) != n_images:
            return None
        rows: list[int] = []
        for token in prompt:
            rows += [token] * (self.vision_tokens if token == self.image_token else 1)
        if len(rows) >= self.max_rows:
            return None
        return [*rows, *answer[: self.max_rows - len(rows) + 1]], len(rows)

    def pixels(self, sample: Sample) -> Tensor | None:
        """[images, 3, side, side]; None where an image cannot be decoded."""
        try:
            pictures = [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in sample.images]
            return self.processor(pictures, return_tensors="pt")["pixel_values"]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None


class Loader:
    """The examples of each step. Everything follows from the seed and the position in the stream of samples, which makes a
    resumed run the same as one that was never stopped, and independent of the number of ranks."""

    def __init__(self, samples: list[Sample], encoder: Encoder, points: int, seed: int, batch: int, rank: int, world: int) -> None:
        self.samples, self.encoder, self.points = samples, encoder, points
        self.seed, self.batch, self.rank, self.world = seed, batch, rank, world
        self.order = lru_cache(2)(self._order)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.samples))

    def load(self, position: int) -> Example:
        """An unusable sample is replaced by the next usable one of the list."""
        epoch, index = divmod(position, len(self.samples))
        place = int(self.order(epoch)[index])
        for step in range(100):
            sample = self.samples[(place + step) % len(self.samples)]
            encoded = self.encoder.encode(sample)
            pixels = None if encoded is None else self.encoder.pixels(sample)
            if pixels is not None:
                ids, n_prompt = encoded
                shape = (len(sample.images), self.points, self.encoder.vision_tokens, 2)
                noise = np.random.default_rng([self.seed, 1, position]).gumbel(size=shape).astype(np.float32)
                return Example(ids, n_prompt, pixels, torch.from_numpy(noise), replaced=step)
        raise ValueError(f"100 samples in a row cannot be used, the last one is {sample}")

    def steps(self, first: int, last: int, threads: int) -> Iterator[list[Example]]:
        """This rank's share of steps first..last-1, shortest first: neighbours share a micro-batch and its padding."""
        with ThreadPoolExecutor(max(1, threads)) as pool:
            waiting: deque[list[Future[Example]]] = deque()
            for step in range(first, last + 1):
                if step < last:
                    start = step * self.batch
                    waiting.append([pool.submit(self.load, p) for p in range(start + self.rank, start + self.batch, self.world)])
                if step > first:
                    yield sorted((f.result() for f in waiting.popleft()), key=lambda e: len(e.ids))

"""The demo's tokenizer: how tokenizer.model was made, and the ids training uses.

    python3 -m train.demo.tokenizer --output DIR        writes the tokenizer files of a folder

LLaMA's recipe at a small scale: sentencepiece BPE, 1024 pieces, byte fallback,
digits apart, identity normalisation. `<image>` and `<pad>` are added tokens.
The fast tokenizer (tokenizer.json) is transformers' conversion of the same file.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
from functools import lru_cache
from pathlib import Path

from train.tasks import families, scenes

PIECES = 1024
IMAGE_ID, PAD_ID, VOCAB = 1024, 1025, 1032
BOS_ID, EOS_ID = 1, 2
# The template that llava-1.5 folders are published with.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
PROMPT_HEAD = "USER: "
PROMPT_TAIL = "\n{text} ASSISTANT:"

GENERAL = """The quick brown fox jumps over the lazy dog.
A photo of a man and a woman who are standing in front of a house.
Please describe what is happening here in detail, in one short sentence.
There is something on the table next to the window; it looks like a book.
How would you explain this picture to a person who cannot see it?
Two people are walking with their dog along the street on a sunny day.
A chat between a curious human and an artificial intelligence assistant.
The assistant gives helpful, detailed, and polite answers to the human's questions.
Answer the question using a single word or phrase.
Which one is the biggest? Where are they? Who is that? When was it made? Why?
0 1 2 3 4 5 6 7 8 9 10 12 25 37 48 64 99 100 2024
"""


def corpus(lines: int = 20000, seed: int = 0) -> list[str]:
    """Prompts and answers as they are met, some general English, every ASCII sign."""
    rng = random.Random(seed)
    text = []
    for _ in range(lines):
        scene = scenes.make_scene(rng)
        for family in rng.sample(list(families.FAMILIES), 3):
            # Words of signs stay letters: no piece may join two capitals.
            for q in families.ask(scene, rng, family)[:1]:
                answer = re.sub(r"[A-Z0-9]{2,}", lambda m: " ".join(m[0]), q.answer)
                text.append(f"USER: {q.text} ASSISTANT: {answer}")
    text += GENERAL.splitlines() * 40
    text += [" ".join(chr(c) for c in range(33, 127))] * 40
    return text


def train_sentencepiece(folder: Path) -> None:
    import sentencepiece

    model = io.BytesIO()  # with files, their paths would be in it
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())


def write_tokenizer(folder: Path) -> None:
    """All tokenizer files of a Hugging Face folder; keeps a tokenizer.model that is there."""
    from transformers import AddedToken, LlamaTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer.model").exists():
        train_sentencepiece(folder)
    fast = LlamaTokenizerFast(
        vocab_file=str(folder / "tokenizer.model"),
        legacy=True,
        add_prefix_space=True,
        add_bos_token=True,
        add_eos_token=False,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
        padding_side="left",
    )
    fast.add_tokens([AddedToken("<image>", special=True, normalized=False)], special_tokens=True)
    fast.add_special_tokens({"pad_token": AddedToken("<pad>", special=True, normalized=False)})
    assert fast.convert_tokens_to_ids(["<image>", "<pad>"]) == [IMAGE_ID, PAD_ID]
    assert (fast.bos_token_id, fast.eos_token_id) == (BOS_ID, EOS_ID)
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder, legacy_format=False, save_jinja_files=False)
    # The slow tokenizer reads added_tokens.json or added_tokens_decoder; state the rest.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.update(
        legacy=True, add_bos_token=True, add_eos_token=False, add_prefix_space=None,
        tokenizer_class="LlamaTokenizer", processor_class="LlavaProcessor",
        image_token="<image>",
    )
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    (folder / "added_tokens.json").write_text(
        json.dumps({"<image>": IMAGE_ID, "<pad>": PAD_ID}, indent=2) + "\n"
    )
    (folder / "chat_template.json").write_text(
        json.dumps({"chat_template": CHAT_TEMPLATE}, indent=2) + "\n"
    )


class Tokens:
    """Prompts and answers as ids, equal to what the folder's tokenizer gives."""

    def __init__(self, folder: Path) -> None:
        import sentencepiece

        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        self.head: list[int] = [BOS_ID, *self.pieces.encode(PROMPT_HEAD)]
        self.tail = lru_cache(maxsize=100_000)(self._tail)
        self._word = lru_cache(maxsize=100_000)(self.pieces.encode)

    def _tail(self, text: str) -> tuple[int, ...]:
        return tuple(self.pieces.encode(PROMPT_TAIL.format(text=text)))

    def answer(self, text: str) -> list[int]:
        """Ids of ` text</s>`; words are encoded one by one, which equals the whole."""
        return [i for word in text.split(" ") for i in self._word(word)] + [EOS_ID]

    def decode(self, ids: list[int]) -> str:
        keep = [i for i in ids if i < PIECES and i not in (BOS_ID, EOS_ID)]
        return self.pieces.decode(keep).strip()


def check(folder: Path) -> None:
    """Fast, slow and our own ids agree on the demo's prompts."""
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(folder)
    slow = AutoTokenizer.from_pretrained(folder, use_fast=False)
    own = Tokens(folder)
    rng = random.Random(1)
    for _ in range(300):
        scene = scenes.make_scene(rng)
        for q in [q for family in families.FAMILIES for q in families.ask(scene, rng, family)]:
            text = f"{PROMPT_HEAD}<image>{PROMPT_TAIL.format(text=q.text)} {q.answer}"
            ids = [*own.head, IMAGE_ID, *own.tail(q.text), *own.answer(q.answer)[:-1]]
            for tokenizer in (fast, slow):
                assert tokenizer(text).input_ids == ids, (text, tokenizer(text).input_ids, ids)
            assert own.decode(own.answer(q.answer)) == q.answer
    print(f"{folder}: fast, slow and training ids agree; a caption prompt is", ids[:20])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    folder = parser.parse_args().output
    write_tokenizer(folder)
    check(folder)


if __name__ == "__main__":
    main()

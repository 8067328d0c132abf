#!/usr/bin/env python3
"""Writes tests/golden/tokenizer: a small LLaMA-type tokenizer in the forms in which LLaVA folders carry one, and what
transformers' tokenizers make of a few thousand strings. Reproducible: python3 train/golden_tokenizer.py [OUT]

Needs transformers 4.57, tokenizers, sentencepiece and protobuf. Format of the two golden files, JSON lines; the first line
is the list of folders, then one case a line:
  encode.jsonl  [text, [ids, ...], "0010..."]   distinct results, then which of them each folder gives (one digit each)
  decode.jsonl  [ids, [text, ...], "0010..."]   decode(ids, skip_special_tokens=True)
"""
import io
import json
import random
import shutil
import sys
from pathlib import Path

import sentencepiece
from transformers import AutoTokenizer, LlamaTokenizer, LlamaTokenizerFast

VOCAB = 512
WORDS = """the a an image photo picture shows describe this that what is are in on of and or with two three red green blue
yellow circle square triangle small large left right above below how many objects there count colour shape read text word
cat dog sitting standing table chair window street car bicycle person people holding wearing water sky grass tree building
USER ASSISTANT Human system answer question using single phrase brief detailed caption please List It's don't we've I'm
number 1 2 3 10 576 2048 3.14 50% white black bright dark background foreground letter letters digit sign reads""".split()
UNICODE = ["é", "ü", "ß", "ñ", "Ω", "λ", "中文", "日本語", "한국어", "العربية", "עברית", "हिन्दी", "😀", "👩‍👩‍👧‍👦", "🇫🇷", "e\u0301", "ﬁ", "Å",
           "\u212b", "①", "½", "\u00a0", "\u200b", "\u3000", "\u2028", "\ufeff", "\ufffd", "\u2581", "\U0001F9FF", "\x7f", "…", "“”", "–"]
SPACES = ["", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n ", "          ", "\u00a0", "\u2581", " \u2581"]
SPECIAL = ["<s>", "</s>", "<unk>", "<image>", "<pad>", "<extra>", "<left>", "<right>", "<imag", "<image", "image>", "<<s>>", "< s>",
           "<0x0A>", "<0xE2>", "</", "<s", "<image><image>"]


def sentence(rng, n):
    return " ".join(rng.choice(WORDS) for _ in range(n))


def fragment(rng):
    kind = rng.randrange(10)
    if kind < 4:
        return sentence(rng, rng.randint(1, 4))
    if kind < 6:
        return rng.choice(SPECIAL)
    if kind < 8:
        return rng.choice(SPACES)
    if kind < 9:
        return rng.choice(UNICODE)
    return "".join(chr(rng.randint(33, 126)) for _ in range(rng.randint(1, 5)))


def texts(rng):
    out = ["", *SPACES, *UNICODE, *SPECIAL, *[s + w for s in SPACES for w in ("a", "<s>", "<image>")],
           *[w + s for s in SPACES for w in ("a", "<s>", "<image>")], *[" " + s + " " for s in SPECIAL]]
    for first in SPECIAL[:8]:
        for space in SPACES:
            out += [f"{first}{space}word", f"word{space}{first}", f"a{space}{first}{space}b", f"{first}{space}{first}"]
    for _ in range(160):
        question = sentence(rng, rng.randint(3, 9))
        out.append(rng.choice(["USER: <image>\n{} ASSISTANT:", "USER: <image>\n<image>\n{}? ASSISTANT:", "[INST] <image>\n{} [/INST]",
                               "A chat. USER: <image>\n{} ASSISTANT:", "<image>\n{}", "{} <image>", "<s>USER: {}</s> "]).format(question))
    while len(out) < 2225:
        out.append("".join(fragment(rng) for _ in range(rng.randint(1, 5))))
    out.append((sentence(rng, 120) + "\n") * 2)
    out.append("a" * 700)
    out.append("😀é" * 60)
    return list(dict.fromkeys(out))


def train_model(rng):
    lines = [sentence(rng, rng.randint(3, 14)) + rng.choice(["", ".", "?", ":", "  ", "!"]) for _ in range(4000)]
    model = io.BytesIO()
    # As LLaMA's: identity normalization, spaces kept, digits split, bytes for what is not in the vocabulary.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=VOCAB, byte_fallback=True,
        split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True,
        allow_whitespace_only_pieces=True, character_coverage=1.0, num_threads=1, minloglevel=2)
    return model.getvalue()


def token(content, special=True, **flags):
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": special, **flags}


def config(**more):
    added = [token("<unk>"), token("<s>"), token("</s>")]
    decoder = {str(i): t for i, t in enumerate(added)}
    decoder |= {str(VOCAB): token("<image>"), str(VOCAB + 1): token("<pad>")}
    return {"added_tokens_decoder": decoder, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
            "extra_special_tokens": {"image_token": "<image>"}, "clean_up_tokenization_spaces": False,
            "tokenizer_class": "LlamaTokenizer", "model_max_length": 2048} | more


def odd_config(**more):
    """Added tokens with every flag, bos and eos the other way round, and clean-up when decoding."""
    out = config(clean_up_tokenization_spaces=True, add_bos_token=False, add_eos_token=True, **more)
    out["added_tokens_decoder"] |= {
        str(VOCAB + 2): token("<extra>", special=False), str(VOCAB + 3): token("<left>", lstrip=True),
        str(VOCAB + 4): token("<right>", special=False, rstrip=True)}
    return out


def write(folder, model, tokenizer_config, **files):
    folder.mkdir(parents=True)
    if model is not None:
        (folder / "tokenizer.model").write_bytes(model)
    for name, content in {"tokenizer_config": tokenizer_config, **files}.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")


def fast_json(folder, legacy):
    slow = LlamaTokenizer.from_pretrained(folder, legacy=legacy)
    backend = LlamaTokenizerFast.from_pretrained(folder, from_slow=True, legacy=slow.legacy).backend_tokenizer
    return json.loads(backend.to_str())


def changed(base, **changes):
    out = json.loads(json.dumps(base))
    for key, value in changes.items():
        if key in ("merges", "vocab", "ignore_merges", "fuse_unk", "byte_fallback"):
            out["model"][key] = value
        else:
            out[key] = value
    return out


def metaspace(scheme, split=False):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def write_folders(out, model):
    write(out / "slow_legacy", model, config())
    write(out / "slow_new", model, config(legacy=False))
    write(out / "slow_null", model, config(legacy=False, add_prefix_space=None))
    write(out / "slow_odd", model, odd_config(legacy=False, add_prefix_space=False))
    old = {k: v for k, v in config(legacy=True).items() if k not in ("added_tokens_decoder", "extra_special_tokens")}
    write(out / "slow_old", model, old, added_tokens={"<image>": VOCAB, "<pad>": VOCAB + 1, "<extra>": VOCAB + 2},
          special_tokens_map={"bos_token": token("<s>", normalized=True), "eos_token": token("</s>"), "unk_token": "<unk>",
                              "pad_token": "<pad>", "additional_special_tokens": ["<image>"]})
    legacy, new = fast_json(out / "slow_legacy", True), fast_json(out / "slow_new", False)
    strings = [" ".join(pair) for pair in legacy["model"]["merges"]]
    write(out / "fast_legacy", model, config(legacy=True), tokenizer=changed(legacy, merges=strings))
    # add_prefix_space makes LlamaTokenizerFast convert tokenizer.model and leave tokenizer.json's space rule aside.
    write(out / "fast_convert", model, config(legacy=False, add_prefix_space=True), tokenizer=legacy)
    write(out / "fast_first", None, config(legacy=False), tokenizer=changed(new, pre_tokenizer=metaspace("first")))
    write(out / "fast_always", None, config(legacy=False), tokenizer=changed(new, pre_tokenizer=metaspace("always", True)))
    decoder = {"type": "Sequence", "decoders": [d for d in new["decoder"]["decoders"] if d["type"] != "Strip"]}
    write(out / "fast_never", None, odd_config(), tokenizer=changed(new, pre_tokenizer=metaspace("never"), decoder=decoder))
    # Not LLaMA's class: bos and eos as the post-processor says; no bytes, so unknown characters are fused into <unk>.
    bare = {k: v for k, v in legacy["model"]["vocab"].items() if not k.startswith("<0x")}
    post = {"type": "TemplateProcessing", "pair": [], "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "special_tokens": {t: {"id": t, "ids": [bare[t]], "tokens": [t]} for t in ("<s>", "</s>")}}
    normalized = legacy["added_tokens"] + [{"id": VOCAB + 2, **token("<extra>", special=False, normalized=True)}]
    write(out / "fast_plain", None, {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"},
          tokenizer=changed(legacy, vocab=bare, post_processor=post, added_tokens=normalized, ignore_merges=True))


def distinct(results):
    """The different results as a JSON list, and for each tokenizer the digit of its own among them."""
    texts = [json.dumps(r, ensure_ascii=False, separators=(",", ":")) for r in results]
    found = list(dict.fromkeys(texts))
    assert len(found) <= 10
    return "[" + ",".join(found) + "]", "".join(str(found.index(t)) for t in texts)


def write_cases(path, names, cases, function):
    with open(path, "w") as file:
        file.write(json.dumps(names) + "\n")
        for case in cases:
            results, index = distinct([function(name, case) for name in names])
            file.write(f"[{json.dumps(case, ensure_ascii=False, separators=(',', ':'))},{results},\"{index}\"]\n")


def main():
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/tokenizer")
    shutil.rmtree(out, ignore_errors=True)
    rng = random.Random(20)
    write_folders(out, train_model(rng))
    names = sorted(p.name for p in out.iterdir())
    tokenizers = {n: AutoTokenizer.from_pretrained(out / n, use_fast=n.startswith("fast")) for n in names}
    for name, tokenizer in tokenizers.items():
        assert tokenizer.is_fast == name.startswith("fast"), name
    strings = texts(rng)
    write_cases(out / "encode.jsonl", names, strings, lambda n, t: tokenizers[n](t)["input_ids"])
    cases = []
    for _ in range(500):
        if rng.random() < 0.6:
            ids = tokenizers[rng.choice(["slow_legacy", "slow_new"])](rng.choice(strings)[:120])["input_ids"]
            start = rng.randrange(len(ids) + 1)
            cases.append(ids[start:start + rng.randint(0, 20)])
        else:  # ids of every folder's vocabulary but the ones that fast_plain lacks
            cases.append([rng.randrange(0, VOCAB + 2) for _ in range(rng.randint(1, 12))])
    cases = [list(c) for c in dict.fromkeys(map(tuple, cases))]
    write_cases(out / "decode.jsonl", names, cases, lambda n, ids: tokenizers[n].decode(ids, skip_special_tokens=True))


if __name__ == "__main__":
    main()

"""Removing rows equals masking them: the masked forward of training against removal.

    python check_pruning.py [--model DIR]

For text rows and surviving vision rows; a removed row has no counterpart. Also that
a packed batch equals one sequence per question.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from unittest import mock

import torch

import data
import pruning
import scenes
from export import load_model, load_pruner
from model import VISION_TOKENS
from tokenizer import Tokens
from train_pruner import draw_question, single_batch


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=data.MODEL_FOLDER)
    folder = parser.parse_args().model
    model, pruner, tokens = load_model(folder), load_pruner(folder), Tokens(folder)
    rng = random.Random(3)
    batch = data.draw_scenes(rng, 6)
    asked = [draw_question(rng, s, 0.5) for s in batch]
    text, target, tail_length = single_batch(tokens, asked)
    head = torch.tensor(tokens.head)
    rows = pruning.embed_rows(model, model.vision(data.pixels(batch, rng)), head, text, tail_length)
    hidden, kept = pruning.removed_forward(model, pruner, rows, pruning.ladder(0.5))
    # The same choice as masks, in place of the Gumbel draw.
    masks = iter([torch.zeros(6, VISION_TOKENS).scatter_(1, k, 1.0) for k in kept])
    with mock.patch.object(pruning, "gumbel_keep", lambda gamma, t: next(masks)):
        masked, _ = pruning.masked_forward(model, pruner, rows, 1.0)
    index = torch.cat([torch.arange(rows.head).expand(6, -1), rows.head + kept[-1],
                       torch.arange(rows.span.stop, masked.shape[1]).expand(6, -1)], 1)
    same = masked.gather(1, index[..., None].expand(-1, -1, masked.shape[2]))
    logits = [model.language_model.lm_head(h) for h in (hidden, same)]
    error = (logits[0] - logits[1]).abs().max().item()
    print(f"removed against masked, {[k.shape[1] for k in kept]} of {VISION_TOKENS}: logits {error:.1e}")
    assert error < 1e-3

    packed = data.pack(tokens, [[asked[0], scenes.questions(batch[0], rng, 1)[0], asked[0]]])
    vision = model.vision(data.pixels(batch[:1], random.Random(0)))
    x = torch.cat([model.embed(head)[None], vision, model.embed(packed.ids)], 1)
    positions = torch.cat([torch.arange(len(head) + VISION_TOKENS)[None], packed.positions], 1)
    shared = len(head) + VISION_TOKENS
    rows_out = model.language_model(x, positions, data.pack_mask(packed.block, shared))[0, shared:]
    first, last = (rows_out[packed.block[0] == b] for b in (0, 2))
    print(f"packed blocks: {(first - last).abs().max().item():.1e}")
    assert (first - last).abs().max() < 1e-3


if __name__ == "__main__":
    main()

"""The trainer of decision modules: its forward is the reference's, its prompts are the engine's, a killed run goes on as if
nothing had happened, and what it writes loads."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from train.checkpoint import load_model
from train.golden_cases import Case, Pruning, Text, Vision
from train.golden_folder import random_normal, write_folder
from train.lvpruning.base import World
from train.lvpruning.batch import IGNORE, Example, collate
from train.lvpruning.begin import FOCUS, Seen, begin_heads, divergence, look
from train.lvpruning.data import Encoder, Loader, Sample, read_samples
from train.lvpruning.masked_forward import ATTENTION, embed, gumbel_keep, masked_forward, top_keep, use_masked_attention, weigh
from train.lvpruning.matching import begin_head, by_the_question, weights_of
from train.lvpruning.recipe import fill
from train.lvpruning.state import Log
from train.lvpruning.train import WEIGHTS, losses, main, options
from train.pruner import DecisionBlock, Pruner, PrunerConfig, keep_count, keep_ratios, select_best
from train.reference import Reference

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "models" / "demo"
LVPIPE = Path(os.environ.get("LVPIPE", ROOT / "build" / "release" / "lvpipe"))
needs_lvpipe = pytest.mark.skipif(not LVPIPE.exists(), reason=f"no {LVPIPE}: build it or set LVPIPE")
# LLaVA-1.5 in small, with the demo model's tokenizer.
CASE = Case("trainer", Pruning((1, 2, 3), 16, 4), text=Text(vocab=1032, kv_heads=2), vision=Vision(image=28, patch=7), image_token=1024)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_folder(CASE, folder)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json"):
        shutil.copy(DEMO / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA list of 12 conversations and a manifest of 4 rows over the same 4 images."""
    folder = tmp_path_factory.mktemp("data")
    colors = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 200), "white": (240, 240, 240)}
    for name, color in colors.items():
        Image.new("RGB", (40, 30), color).save(folder / f"{name}.png")
    turns = [("human", "<image>\nWhich color is it?"), ("gpt", ""), ("human", "Is it red?"), ("gpt", "")]
    rows = []
    for i, name in enumerate([*colors] * 3):
        said = [dict(zip(("from", "value"), turn)) for turn in turns]
        said[1]["value"], said[3]["value"] = f"The image shows {name} {i % 3}.", "Yes." if name == "red" else "No."
        rows.append({"id": str(i), "image": f"{name}.png", "conversations": said})
    rows.append({"id": "gone", "image": "gone.png", "conversations": rows[0]["conversations"]})
    rows.append({"id": "text", "conversations": rows[0]["conversations"]})
    rows += ["entry", {"image": "red.png", "conversations": [{"from": "human"}, "no turn"]}]
    (folder / "list.json").write_text(json.dumps(rows))
    lines = [{"image": f"{name}.png", "prompt": "Describe the image.", "answers": [f"A {name} image."]} for name in colors]
    lines += [{"image": ["red.png", "blue.png"], "prompt": "Compare them.", "answer": "Not the same."}, {"image": "red.png"}]
    lines += [{"image": "red.png", "prompt": None, "answers": ["Red.", 3]}, {"image": "red.png", "answers": [["red"]]},
              {"image": "red.png", "prompt": 3, "answer": "Red."}]  # fmt: skip
    (folder / "rows.jsonl").write_text("\ufeff" + "".join(json.dumps(line) + "\n" for line in lines))
    return folder


def command(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    return ["--model", str(model), "--data", str(data / "list.json"), str(data / "rows.jsonl"), "--output", str(output),
            "--recipe", "paper", "--points", "1,2,3", "--inner-width", "16", "--heads", "4", "--dtype", "f32", "--batch", "8", "--micro-batch", "4",
            "--progress", "0", *more]  # fmt: skip


def start_ranks(told: list[list[str]], **options: object) -> list[subprocess.Popen]:
    """One rank for each command line, as srun starts them, over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(len(told))}
    place |= {"GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    program = [sys.executable, "-m", "train.lvpruning.train"]
    return [subprocess.Popen([*program, *arguments], cwd=ROOT, env={**os.environ, **place, "RANK": str(rank)}, **options)
            for rank, arguments in enumerate(told)]  # fmt: skip


def end_ranks(ranks: list[subprocess.Popen], status: int) -> None:
    try:
        assert [process.wait(60) for process in ranks] == [status] * len(ranks)
    finally:
        for process in ranks:
            process.kill()


def curve(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def examples(reference: Reference) -> list[Example]:
    """Three samples of different lengths; the second one has two images."""
    pictures = random_normal("trainer", (4, 3, 28, 28))
    found = []
    questions = ((1, 7, 1024, 9), (1, 1024, 5, 1024, 6), (1, 1024, 8, 9, 9, 9))
    for prompt, answer, of in zip(questions, ((20, 21, 2), (22, 2), (23, 24, 25, 2)), ([0], [1, 2], [3])):
        rows = reference.prompt(prompt, pictures[of])
        ids = [*rows.input_ids.tolist(), *answer]
        noise = torch.zeros(len(of), 3, reference.vision_tokens, 2)
        found.append(Example(ids, len(rows.input_ids), pictures[of], noise))
    return found


@pytest.mark.parametrize("kind", ATTENTION)
@pytest.mark.parametrize("keep", ["0.5", "1"])
def test_forward_with_hard_masks_is_the_references(model_folder: Path, kind: str, keep: str) -> None:
    pruner = Pruner.load(model_folder / "lvpruning.safetensors")
    reference = Reference(load_model(model_folder), pruner)
    ratios = keep_ratios(keep, 3)
    given = examples(reference)
    model = load_model(model_folder)
    use_masked_attention(model, kind)
    batch = collate(given, CASE.image_token)

    def best(point: int, gamma: Tensor, alive: Tensor) -> Tensor:
        keep = torch.zeros_like(alive)
        for image, score in enumerate(gamma[..., 0] - gamma[..., 1]):
            rows = alive[image].nonzero()[:, 0]
            keep[image, rows[select_best(score[rows], keep_count(Decimal(ratios[point]), alive.shape[1], len(rows)))]] = 1.0
        return keep

    with torch.no_grad():
        hidden, masks = masked_forward(model, pruner, embed(model, batch), batch, best)
    image = 0
    for b, example in enumerate(given):
        prompt = reference.prompt(_compressed(example.ids[: example.n_prompt], reference.vision_tokens), example.pixels)
        expected = reference.forward_masked(prompt, ratios, answer=example.ids[example.n_prompt : -1])
        visible = torch.cat([expected.alive, torch.ones(example.n_answer - 1, dtype=torch.bool)])
        rows = hidden[b, batch.real[b]]
        assert torch.allclose(model.lm_head(rows)[visible], expected.logits[visible], atol=2e-4)
        for i in range(len(example.pixels)):
            for point, decision in enumerate(expected.decisions):
                first = int((prompt.image_of_row == i).nonzero()[0])
                assert masks[point][image].nonzero()[:, 0].tolist() == (decision.kept[i] - first).tolist()
            image += 1
        assert batch.target[b, batch.real[b]].tolist() == [IGNORE] * (example.n_prompt - 1) + example.ids[example.n_prompt :]


def _compressed(ids: list[int], m: int) -> list[int]:
    """One image token an image again."""
    out, i = [], 0
    while i < len(ids):
        out.append(ids[i])
        i += m if ids[i] == CASE.image_token else 1
    return out


def test_fused_forward_has_the_formulas_gradient(model_folder: Path) -> None:
    """Both attentions and recomputation give the modules the same gradient."""
    pruner = Pruner.load(model_folder / "lvpruning.safetensors").train()
    reference = Reference(load_model(model_folder), pruner)
    batch = collate(examples(reference), CASE.image_token)
    gradients = []
    for kind, recompute in (("eager", False), ("sdpa", False), ("sdpa", True)):
        model = load_model(model_folder).requires_grad_(False)
        use_masked_attention(model, kind)
        pruner.zero_grad()
        hidden, masks = masked_forward(
            model, pruner, embed(model, batch), batch, lambda p, gamma, alive: gumbel_keep(gamma + batch.noise[:, p], 1.0), recompute
        )
        assert all(torch.equal(d, d.round()) for d in masks)
        asked = batch.target != IGNORE
        torch.nn.functional.cross_entropy(model.lm_head(hidden[asked]), batch.target[asked]).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in pruner.points[:2].parameters()]))
    assert gradients[0].norm() > 1e-4
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() < 1e-5 * gradients[0].norm()


def test_the_best_are_kept_as_inference_keeps_them() -> None:
    """As many as inference keeps and, without noise, the same; the gradient is of those that are there, and leaves their number."""
    generator = torch.Generator().manual_seed(0)
    gamma = torch.randn(3, 20, 2, generator=generator, requires_grad=True)
    alive = torch.ones(3, 20)
    alive[1, ::2] = 0.0
    for k in (1, 7, 9):
        keep = top_keep(gamma, alive, k, 1.0) * alive
        for image, score in enumerate(gamma[..., 0] - gamma[..., 1]):
            rows = alive[image].nonzero()[:, 0]
            assert keep[image].nonzero()[:, 0].tolist() == rows[select_best(score[rows], k)].tolist()
        first = int(alive[1].nonzero()[0, 0])
        (gradient,) = torch.autograd.grad(keep[1, first], gamma)  # one up, the others that are there down, as much together
        sign = -alive[1].clone()
        sign[first] = 1.0
        assert torch.equal(gradient[1, :, 0].sign(), sign) and abs(gradient[1, :, 0].sum().item()) < 1e-6
        assert torch.equal(gradient[..., 0], -gradient[..., 1])
    for k in (0, 10, 15, 20):  # none, all that are there, all
        keep = top_keep(gamma, alive, k, 1.0) * alive
        assert keep.sum(1).tolist() == [k, min(k, 10), k]
        (gradient,) = torch.autograd.grad(keep[1].sum(), gamma)
        assert gradient.abs().max() < 1e-6
    noisy = [alive * top_keep(gamma + torch.randn(3, 20, 2, generator=generator), alive, 7, 1.0) for _ in range(2)]
    assert not torch.equal(*noisy) and all(torch.equal(n.sum(1), torch.full((3,), 7.0)) for n in noisy)


def test_looks_are_transformers_attention(model_folder: Path) -> None:
    """What is seen of an image: the rows after each point, and the most that an answer's rows look at a token in later layers."""
    model, plain = load_model(model_folder), load_model(model_folder)
    batch = collate(examples(Reference(model, None)), CASE.image_token)
    use_masked_attention(model, "sdpa")
    x = embed(model, batch)
    layers = len(model.model.language_model.layers)
    after = (1, layers - 1, layers)
    seen = look(model, batch, after)
    plain.model.language_model.config._attn_implementation = "eager"
    found = plain.model.language_model(inputs_embeds=x, attention_mask=batch.real.long(), output_attentions=True, output_hidden_states=True)
    n = x.shape[1]
    assert len(seen) == len(batch.vision)
    for vision, text, of_image in zip(batch.vision, batch.text, seen):
        b = int(vision[0]) // n
        answer = batch.target[b] != IGNORE
        for point, layer in enumerate(after[:2]):
            most = torch.stack([weights[b][:, answer][..., vision - b * n].amax((0, 1)) for weights in found.attentions[layer:]]).amax(0)
            assert torch.allclose(of_image.wanted[point], most**FOCUS / (most**FOCUS).sum(), atol=1e-4)
            rows = found.hidden_states[layer].flatten(0, 1)
            assert torch.allclose(of_image.vision[point].float(), rows[vision], atol=1e-2)
            assert torch.allclose(of_image.text[point].float(), rows[text], atol=1e-2)
        assert torch.allclose(of_image.wanted[2], torch.full((len(vision),), 1 / len(vision)))  # no layer after it: all alike


@pytest.mark.parametrize("channels", (4, 8, 12))
def test_a_head_begins_as_the_models(model_folder: Path, channels: int) -> None:
    """A module's head gives the logits that the model's head would, were there no positions: as near as its channels allow."""
    layer = load_model(model_folder).model.language_model.layers[1]
    attention, hidden = layer.self_attn, layer.input_layernorm.weight.shape[0]
    assert attention.head_dim == 8
    vision, text = random_normal("vision", (70, hidden)), random_normal("text", (50, hidden))
    vision, text = (rows / rows.square().mean(-1, keepdim=True).sqrt() * length for rows, length in ((vision, 3.0), (text, 2.0)))
    block = DecisionBlock(hidden, hidden, 2 * channels, 2)
    query, key = weights_of(layer)
    with torch.no_grad():
        for index in range(len(query)):
            begin_head(block, 1, query[index], key[index], 3.0, 2.0)
            found = block.q_proj.weight[channels:].T @ block.k_proj.weight[channels:] / channels**0.5  # [C of vision, C of text]
            of, shared = (slice(i * 8, (i + 1) * 8) for i in (index, index // attention.num_key_value_groups))
            model_q, model_k = attention.q_proj(layer.input_layernorm(text))[:, of], attention.k_proj(layer.input_layernorm(vision))[:, shared]
            if channels >= 8:
                assert torch.allclose(vision @ found @ text.T, model_k @ model_q.T / 8**0.5, atol=1e-4)
            u, s, v = torch.linalg.svd(key[index].T @ query[index] / 6.0 / 8**0.5)
            assert torch.allclose(found, u[:, :channels] * s[:channels] @ v[:channels], atol=1e-5)


def test_the_head_that_matches_is_taken(model_folder: Path) -> None:
    """One head of a layer is made to match contents; the modules before that layer begin as it, and not as one that matches what the
    prompt has taken from its picture whatever was asked."""
    model = load_model(model_folder)
    hidden = model.config.text_config.hidden_size
    layer = model.model.language_model.layers[2]
    with torch.no_grad():
        layer.input_layernorm.weight.fill_(1.0)
        for proj in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            proj.weight[:8] = torch.eye(8, hidden)
        marks = torch.eye(16, hidden)[8:]
        layer.self_attn.q_proj.weight[-8:], layer.self_attn.k_proj.weight[-8:] = marks, marks
    seen = []
    for i in range(40):  # two questions about each of 20 pictures, whose last token stands out
        vision, text = random_normal(f"vision{i % 20}", (3, 9, hidden)), random_normal(f"text{i}", (3, 3 + i % 4, hidden))
        text[:, 1, :8] = vision[:, i % 8, :8]
        text[:, 1, 8:16] = vision[:, 8, 8:16]
        asked, stands_out = (torch.nn.functional.one_hot(torch.tensor(token), 9).float() for token in (i % 8, 8))
        seen.append(Seen(vision.half(), text.half(), (0.4 * asked + 0.6 * stands_out).expand(3, 9), i % 20))
    pruner = Pruner(PrunerConfig((1, 2, 3), hidden, 16, 2))
    begin_heads(model, pruner, seen, World(0, 1, torch.device("cpu")))
    expected = torch.zeros(hidden, hidden)
    expected[range(8), range(8)] = 1.0
    for module in pruner.points[:2]:
        product = module.blocks[0].q_proj.weight[:8].T @ module.blocks[0].k_proj.weight[:8]
        assert torch.allclose(product / product[0, 0], expected, atol=1e-4)


def test_heads_that_match_the_question_are_found() -> None:
    """Of three heads one finds the token whose content is a word of the prompt, one what stands out, one nothing."""
    images, m, words, width = 24, 9, 4, 12
    content = random_normal("content", (images, m, width))
    text = random_normal("text", (images, words, width))
    asked = torch.arange(images) % m
    text[:, 2] = content[torch.arange(images), asked]
    wanted = torch.nn.functional.one_hot(asked, m).float()
    blind = torch.zeros(width, width)
    blind[0, 0] = 1.0
    query, key = (torch.stack([torch.eye(width), blind, random_normal(name, (width, width))]) for name in ("query", "key"))
    content, text = (torch.nn.functional.normalize(rows, dim=-1) for rows in (content, text))
    there = torch.arange(words + 1) < torch.randint(3, words + 1, (images, 1), generator=torch.Generator().manual_seed(0))
    text = torch.cat([text, text[:, :1]], 1).masked_fill(~there[..., None], 1e3)  # padding that would match anything
    scores = by_the_question(query, key, content, text, there, wanted) / images
    assert scores.argmax() == 0 and scores[0] > 0.3 and scores[1:].abs().max() < 0.2


def test_padding_is_not_looked_at(model_folder: Path) -> None:
    """Images whose prompts differ in length fit together as they do alone."""
    pruner = Pruner.load(model_folder / "lvpruning.safetensors")
    model = load_model(model_folder)
    use_masked_attention(model, "sdpa")
    seen = look(model, collate(examples(Reference(model, None)), CASE.image_token), pruner.config.after_layers)
    assert len({s.text.shape[1] for s in seen}) > 1
    with torch.no_grad():
        together = divergence(pruner, seen, torch.device("cpu")).item()
        alone = sum(divergence(pruner, [s], torch.device("cpu")).item() for s in seen)
    assert together == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("weigh", ["roots", "alike"])
def test_answers_weigh(model_folder: Path, weigh: str) -> None:
    """A long answer weighs as much as a short one, or by the root of its tokens."""
    pruner = Pruner.load(model_folder / "lvpruning.safetensors")
    model = load_model(model_folder)
    use_masked_attention(model, "sdpa")
    args = options().parse_args(["--model", "", "--data", "", "--output", "", "--weigh", weigh, "--select", "best"])
    fill(args, 32, 8, 100)
    given = examples(Reference(load_model(model_folder), pruner))
    with torch.no_grad():
        alone = [losses(model, pruner, collate([e], CASE.image_token), [0.5, 0.3, 0.1], 1.0, args)[0] for e in given]
        together = losses(model, pruner, collate(given, CASE.image_token), [0.5, 0.3, 0.1], 1.0, args)
        args.weigh = "tokens"
        summed = [losses(model, pruner, collate([e], CASE.image_token), [0.5, 0.3, 0.1], 1.0, args)[0] for e in given]
    assert together[0].item() == pytest.approx(sum(alone).item(), rel=1e-4)
    assert [n.item() for n in alone] == pytest.approx([n.item() * e.n_answer ** (WEIGHTS[weigh] - 1) for n, e in zip(summed, given)], rel=1e-4)


def test_a_removed_column_has_a_bounded_gradient() -> None:
    """A removed column with a huge logit: its weight counts at most as much as the strongest kept one's."""
    query, key = torch.ones(1, 1, 4, 8), torch.ones(1, 1, 4, 8)
    key[:, :, 1] *= 100.0
    value = torch.randn(1, 1, 4, 8, generator=torch.Generator().manual_seed(0))
    columns = torch.tensor([[1.0, 0.0, 1.0, 1.0]], requires_grad=True)
    visible = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    weigh(query, key, value, visible, columns, 1.0)[:, :, 2:].sum().backward()
    assert 0.0 < columns.grad[0, 1].abs() < 20.0


def test_loss_falls(model_folder: Path, data: Path, tmp_path: Path) -> None:
    # A random model answers at random: what its modules can learn is to change its answers less.
    weights = ("--causal-weight", "0", "--distill", "1", "--ratio-weight", "4")
    assert main(command(model_folder, data, tmp_path, "--steps", "45", "--lr", "1e-2", "--rho", "0.7", *weights)) == 0
    lines = curve(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 46))
    for name in ("loss", "kl", "ratio"):
        first, last = (sum(line[name] for line in part) / 8 for part in (lines[:8], lines[-8:]))
        assert last < 0.8 * first, name
    pruner = Pruner.load(tmp_path / "lvpruning.safetensors")
    assert pruner.config.after_layers == (1, 2, 3) and pruner.config.inner_width == 16


def test_modules_begin_where_the_answers_look(model_folder: Path, data: Path, tmp_path: Path) -> None:
    """On one rank and on two, what is saved knows more than where answers look on the average."""
    options = ("--select", "best", "--steps", "1", "--lr", "1e-9", "--begin", "32", "--begin-steps", "150", "--begin-lr", "1e-2")
    assert main(command(model_folder, data, tmp_path / "one", *options)) == 0
    end_ranks(start_ranks([command(model_folder, data, tmp_path / "two", *options, "--micro-batch", "3", "--fsdp")] * 2), 0)
    model = load_model(model_folder)
    use_masked_attention(model, "sdpa")
    samples, _ = read_samples([data / "list.json", data / "rows.jsonl"], None, "first")
    loader = Loader(samples, Encoder(model_folder, 2048), 3, 0, len(samples), 0, 1)
    (share,) = loader.steps(0, 1, 1)
    seen = look(model, collate(share, CASE.image_token), (1, 2, 3))
    wanted = torch.stack([s.wanted for s in seen])
    average = torch.nn.functional.kl_div(wanted.mean(0).log().expand_as(wanted), wanted, reduction="sum").item()
    for ranks in ("one", "two"):
        with torch.no_grad():
            found = divergence(Pruner.load(tmp_path / ranks / "lvpruning.safetensors"), seen, torch.device("cpu")).item()
        assert found < 0.6 * average
        lines = [json.loads(line) for line in (tmp_path / ranks / "begin.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [50, 100, 150] and lines[-1]["kl"] < 0.5 * lines[0]["kl"]


def test_a_signal_to_one_rank_ends_the_beginning(model_folder: Path, data: Path, tmp_path: Path) -> None:
    """On all ranks, and nothing is saved that a later run would take for a beginning that is done."""
    options = ("--select", "best", "--begin", "16", "--begin-steps", "100000")
    ranks = start_ranks([command(model_folder, data, tmp_path, *options)] * 2, stderr=subprocess.PIPE, text=True)
    for line in ranks[0].stderr:
        if line.startswith("begin: step"):
            break
    ranks[1].send_signal(signal.SIGUSR1)
    end_ranks(ranks, 75)
    assert not (tmp_path / "state.pt").exists()


def test_a_killed_run_goes_on_with_the_same_curve(model_folder: Path, data: Path, tmp_path: Path) -> None:
    options = ("--recipe", "ours", "--steps", "12", "--lr", "1e-3", "--save-every", "3", "--ratios", "0.4,0.8", "--begin", "16", "--begin-steps", "5")
    assert main(command(model_folder, data, tmp_path / "whole", *options)) == 0
    arguments = [sys.executable, "-m", "train.lvpruning.train", *command(model_folder, data, tmp_path / "killed", *options)]
    process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("step 5/"):
            break
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 5 <= len(curve(tmp_path / "killed")) < 12
    assert main(command(model_folder, data, tmp_path / "killed", *options)) == 0
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    files = [(tmp_path / name / "lvpruning.safetensors").read_bytes() for name in ("killed", "whole")]
    assert files[0] == files[1]
    with pytest.raises(SystemExit, match="begun with lr"):
        main(command(model_folder, data, tmp_path / "killed", *options, "--lr", "5e-3"))
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(SystemExit, match="begun with model"):
        main(command(other, data, tmp_path / "killed", *options))
    with pytest.raises(SystemExit, match="begun with init"):
        main(command(model_folder, data, tmp_path / "killed", *options, "--init", str(model_folder / "lvpruning.safetensors")))


def test_ranks_go_on_from_one_state(model_folder: Path, data: Path, tmp_path: Path) -> None:
    """A folder that only rank 0's node sees: the other rank would begin anew and add its gradients to those of a later step."""
    assert main(command(model_folder, data, tmp_path / "0", "--steps", "2", "--lr", "1e-3")) == 0
    ranks = start_ranks([command(model_folder, data, tmp_path / rank, "--steps", "4", "--lr", "1e-3") for rank in ("0", "1")])
    try:
        assert ranks[1].wait(60) not in (0, 75)
    finally:
        for process in ranks:
            process.kill()


def test_a_signal_ends_a_step_and_saves(model_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = command(model_folder, data, tmp_path, "--steps", "4", "--lr", "1e-3")
    monkeypatch.setattr(Log, "step", lambda self, values: os.kill(os.getpid(), signal.SIGUSR1))
    assert main(arguments) == 75
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 2
    assert Pruner.load(tmp_path / "lvpruning.safetensors").config.heads == 4


def test_ranks_shards_and_micro_batches_do_not_change_the_loss(model_folder: Path, data: Path, tmp_path: Path) -> None:
    options = ("--steps", "3", "--lr", "1e-3", "--distill", "0.5", "--weigh", "roots", "--select", "best")
    assert main(command(model_folder, data, tmp_path / "one", *options)) == 0
    end_ranks(start_ranks([command(model_folder, data, tmp_path / "two", *options, "--micro-batch", "3", "--fsdp")] * 2), 0)
    for one, two in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        for key, value in one.items():
            assert value == pytest.approx(two[key], rel=2e-3, abs=1e-5), key


def test_samples_of_both_formats(data: Path) -> None:
    files = [data / "list.json", data / "rows.jsonl"]
    first, skipped = read_samples(files, None, "first")
    assert (len(first), dict(skipped)) == (12 + 6, {"image missing": 1, "no image": 1, "bad entry": 1, "no answer": 3, "bad line": 1})
    assert first[0] == Sample((str(data / "red.png"),), "Which color is it?", "The image shows red 0.")
    assert first[12].answer == "A red image." and len(first[16].images) == 2 and first[17].prompt == "Describe the image."
    each, skipped = read_samples(files, None, "each")
    assert (len(each), skipped["image missing"]) == (24 + 6, 2)
    assert each[1].prompt == "Is it red?" and each[1].images == each[0].images


def test_unusable_samples_are_replaced(model_folder: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    good = Sample((str(data / "red.png"),), "Which color is it?", "Red.")
    broken = [Sample((str(tmp_path / "broken.png"),), "Is it?", "No."), Sample(good.images, "An <image>?", "No.")]
    loader = Loader([good, *broken], Encoder(model_folder, 2048), 3, 0, 3, 0, 1)
    share = next(loader.steps(0, 1, 2))
    assert sorted(e.replaced for e in share) == [0, 1, 2]
    assert len({tuple(e.ids) for e in share}) == 1
    assert len({e.noise.sum().item() for e in share}) == 3


@needs_lvpipe
def test_prompts_are_the_engines(model_folder: Path, data: Path) -> None:
    encoder = Encoder(model_folder, 2048)
    samples, _ = read_samples([data / "list.json", data / "rows.jsonl"], None, "each")
    samples.append(Sample(samples[0].images, "  Zwei  Wörter\nund: <s> 12?", "Ja."))
    polite = Encoder(model_folder, 2048, "Be polite.")
    assert polite.prompt_text("Who?", 1) == "Be polite. USER: <image>\nWho? ASSISTANT:"
    texts = []
    for sample in samples:
        images = "<image>\n" * len(sample.images)
        assert encoder.prompt_text(sample.prompt, len(sample.images)) == f"USER: {images}{sample.prompt} ASSISTANT:"
        texts.append(f"USER: {images}{sample.prompt} ASSISTANT:")
    texts += [f"{text} {sample.answer}" for text, sample in zip(texts, samples)]
    engine = subprocess.run([LVPIPE, "inspect", model_folder, "--tokenize", "-"], input="".join(json.dumps(t) + "\n" for t in texts),
                            capture_output=True, text=True, check=True).stdout  # fmt: skip
    ids = [json.loads(line) for line in engine.splitlines()]
    for sample, prompt, whole in zip(samples, ids, ids[len(samples) :], strict=False):
        expanded, n_prompt = encoder.encode(sample)
        assert _compressed(expanded[:n_prompt], encoder.vision_tokens) == prompt
        assert expanded[n_prompt:] == [*whole[len(prompt) :], 2]


@needs_lvpipe
def test_lvpipe_runs_what_was_trained(data: Path, tmp_path: Path) -> None:
    """The demo model, one step, then the engine's own look at the file and a caption with it."""
    arguments = command(DEMO, data, tmp_path / "run", "--steps", "1", "--init", str(DEMO / "lvpruning.safetensors"), "--batch", "2")
    assert main([*arguments, "--dtype", "bf16", "--save-dtype", "bf16"]) == 0
    folder = tmp_path / "model"
    shutil.copytree(DEMO, folder)
    shutil.copy(tmp_path / "run" / "lvpruning.safetensors", folder)
    shown = subprocess.run([LVPIPE, "inspect", folder, "--json"], capture_output=True, text=True, check=True).stdout
    assert json.loads(shown)["pruner_weights"]["after_layers"] == [1, 2, 4]
    subprocess.run([LVPIPE, "caption", "--model", folder, "--input", data / "red.png", "--output", tmp_path / "out", "-q"], check=True)
    assert json.loads((tmp_path / "out" / "captions.jsonl").read_text())["caption"]

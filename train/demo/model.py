"""The demo model in plain PyTorch, for training on a CPU.

CLIP vision tower, two-layer projector and LLaMA; the decision modules are trained by
train/lvpruning on the folder that export.py writes. Parameter names are those of a Hugging Face LLaVA checkpoint, so a state dict is
the file (export.py adds the tower's last layer, which feature layer -2 skips).

Shapes: B samples, V vision tokens (144), T rows of a sequence, C = 160 channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.demo.tokenizer import VOCAB
from train.tasks.scenes import GRID, LABELS, PATCH

CHANNELS, HEADS, LAYERS, MLP = 160, 5, 8, 480
VISION_MLP, VISION_LAYERS = 640, 5
VISION_TOKENS = GRID * GRID
ROPE_THETA, EPS = 10000.0, 1e-5


def linear(n_in: int, n_out: int, bias: bool, gain: float = 1.0) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, bias=bias)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(n_in))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, d] -> [B, heads, T, d / heads]"""
    b, t, d = x.shape
    return x.view(b, t, heads, d // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B, heads, T, d / heads] -> [B, T, d]"""
    b, h, t, d = x.shape
    return x.transpose(1, 2).reshape(b, t, h * d)


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x [B, T, d], rows [B, n] -> [B, n, d]"""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


class VisionAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = linear(CHANNELS, CHANNELS, True)
        self.k_proj = linear(CHANNELS, CHANNELS, True)
        self.v_proj = linear(CHANNELS, CHANNELS, True)
        self.out_proj = linear(CHANNELS, CHANNELS, True, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(p(x), HEADS) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(join_heads(F.scaled_dot_product_attention(q, k, v)))


class VisionMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = linear(CHANNELS, VISION_MLP, True)
        self.fc2 = linear(VISION_MLP, CHANNELS, True, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))  # quick_gelu


class VisionLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(CHANNELS, eps=EPS)
        self.self_attn = VisionAttention()
        self.layer_norm2 = nn.LayerNorm(CHANNELS, eps=EPS)
        self.mlp = VisionMlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionEmbeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(CHANNELS) * 0.02)
        self.patch_embedding = nn.Conv2d(3, CHANNELS, PATCH, stride=PATCH, bias=False)
        self.position_embedding = nn.Embedding(VISION_TOKENS + 1, CHANNELS)
        nn.init.normal_(self.position_embedding.weight, std=0.3)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, SIDE, SIDE] -> [B, 1 + V, C]"""
        b = pixels.shape[0]
        # The convolution as one matrix product: patches in row-major order.
        rows = pixels.view(b, 3, GRID, PATCH, GRID, PATCH).permute(0, 2, 4, 1, 3, 5)
        patches = rows.reshape(b, VISION_TOKENS, -1) @ self.patch_embedding.weight.flatten(1).t()
        first = self.class_embedding.expand(b, 1, -1)
        return torch.cat([first, patches], 1) + self.position_embedding.weight


class VisionEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer() for _ in range(VISION_LAYERS))


class VisionModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings()
        self.pre_layrnorm = nn.LayerNorm(CHANNELS, eps=EPS)
        self.encoder = VisionEncoder()

    def forward(self, pixels: Tensor, rows: Tensor | None = None) -> Tensor:
        """[B, 3, SIDE, SIDE] -> [B, V, C], the class token dropped; of the patches `rows` [B, n] alone where given."""
        x = self.embeddings(pixels)
        if rows is not None:
            x = torch.cat([x[:, :1], gather_rows(x[:, 1:], rows)], 1)
        x = self.pre_layrnorm(x)
        for layer in self.encoder.layers:
            x = layer(x)
        return x[:, 1:]


class VisionTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision_model = VisionModel()


class Projector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear_1 = linear(CHANNELS, CHANNELS, True)
        self.linear_2 = linear(CHANNELS, CHANNELS, True)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(x)))


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (CHANNELS,), self.weight, EPS)


def rope_tables(positions: Tensor) -> tuple[Tensor, Tensor]:
    """[B, T] position ids -> cos, sin, each [B, 1, T, C / HEADS]"""
    half = CHANNELS // HEADS // 2
    rate = ROPE_THETA ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = positions[:, None, :, None].float() * rate
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q, k, v [B, h, T, d]; mask [B, 1, T, T] is added. In bf16, plain products are faster than the CPU's fused kernel (48 and 76 ms
    forward and backward at 20 x 5 x 280 x 32 on Zen 4), in f32 they are not."""
    if not torch.is_autocast_enabled("cpu"):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        q, k, v, mask = (x.bfloat16() for x in (q * q.shape[-1] ** -0.5, k, v, mask))
        return (q @ k.transpose(-1, -2) + mask).softmax(-1) @ v


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * rope[0] + torch.cat([-b, a], -1) * rope[1]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = linear(CHANNELS, CHANNELS, False)
        self.k_proj = linear(CHANNELS, CHANNELS, False)
        self.v_proj = linear(CHANNELS, CHANNELS, False)
        self.o_proj = linear(CHANNELS, CHANNELS, False, 0.3)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        q = rotate(split_heads(self.q_proj(x), HEADS), rope)
        k = rotate(split_heads(self.k_proj(x), HEADS), rope)
        v = split_heads(self.v_proj(x), HEADS)
        return self.o_proj(join_heads(attend(q, k, v, mask)))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = linear(CHANNELS, MLP, False)
        self.up_proj = linear(CHANNELS, MLP, False)
        self.down_proj = linear(MLP, CHANNELS, False, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm()
        self.self_attn = Attention()
        self.post_attention_layernorm = RMSNorm()
        self.mlp = Mlp()

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, CHANNELS)
        nn.init.normal_(self.embed_tokens.weight, std=0.5)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = RMSNorm()


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Decoder()
        self.lm_head = linear(CHANNELS, VOCAB, False, 0.3)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor, left: dict[int, Tensor] | None = None) -> Tensor:
        """x [B, T, C], positions [B, T], mask bool [B, 1, T, T] -> hidden rows [B, T, C]. left: which of the rows that layer n
        wrote [B, fewer] are all that the layers after it see."""
        rope = rope_tables(positions)
        mask = torch.zeros(mask.shape).masked_fill_(~mask, -1e9)
        for number, layer in enumerate(self.model.layers, 1):
            x = layer(x, rope, mask)
            if left and number in left:
                rows = left[number]
                x, positions = gather_rows(x, rows), positions.gather(1, rows)
                mask = gather_rows(gather_rows(mask[:, 0], rows).transpose(1, 2), rows).transpose(1, 2)[:, None]
                rope = rope_tables(positions)
        return self.model.norm(x)


class DemoLlava(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = VisionTower()
        self.multi_modal_projector = Projector()
        self.language_model = LanguageModel()

    def vision(self, pixels: Tensor, rows: Tensor | None = None) -> Tensor:
        """[B, 3, SIDE, SIDE] -> [B, V, C] rows for the language model, or those of the patches `rows` alone."""
        return self.multi_modal_projector(self.vision_tower.vision_model(pixels, rows))

    def embed(self, ids: Tensor) -> Tensor:
        return self.language_model.model.embed_tokens(ids)


class Oracle(nn.Module):
    """Stage B's stand-in for the vision side: patch labels -> [B, V, C]."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [*LABELS.values(), GRID, GRID]
        self.tables = nn.ModuleList(nn.Embedding(n, CHANNELS) for n in sizes)
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.4)

    def forward(self, labels: Tensor) -> Tensor:
        """labels int64 [B, V, len(LABELS)]"""
        x = sum(t(labels[..., i]) for i, t in enumerate(self.tables[:-2]))
        cell = torch.arange(VISION_TOKENS)
        return x + self.tables[-2](cell // GRID) + self.tables[-1](cell % GRID)


class PatchHeads(nn.Module):
    """Stage A's classifiers on the tower's output: a list of [B, V, classes]."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(linear(CHANNELS, n, True, 0.3) for n in LABELS.values())

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(x) for head in self.heads]

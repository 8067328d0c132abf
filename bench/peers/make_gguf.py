#!/usr/bin/env python3
"""Write GGUF files of a shape with random weights: its language model in bf16, or its vision encoder in f16.

    make_gguf.py language FILE SHAPE      tiny-llava or llava-1.5-7b
    make_gguf.py vision FILE SHAPE

Needs numpy and the gguf package; called by llama_cpp.sh. No vocabulary: benchmarks feed token numbers.
"""

import sys

import gguf
import numpy as np

SHAPES = {"tiny-llava": (2048, 5632, 22, 32, 4), "llava-1.5-7b": (4096, 11008, 32, 32, 32)}
HIDDEN, MLP, LAYERS, HEADS, KV_HEADS = SHAPES[sys.argv[3]]
VOCAB, CONTEXT, HEAD_DIM = 32064, 2048, HIDDEN // HEADS
VIT_HIDDEN, VIT_MLP, VIT_LAYERS, VIT_HEADS, IMAGE, PATCH = 1024, 4096, 24, 16, 336, 14


class Writer:
    def __init__(self, path: str, architecture: str, matrix_type: gguf.GGMLQuantizationType) -> None:
        self.gguf = gguf.GGUFWriter(path, architecture)
        self.matrix_type = matrix_type
        self.random = np.random.default_rng(0)

    def matrix(self, name: str, *shape: int) -> None:
        values = self.random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        self.gguf.add_tensor(name, gguf.quants.quantize(values, self.matrix_type), raw_dtype=self.matrix_type)

    def vector(self, name: str, n: int, value: float) -> None:
        self.gguf.add_tensor(name, np.full(n, value, dtype=np.float32))

    def close(self) -> None:
        self.gguf.write_header_to_file()
        self.gguf.write_kv_data_to_file()
        self.gguf.write_tensors_to_file()
        self.gguf.close()


def write_language(path: str) -> None:
    file = Writer(path, "llama", gguf.GGMLQuantizationType.BF16)
    file.gguf.add_context_length(CONTEXT)
    file.gguf.add_embedding_length(HIDDEN)
    file.gguf.add_block_count(LAYERS)
    file.gguf.add_feed_forward_length(MLP)
    file.gguf.add_head_count(HEADS)
    file.gguf.add_head_count_kv(KV_HEADS)
    file.gguf.add_layer_norm_rms_eps(1e-5)
    file.gguf.add_rope_dimension_count(HEAD_DIM)
    file.gguf.add_vocab_size(VOCAB)
    file.gguf.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    file.gguf.add_tokenizer_model("no_vocab")
    file.matrix("token_embd.weight", VOCAB, HIDDEN)
    file.vector("output_norm.weight", HIDDEN, 1)
    file.matrix("output.weight", VOCAB, HIDDEN)
    for layer in range(LAYERS):
        file.vector(f"blk.{layer}.attn_norm.weight", HIDDEN, 1)
        file.vector(f"blk.{layer}.ffn_norm.weight", HIDDEN, 1)
        file.matrix(f"blk.{layer}.attn_q.weight", HIDDEN, HIDDEN)
        file.matrix(f"blk.{layer}.attn_k.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        file.matrix(f"blk.{layer}.attn_v.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        file.matrix(f"blk.{layer}.attn_output.weight", HIDDEN, HIDDEN)
        file.matrix(f"blk.{layer}.ffn_gate.weight", MLP, HIDDEN)
        file.matrix(f"blk.{layer}.ffn_up.weight", MLP, HIDDEN)
        file.matrix(f"blk.{layer}.ffn_down.weight", HIDDEN, MLP)
    file.close()


def write_vision(path: str) -> None:
    file = Writer(path, "clip", gguf.GGMLQuantizationType.F16)
    file.gguf.add_bool("clip.has_vision_encoder", True)
    file.gguf.add_string("clip.projector_type", "mlp")
    file.gguf.add_bool("clip.use_gelu", False)
    file.gguf.add_uint32("clip.vision.embedding_length", VIT_HIDDEN)
    file.gguf.add_uint32("clip.vision.feed_forward_length", VIT_MLP)
    file.gguf.add_uint32("clip.vision.block_count", VIT_LAYERS)
    file.gguf.add_uint32("clip.vision.attention.head_count", VIT_HEADS)
    file.gguf.add_uint32("clip.vision.projection_dim", HIDDEN)
    file.gguf.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    file.gguf.add_uint32("clip.vision.image_size", IMAGE)
    file.gguf.add_uint32("clip.vision.patch_size", PATCH)
    file.gguf.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    file.gguf.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    file.vector("v.class_embd", VIT_HIDDEN, 0.02)
    file.matrix("v.patch_embd.weight", VIT_HIDDEN, 3, PATCH, PATCH)
    file.matrix("v.position_embd.weight", (IMAGE // PATCH) ** 2 + 1, VIT_HIDDEN)
    for norm in ("v.pre_ln", *(f"v.blk.{layer}.ln{i}" for layer in range(VIT_LAYERS) for i in (1, 2))):
        file.vector(f"{norm}.weight", VIT_HIDDEN, 1)
        file.vector(f"{norm}.bias", VIT_HIDDEN, 0)
    linears = [("mm.0", HIDDEN, VIT_HIDDEN), ("mm.2", HIDDEN, HIDDEN)]
    for layer in range(VIT_LAYERS):
        linears += [(f"v.blk.{layer}.attn_{name}", VIT_HIDDEN, VIT_HIDDEN) for name in ("q", "k", "v", "out")]
        linears += [(f"v.blk.{layer}.ffn_up", VIT_MLP, VIT_HIDDEN), (f"v.blk.{layer}.ffn_down", VIT_HIDDEN, VIT_MLP)]
    for name, rows, columns in linears:
        file.matrix(f"{name}.weight", rows, columns)
        file.vector(f"{name}.bias", rows, 0)
    file.close()


if __name__ == "__main__":
    {"language": write_language, "vision": write_vision}[sys.argv[1]](sys.argv[2])

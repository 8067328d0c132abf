"""The frozen model on its device, whole or sharded, and the few collective operations of a run."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from train.checkpoint import load_model
from train.lvpruning.masked_forward import use_masked_attention


@dataclass(frozen=True)
class World:
    """This process among those that torchrun (or srun, see train.sbatch) started; alone without either."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls) -> World:
        rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        if size > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(rank, size, device)

    def sum(self, values: Tensor) -> Tensor:
        """Adds up `values` over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def from_first(self, values: Tensor) -> None:
        """Gives all ranks what rank 0 has."""
        if self.size > 1:
            dist.broadcast(values, 0)

    def leave(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()


def load_base(folder: Path, dtype: torch.dtype, attention: str, world: World, shard: bool) -> LlavaForConditionalGeneration:
    """shard: every rank holds a part of each decoder layer and gathers a layer when it computes it (FSDP2)."""
    model = load_model(folder, dtype).requires_grad_(False)
    use_masked_attention(model, attention)
    if shard and world.size > 1:
        from torch.distributed.fsdp import fully_shard

        for layer in model.model.language_model.layers:
            fully_shard(layer, reshard_after_forward=True)  # moves its part to the device
    return model.to(world.device)


def weights_fingerprint(folder: Path) -> str:
    """Tells two models apart without reading all of them: config, and of each weight file its size and 64 pieces spread over it."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        if path.name == "lvpruning.safetensors":
            continue
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with open(path, "rb") as file:
            for piece in range(64):
                file.seek(max(0, size - 4096) * piece // 63)
                digest.update(file.read(4096))
    return digest.hexdigest()[:16]


class FlatGradients:
    """All gradients of a module in one buffer: one all_reduce, one norm."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        parameters = list(module.parameters())
        self.buffer = torch.zeros(sum(p.numel() for p in parameters), device=device)
        for part, parameter in zip(self.buffer.split([p.numel() for p in parameters]), parameters):
            parameter.grad = part.view_as(parameter)

    def clip(self, limit: float) -> float:
        """Scales the gradient to a norm of at most `limit`; the norm before."""
        norm = self.buffer.norm()
        self.buffer.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        return norm.item()

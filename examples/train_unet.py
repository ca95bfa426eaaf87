"""A 3-D U-Net of 5,000 weights learns to remove noise, from two datasets at one voxel size. A minute without a GPU.

    make quickstart-all
    source .venv/bin/activate && eval "$(em-assets sample env)"
    pip install -e '.[ml]'
    python examples/train_unet.py

Stop it with Ctrl-C after the first line and run it again with `--checkpoint run.pt`: it goes on with the very sample
where it stopped, and gives the same losses as if it had not, with any number of workers.
"""

# ruff: noqa: INP001, T201  # a script to read and run, which prints

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import em_assets.blocks as em

NOISE = 0.7
"""Standard deviation of the noise to remove, where the block's own is 1."""


class UNet(nn.Module):
    """Two resolutions; what it predicts is what to add to its input."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.fine = twice(1, width)
        self.coarse = twice(width, 2 * width)
        self.merge = twice(3 * width, width)
        self.last = nn.Conv3d(width, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        fine = self.fine(image)
        coarse = self.coarse(nn.functional.max_pool3d(fine, 2))
        coarse = nn.functional.interpolate(coarse, size=fine.shape[2:])
        return image + self.last(self.merge(torch.cat([fine, coarse], 1)))


def twice(channels: int, width: int) -> nn.Sequential:
    layers = [nn.Conv3d(channels, width, 3, padding=1), nn.LeakyReLU(), nn.Conv3d(width, width, 3, padding=1)]
    return nn.Sequential(*layers, nn.LeakyReLU())


def prepare(sample: dict[str, Any]) -> dict[str, Any]:
    """Grey values of mean 0 and deviation 1, turned and flipped at random, and the same with noise.

    All chance comes from the sample's own seed, so this sample is the same whenever and wherever it is drawn.
    """
    chance = np.random.default_rng(sample["info"]["seed"])
    clean, valid = sample["data"].astype(np.float32), sample["valid"]
    clean = (clean - clean.mean()) / max(float(clean.std()), 1e-6)
    for axis in range(3):
        if chance.random() < 0.5:
            clean, valid = np.flip(clean, axis), np.flip(valid, axis)
    turns = int(chance.integers(4))
    clean, valid = np.rot90(clean, turns, (1, 2)), np.rot90(valid, turns, (1, 2))
    noisy = clean + chance.normal(0, NOISE, clean.shape).astype(np.float32)
    return {"noisy": noisy, "clean": clean, "valid": valid, "info": sample["info"]}


def endless(stream: em.BlockStream, workers: int) -> Iterator[dict[str, Any]]:
    """Batches of this epoch from where the stream stands, then those of the following."""
    loader = DataLoader(stream, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    while True:
        yield from loader
        stream.set_epoch(stream.epoch + 1)


def loss_of(prediction: Tensor, clean: Tensor, valid: Tensor) -> Tensor:
    """Mean square error of the voxels that are real."""
    return ((prediction - clean) ** 2)[valid].mean()


def train(
    dataset: em.BlockDataset, *, steps: int, batch_size: int, workers: int, checkpoint: Path | None
) -> list[float]:
    """The losses of all steps, those before the checkpoint included."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - workers))  # more than there are cores wait for each other
    torch.manual_seed(dataset.seed)
    model = UNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    stream = em.BlockStream(dataset, batch_size=batch_size)
    losses: list[float] = []
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        stream.load_state_dict(saved["data"])
        losses = saved["losses"]
    for batch in itertools.islice(endless(stream, workers), max(0, steps - len(losses))):
        noisy, clean, valid = (batch[key][:, None] for key in ("noisy", "clean", "valid"))
        loss = loss_of(model(noisy), clean, valid)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if len(losses) % 25 == 0 or len(losses) == steps:
            print(
                f"step {len(losses):4}: loss {np.mean(losses[-25:]):.3f} (the noise itself: {NOISE**2:.3f})", flush=True
            )
            if checkpoint is not None:
                parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**parts, "data": batch["state"], "losses": losses}, checkpoint)
    return losses


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sources", nargs="*", default=["hemibrain_crop", "jrc_mus_nacc_2"], help="names or paths")
    parser.add_argument("--voxel-size", type=float, default=16.0, help="of all of them, in nanometres")
    parser.add_argument("--shape", type=int, default=24, help="of a block, in voxels; even")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--checkpoint", type=Path, help="to go on from and to save to")
    given = parser.parse_args(arguments)
    dataset = em.BlockDataset(
        [(source, 1.0) for source in given.sources],
        shape=given.shape,
        voxel_size_nm=given.voxel_size,
        length=2000,
        seed=given.seed,
        transform=prepare,
    )
    options = {"steps": given.steps, "batch_size": given.batch_size, "workers": given.workers}
    return train(dataset, **options, checkpoint=given.checkpoint)


if __name__ == "__main__":
    main()

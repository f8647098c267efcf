"""Trains and samples an unconditional network as the example of diffusers does, on the arrays of data/prepared.

    python diffusers_example.py train CONFIG.json FOLDER     writes a pipeline to FOLDER
    python diffusers_example.py sample CONFIG.json FOLDER    reads it, writes FOLDER/samples.npz

CONFIG.json: images (an .npy file), unet (arguments of UNet2DModel), batch_size, steps, learning_rate, samples, sampling_steps.
Instead of steps: save_at, ascending seconds after the time `start` (of time.time). At each of them the pipeline is written to
FOLDER/SECONDS, and the last ends the training; FOLDER/saved.json has the true seconds, steps and learning rates. `commands` and
`quality` run it, with PyTorch's default threads.
"""

import json
import math
import sys
import time
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from torchvision import transforms
from tqdm import tqdm

WARMUP = 500


class Images(torch.utils.data.Dataset):
    """The images as the example augments them, without the flips, which would change digits."""

    def __init__(self, path: str):
        self.images = np.load(path)
        self.augment = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.augment(self.images[index])


def train(config: dict, folder: Path) -> None:
    model = UNet2DModel(**config["unet"])
    scheduler = DDPMScheduler(1000)
    optimizer = torch.optim.AdamW(model.parameters(), config["learning_rate"], (0.95, 0.999), weight_decay=1e-6)
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    loader = DataLoader(Images(config["images"]), batch_size=config["batch_size"], shuffle=True)
    steps, save_at, saved = config.get("steps"), config.get("save_at", []), []
    step, progress, begin = 0, tqdm(total=steps), time.time()

    def rate_for_seconds(step: int) -> float:
        """Returns the factor of the example's schedule for as many steps as fit into the time at the mean speed so far."""
        if step < WARMUP:
            return step / WARMUP
        total = step * (config["start"] + save_at[-1] - begin) / (time.time() - begin)
        return (1 + math.cos(math.pi * min(1, (step - WARMUP) / max(1, total - WARMUP)))) / 2

    if steps:
        warmup = get_scheduler("cosine", optimizer, num_warmup_steps=WARMUP, num_training_steps=steps)
    else:
        warmup = LambdaLR(optimizer, rate_for_seconds)

    def save(target: Path) -> None:
        ema.store(model.parameters())
        ema.copy_to(model.parameters())
        DDPMPipeline(model, scheduler).save_pretrained(target)
        ema.restore(model.parameters())

    for images in chain.from_iterable(repeat(loader)):
        noise = torch.randn(images.shape)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(images),)).long()
        output = model(scheduler.add_noise(images, noise, timesteps), timesteps).sample
        loss = F.mse_loss(output.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warmup.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        progress.update(1)
        progress.set_postfix(loss=loss.detach().item(), lr=warmup.get_last_lr()[0])
        step += 1
        if steps:
            if step == steps:
                break
            continue
        now = time.time()
        while len(saved) < len(save_at) and now - config["start"] >= save_at[len(saved)]:
            save(folder / str(save_at[len(saved)]))
            saved.append({"seconds": now - config["start"], "step": step, "learning_rate": warmup.get_last_lr()[0]})
        if len(saved) == len(save_at):
            (folder / "saved.json").write_text(json.dumps(saved))
            return
    save(folder)


def sample(config: dict, folder: Path) -> None:
    pipeline = DDIMPipeline(UNet2DModel.from_pretrained(folder / "unet"), DDIMScheduler(1000))
    sizes = [min(config["batch_size"], config["samples"] - start) for start in range(0, config["samples"], config["batch_size"])]
    images = [pipeline(size, num_inference_steps=config["sampling_steps"], output_type="np").images for size in sizes]
    np.savez(folder / "samples.npz", (np.concatenate(images) * 255).round().astype(np.uint8))


if __name__ == "__main__":
    {"train": train, "sample": sample}[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3]))

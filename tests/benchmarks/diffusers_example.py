"""Trains and samples an unconditional network as the example of diffusers does, on the arrays of data/prepared.

    python diffusers_example.py train CONFIG.json FOLDER     writes a pipeline to FOLDER
    python diffusers_example.py sample CONFIG.json FOLDER    reads it, writes FOLDER/samples.npz

CONFIG.json: images (an .npy file), unet (arguments of UNet2DModel), batch_size, steps, learning_rate, samples, sampling_steps.
The command `commands` times it, with PyTorch's default threads.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from torchvision import transforms
from tqdm import tqdm


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
    warmup = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=config["steps"])
    step, progress = 0, tqdm(total=config["steps"])
    while step < config["steps"]:
        for images in loader:
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
            if step == config["steps"]:
                break
    ema.copy_to(model.parameters())
    DDPMPipeline(model, scheduler).save_pretrained(folder)


def sample(config: dict, folder: Path) -> None:
    pipeline = DDIMPipeline(UNet2DModel.from_pretrained(folder / "unet"), DDIMScheduler(1000))
    sizes = [min(config["batch_size"], config["samples"] - start) for start in range(0, config["samples"], config["batch_size"])]
    images = [pipeline(size, num_inference_steps=config["sampling_steps"], output_type="np").images for size in sizes]
    np.savez(folder / "samples.npz", (np.concatenate(images) * 255).round().astype(np.uint8))


if __name__ == "__main__":
    {"train": train, "sample": sample}[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3]))

"""How a stage runs, not what it computes: device, threads, precision, seeds, progress, and the end of the process."""

import hashlib

import torch


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed that is a function of its parts alone, such as (seed, "train", images seen)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def seeded(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """A generator on the device, seeded by its parts."""
    return torch.Generator(device).manual_seed(seed_of(*parts))

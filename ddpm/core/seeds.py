"""Derives seeds and generators from names and numbers, so that each use of random numbers has its own stream."""

import hashlib

import torch


def seed_of(*parts: int | str) -> int:
    """Returns a 63-bit seed that depends on the parts only, such as (seed, "train", images seen)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def seeded(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """Returns a generator on the device, seeded with `seed_of(*parts)`."""
    return torch.Generator(device).manual_seed(seed_of(*parts))

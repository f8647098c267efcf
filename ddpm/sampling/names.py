"""Limits of sampling that help texts name. Nothing here imports PyTorch, so that `--help` is quick."""

MAX_SEED = 2**31 - 1
MAX_GUIDANCE = 50.0

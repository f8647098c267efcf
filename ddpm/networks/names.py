"""Names and limits of checkpoints, for options and help texts. Nothing here imports PyTorch, so that `--help` is quick."""

CONFIG = "config.json"
CHECKPOINTS = {"final": "final.safetensors", "best": "best.safetensors", "latest": "latest.safetensors"}
SNAPSHOTS = "snapshots"
# The sigma_rel that can be reconstructed. At 1/sqrt(12) = 0.2887 the EMA is the plain mean over the whole training.
MIN_SIGMA_REL, MAX_SIGMA_REL = 0.005, 0.28

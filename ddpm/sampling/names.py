"""Names and limits of sampling for help texts. Nothing here imports PyTorch, so that `--help` is quick.

Each registry asserts that its keys are these names.
"""

MAX_SEED = 2**31 - 1
MAX_GUIDANCE = 50.0
MAX_CHURN_SETTING = 1e5  # at T = 100,000 steps, the largest effect is reached at 41,422
SAMPLER_NAMES = ("ddpm", "ddim", "euler", "heun", "ab2", "dpmpp_2m", "dpmpp_2m_sde")
SPACING_NAMES = ("leading", "trailing", "linspace", "quadratic", "log_snr", "karras")
THRESHOLD_NAMES = ("none", "clip", "dynamic")
VARIANCE_NAMES = ("small", "large", "learned")

"""Bounds of settings that params.yaml, the command line and the web page share.

Values beyond have no meaning, and numbers of more than 64 bits fail in many places.
"""

MAX_TIMESTEPS = 100_000  # T, and sampling steps
MAX_SAMPLES = 10_000_000  # also of a batch
MAX_SEED = 2**31 - 1  # of the command line and the page
MAX_GUIDANCE = 50.0
MAX_CHURN_SETTING = 1e5  # at T = 100,000 steps, the largest effect is reached at 41,422
MAX_NOISE_RATIO = 1e5  # sigma / alpha, up to which float64 resolves the levels
MAX_RESAMPLES = 1000
MAX_SIDE = 4096  # pixels of an image
MAX_TILE, MAX_COLUMNS, MAX_FRAMES = 1024, 1000, 1000  # of pictures and films
MAX_THREADS = 1024

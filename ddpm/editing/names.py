"""Names of edits and masks for help texts. Nothing here imports PyTorch; each registry asserts that its keys are these names."""

EDIT_NAMES = ("sdedit", "latent")
MASK_NAMES = ("left", "right", "top", "bottom", "middle", "border", "all")

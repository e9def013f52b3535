"""Files: atomic writes, checked tensors, checkpoints, private stores, the run folder."""

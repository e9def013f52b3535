"""osmotic trains one diffusion model on images that never leave their owners."""

__version__ = "0.1.0"

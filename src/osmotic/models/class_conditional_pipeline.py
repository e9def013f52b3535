"""A diffusers pipeline for models, of pixels or of latents, that may be told which class to draw.

This file travels with the saved model, so it needs torch and diffusers only. To use it:

    from diffusers import DiffusionPipeline
    pipe = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
    images = pipe(class_labels=[0, 1, 2]).images

Source: classifier-free guidance is arXiv:2207.12598, eq. 6; their weight w is guidance_scale - 1.
"""

import inspect
import json
import shutil
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.utils.torch_utils import randn_tensor


class ClassConditionalPipeline(DiffusionPipeline):
    """Images from noise [N, C, H, W], for models with or without classes.

    Args:
        unet: the denoiser, called and configured like `UNet2DModel`. If it has a class embedding, that has one row per
            class and a last one for "no class".
        scheduler: any diffusers scheduler that suits the training; an EDM scheduler for an EDM-preconditioned model.
        class_names: names of the classes by label, [] if they have none.
        default_steps: sampler steps where a call names none.
        default_guidance: guidance scale where a call names none.
        vae: an `AutoencoderKL` whose latents the denoiser works in; None for pixels.
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = ("vae",)

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: object,
        class_names: list | None = None,
        default_steps: int = 20,
        default_guidance: float = 1.0,
        vae: ModelMixin | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.register_to_config(
            class_names=list(class_names or ()),
            default_steps=default_steps,
            default_guidance=default_guidance,
        )

    @property
    def num_classes(self) -> int:
        """Classes that can be asked for; 0 if the model knows none."""
        return (self.unet.config.num_class_embeds or 1) - 1

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | list | torch.Tensor | None = None,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """One image per label, or `batch_size` images of no particular class.

        Args:
            class_labels: labels in 0..num_classes-1 or class names, one or many, a tensor [N] too; None for no class.
            batch_size: how many images if no labels are given.
            num_inference_steps: sampler steps.
            guidance_scale: 1 follows the class as it was learnt, more exaggerates it.
            generator: source of the noise.
            output_type: "pil" images, "np" float32 [N, H, W, C] in [0, 1], or "pt" float [N, C, H, W] in [0, 1].
            return_dict: whether to return an object with `.images`, else a tuple.
        Raises: ValueError for a label that the model does not know.
        """
        device, config = self._execution_device, self.unet.config
        steps = self.config.default_steps if num_inference_steps is None else num_inference_steps
        guidance = self.config.default_guidance if guidance_scale is None else guidance_scale
        asked = self._labels(class_labels)
        count = batch_size if asked is None else len(asked)
        # A model with classes must always be told one: "no class" is its last row.
        labels = None
        if self.num_classes:
            labels = torch.tensor([self.num_classes] * count if asked is None else asked, device=device)
        side = config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        shape = (count, config.in_channels, height, width)
        noise = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)

        self.scheduler.set_timesteps(steps, device=device)
        images = noise * self.scheduler.init_noise_sigma
        # Ancestral samplers draw at every step, from the noise's own generator; the others know no such argument.
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        extra = {"generator": generator} if takes_generator else {}
        for t in self.progress_bar(self.scheduler.timesteps):
            # An EDM scheduler preconditions here and in `step`, and its `t` is c_noise = ln(sigma) / 4.
            seen = self.scheduler.scale_model_input(images, t)
            output = self._predict(seen, t, labels, 1.0 if asked is None else guidance)
            images = self.scheduler.step(output, t, images, **extra).prev_sample

        if self.vae is not None:
            images = self.vae.decode(images / self.vae.config.scaling_factor, return_dict=False)[0]
        # From [-1, 1], in which the model was trained.
        images = (images / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _predict(
        self, images: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, guidance: float
    ) -> torch.Tensor:
        """What the model predicts for `images` [N, C, H, W] and labels [N], guided (arXiv:2207.12598, eq. 6)."""
        if labels is None or guidance == 1:
            return self.unet(images, t, class_labels=labels, return_dict=False)[0]
        # One pass of twice the batch is faster than two passes.
        both = torch.cat([labels, torch.full_like(labels, self.num_classes)])  # [2 N]
        told, untold = self.unet(images.repeat(2, 1, 1, 1), t, class_labels=both, return_dict=False)[0].chunk(
            2
        )
        return untold + guidance * (told - untold)

    def _labels(self, class_labels: int | str | list | torch.Tensor | None) -> list | None:
        """Labels as whole numbers; names win over numbers. Raises: ValueError for one that the model does not know."""
        if class_labels is None:
            return None
        if torch.is_tensor(class_labels):
            class_labels = class_labels.tolist()
        given = list(class_labels) if isinstance(class_labels, list | tuple | range) else [class_labels]
        names = list(self.config.class_names)
        labels = [names.index(item) if item in names else item for item in given]
        for item in labels:
            if isinstance(item, str) or not 0 <= item < self.num_classes:
                known = (
                    f"0..{self.num_classes - 1}" if self.num_classes else "none, the model knows no classes"
                )
                raise ValueError(
                    f"class label {item!r}: must be one of {known}" + (f" or {names}" if names else "")
                )
        return [int(item) for item in labels]

    def save_pretrained(self, save_directory: str, **kwargs: object) -> None:
        """Writes the pipeline folder, this file with it, and names this file in its `model_index.json`."""
        super().save_pretrained(save_directory, **kwargs)
        here, index = Path(__file__), Path(save_directory) / "model_index.json"
        target = index.with_name(here.name)
        if here.resolve() != target.resolve():
            shutil.copyfile(here, target)
        # diffusers writes the bare class name, and would look for it among its own pipelines.
        entries = json.loads(index.read_text(encoding="utf-8"))
        entries["_class_name"] = [here.stem, type(self).__name__]
        index.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")

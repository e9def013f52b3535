"""Networks of one form, one per client, computed as one: the clients' images side by side in the batch.

Every layer that has weights is replaced by one that holds those of all clients, [N, ...], and gives each client's images
its own; everything else in a network's forward pass works image by image, so that the network's own code serves. Images
are [N * B, C, H, W]: B of the first client, B of the second, and so on.

Products are batched ones, norms take their statistics image by image anyway. A convolution is a grouped one on the CPU,
clients folded into channels, and windows times a batched product elsewhere (`benchmarks/batched.py` measures both).
Results are those of the networks one by one within float rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from osmotic.models.dropout import SeededDropout

# Kinds of device on which a convolution of many clients is a grouped one; elsewhere it is windows times a product.
GROUPED = {"cpu"}


@dataclass
class Crowd:
    """Whose images are in the batch now; a stacked network asks in every forward pass.

    Args:
        clients: how many, n.
        weights: theirs, parameter name -> [n, ...].
        images: how many are each client's own, [n]; others fill its share of the batch up.
        generators: of each client, for its dropout, [n].
    """

    clients: int = 0
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    images: Sequence[int] = ()
    generators: Sequence[torch.Generator] = ()


class NotStackable(ValueError):
    """A network with a layer that cannot be computed for many clients at once; says which."""


def stack(model: nn.Module, crowd: Crowd) -> nn.Module:
    """`model`, changed in place into the stacked network; its own weights are let go.

    Raises: NotStackable, with the model as it was, as `check`.
    """
    check(model)
    dtype = next(model.parameters()).dtype
    made: dict[nn.Module, nn.Module] = {}  # a layer of two names stays one
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) in LAYERS:
            made.setdefault(module, LAYERS[type(module)](name, module, crowd))
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, made[module])
    # diffusers' networks ask their first parameter for their dtype.
    model.register_parameter("of_no_layer", nn.Parameter(torch.empty(0, dtype=dtype)))
    return model


def check(model: nn.Module) -> None:
    """Raises NotStackable, naming it, for the first layer that cannot be stacked."""
    for name, module in model.named_modules():
        # What is neither product, norm nor convolution; buffers may be running means, which all clients would share.
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if tensors and type(module) not in LAYERS:
            what = f"layer {name} ({type(module).__name__})" if name else type(module).__name__
            raise NotStackable(f"{what} cannot be computed for many clients at once")
        if getattr(module, "padding_mode", "zeros") != "zeros":
            raise NotStackable(f"layer {name} pads with {module.padding_mode}, not with zeros")


class _Layer(nn.Module):
    """A layer of all clients, in the place of `layer`, called `name`."""

    def __init__(self, name: str, layer: Any, crowd: Crowd) -> None:
        super().__init__()
        self.name, self.crowd = name, crowd
        self.layer = (
            layer.to("meta"),
        )  # its sizes alone, and hidden from torch: it is no part of the network any more

    @property
    def weight(self) -> Tensor:
        """[n, ...]."""
        return self.crowd.weights[f"{self.name}.weight"]

    @property
    def bias(self) -> Tensor | None:
        """[n, ...], or None without one."""
        return self.crowd.weights.get(f"{self.name}.bias")


class Linear(_Layer):
    """[n * B, ..., I] -> [n * B, ..., O]."""

    def forward(self, x: Tensor) -> Tensor:
        """One product per client, all in one call."""
        return _product(x.reshape(self.crowd.clients, -1, x.shape[-1]), self).view(*x.shape[:-1], -1)


class Conv(_Layer):
    """[n * B, I, H, W] -> [n * B, O, H', W']."""

    def forward(self, x: Tensor) -> Tensor:
        """A product for 1 x 1, else a grouped convolution, or windows and a product where that is faster."""
        conv, n = self.layer[0], self.crowd.clients
        plain = conv.groups == 1 and conv.dilation == (1, 1) and not isinstance(conv.padding, str)
        last = x.permute(0, 2, 3, 1)  # [n * B, H, W, I]
        if plain and conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0):
            y = _product(last.reshape(n, -1, last.shape[3]), self, width=last.shape[3])
            return y.view(*last.shape[:3], -1).permute(0, 3, 1, 2)
        if x.device.type in GROUPED or not plain:
            return self._grouped(x)
        weight, bias = self.weight, self.bias
        y = Windows.apply(last.reshape(n, -1, *last.shape[1:]), weight, conv.stride, conv.padding)
        y = y if bias is None else y + bias[:, None, None, None]
        return y.flatten(0, 1).permute(0, 3, 1, 2)

    def _grouped(self, x: Tensor) -> Tensor:
        conv, n = self.layer[0], self.crowd.clients
        weight, bias = self.weight, self.bias
        y = functional.conv2d(
            _clients_to_channels(x, n),
            _flat(weight),
            None if bias is None else bias.reshape(-1),
            conv.stride,
            conv.padding,
            conv.dilation,
            n * conv.groups,
        )
        return _channels_to_clients(y, n)


class ConvTranspose(_Layer):
    """[n * B, I, H, W] -> [n * B, O, H', W']."""

    def forward(self, x: Tensor) -> Tensor:
        """A grouped one, clients folded into channels."""
        conv, n = self.layer[0], self.crowd.clients
        weight, bias = self.weight, self.bias
        y = functional.conv_transpose2d(
            _clients_to_channels(x, n),
            _flat(weight),
            None if bias is None else bias.reshape(-1),
            conv.stride,
            conv.padding,
            conv.output_padding,
            n * conv.groups,
            conv.dilation,
        )
        return _channels_to_clients(y, n)


class GroupNorm(_Layer):
    """[n * B, C, ...] -> [n * B, C, ...]."""

    def forward(self, x: Tensor) -> Tensor:
        """Statistics image by image, scale and shift client by client."""
        norm, n = self.layer[0], self.crowd.clients
        normed = functional.group_norm(x, norm.num_groups, eps=norm.eps).movedim(1, -1)
        scaled = normed.reshape(n, -1, x.shape[1])
        if self.bias is not None:
            scaled = torch.addcmul(self.bias[:, None], scaled, self.weight[:, None])
        return scaled.view(normed.shape).movedim(-1, 1)


class Embedding(_Layer):
    """int64 [n * B] -> [n * B, W]."""

    def forward(self, index: Tensor) -> Tensor:
        """Rows of each client's own table."""
        weight, n = self.weight, self.crowd.clients
        # The tables one below the other; a client's rows begin where the one's before it end.
        shift = torch.arange(n, device=index.device).repeat_interleave(len(index) // n) * weight.shape[1]
        return functional.embedding(index + shift, weight.flatten(0, 1))


class Dropout(_Layer):
    """[n * B, ...] -> [n * B, ...]: masks of each client from its own generator."""

    def forward(self, x: Tensor) -> Tensor:
        """As `SeededDropout`, for each client's own images; those that fill its share up are let through."""
        layer, crowd = self.layer[0], self.crowd
        if not self.training or layer.p == 0:
            return x
        kept = torch.ones(crowd.clients, len(x) // crowd.clients, *x.shape[1:], dtype=torch.bool)
        for mask, images, generator in zip(kept, crowd.images, crowd.generators, strict=True):
            mask[:images] = torch.rand((images, *x.shape[1:]), generator=generator) >= layer.p
        return x * kept.flatten(0, 1).to(x.device) / (1 - layer.p)


# Exactly these classes: what inherits from one may compute something else.
LAYERS: dict[type[nn.Module], type[_Layer]] = {
    nn.Linear: Linear,
    nn.Conv2d: Conv,
    nn.ConvTranspose2d: ConvTranspose,
    nn.GroupNorm: GroupNorm,
    nn.Embedding: Embedding,
    SeededDropout: Dropout,
}


class Windows(torch.autograd.Function):
    """A convolution as windows times a batched product: [n, B, H, W, I], weights [n, O, I, K, K] -> [n, B, H', W', O]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Any:
        """Without bias. Windows are made again on the way back: kept, they would be K * K times the activations."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        (height, width), (up, left) = weight.shape[3:], padding
        columns, shape = _windows(x, (height, width), stride, (left, left, up, up))
        return torch.bmm(columns, _matrix(weight).transpose(1, 2)).view(*shape, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradient of the input is a convolution again, of the outputs' gradient with the kernels turned round."""
        x, weight = ctx.saved_tensors
        (height, width), (up, left), (down_step, right_step) = weight.shape[3:], ctx.padding, ctx.stride
        (gradient,) = gradients
        n, batch, rows, columns, leaving = gradient.shape
        of_x = of_weight = None
        if ctx.needs_input_grad[1]:
            seen, _ = _windows(x, (height, width), ctx.stride, (left, left, up, up))
            product = torch.bmm(gradient.reshape(n, -1, leaving).transpose(1, 2), seen)  # [n, O, K * K * I]
            of_weight = product.view(n, leaving, height, width, -1).permute(0, 1, 4, 2, 3)
        if ctx.needs_input_grad[0]:
            spread = gradient
            if ctx.stride != (1, 1):  # zeros where windows were left out
                tall, wide = (rows - 1) * down_step + 1, (columns - 1) * right_step + 1
                spread = gradient.new_zeros(n, batch, tall, wide, leaving)
                spread[:, :, ::down_step, ::right_step] = gradient
            before = (width - 1 - left, height - 1 - up)
            after = (x.shape[3] - spread.shape[3] + left, x.shape[2] - spread.shape[2] + up)
            seen, _ = _windows(spread, (height, width), (1, 1), (before[0], after[0], before[1], after[1]))
            turned = weight.flip(3, 4).permute(0, 3, 4, 1, 2).reshape(n, height * width * leaving, -1)
            of_x = torch.bmm(seen, turned).view(x.shape)
        return of_x, of_weight, None, None


def _windows(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int, int, int]
) -> tuple[Tensor, tuple[int, ...]]:
    """Every window of [n, B, H, W, I] as a row, [n, B * H' * W', K * K * I], and (n, B, H', W').

    Args:
        padding: left, right, up, down; may be negative.
    """
    x = functional.pad(x, (0, 0, *padding)).contiguous()
    n, batch, tall, wide, width = x.shape
    rows, columns = (tall - kernel[0]) // stride[0] + 1, (wide - kernel[1]) // stride[1] + 1
    of_n, of_batch, of_row, of_column, _ = x.stride()
    view = x.as_strided(
        (n, batch, rows, columns, *kernel, width),
        (of_n, of_batch, of_row * stride[0], of_column * stride[1], of_row, of_column, 1),
    )
    return view.reshape(n, batch * rows * columns, -1), (n, batch, rows, columns)


def _product(x: Tensor, layer: _Layer, width: int | None = None) -> Tensor:
    """[n, M, I] times each client's weights [O, I] or [O, I, 1, 1], plus its bias: [n, M, O]."""
    weight, bias = layer.weight, layer.bias
    weight = weight if width is None else weight.reshape(len(weight), -1, width)
    if bias is None:
        return torch.bmm(x, weight.transpose(1, 2))
    return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))


def _matrix(weight: Tensor) -> Tensor:
    """[n, O, I, K, K] -> [n, O, K * K * I]: a view of weights that lie channels-last."""
    return weight.permute(0, 1, 3, 4, 2).flatten(2)


def _flat(weight: Tensor) -> Tensor:
    """[n, O, I, K, K] -> [n * O, I, K, K], channels-last."""
    return weight.permute(0, 1, 3, 4, 2).flatten(0, 1).permute(0, 3, 1, 2)


def _clients_to_channels(x: Tensor, n: int) -> Tensor:
    """[n * B, C, H, W] -> [B, n * C, H, W], channels-last."""
    last = x.permute(0, 2, 3, 1).unflatten(0, (n, -1))  # [n, B, H, W, C]
    return last.permute(1, 2, 3, 0, 4).flatten(3).permute(0, 3, 1, 2)


def _channels_to_clients(x: Tensor, n: int) -> Tensor:
    """[B, n * C, H, W] -> [n * B, C, H, W], channels-last."""
    last = x.permute(0, 2, 3, 1).unflatten(3, (n, -1))  # [B, H, W, n, C]
    return last.permute(3, 0, 1, 2, 4).flatten(0, 1).permute(0, 3, 1, 2)

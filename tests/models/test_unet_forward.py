"""Our forward pass of `UNet2DModel` computes what diffusers' own does, in training too."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from osmotic import models
from osmotic.models import NetworkSpec
from osmotic.models.construct import with_weights

CASES = [
    (NetworkSpec("unet-8", 8, 1, 10), 3),
    (NetworkSpec("unet-8", 8, 3), 65),  # from 64 images on diffusers changes the layout before it upsamples
    (NetworkSpec("unet-8", 14, 1, 2), 2),  # 49 tokens attend: the fused kernel
    (NetworkSpec("unet-28", 16, 1, 10), 2),
    (NetworkSpec("unet-32", 8, 3), 2),
]


def inputs(spec: NetworkSpec, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, spec.channels, spec.image_size, spec.image_size, generator=generator).double()
    labels = (
        torch.randint(0, spec.num_classes + 1, (batch,), generator=generator) if spec.num_classes else None
    )
    return x, torch.randint(0, 1000, (batch,), generator=generator), labels


@pytest.mark.parametrize("spec,batch", CASES, ids=str)
def test_answers_and_gradients_are_those_of_diffusers(spec: NetworkSpec, batch: int) -> None:
    model = with_weights(spec, models.initial(spec, 0)).double().train()
    model = nn.Module.to(model, memory_format=torch.channels_last)
    x, t, labels = inputs(spec, batch)
    found = []
    for forward in (model.forward, lambda *a, **k: type(model).forward(model, *a, **k)):
        model.zero_grad()
        (answer,) = forward(x, t, class_labels=labels, return_dict=False)
        answer.square().mean().backward()
        found.append((answer, {n: p.grad for n, p in model.named_parameters()}))
    (ours, gradients), (theirs, expected) = found
    # float64, so that another order of sums shows in the twelfth digit and a mistake in the first.
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-11, msg=name)


def test_a_time_may_be_one_for_all_and_labels_are_asked_for() -> None:
    spec, batch = CASES[0]
    model = with_weights(spec, models.initial(spec, 0)).double()
    x, _, labels = inputs(spec, batch)
    with torch.no_grad():
        each = model(x, torch.full((batch,), 7), class_labels=labels).sample
        for time in (7, torch.tensor(7), torch.tensor([7])):
            assert torch.equal(model(x, time, class_labels=labels).sample, each)
    with pytest.raises(ValueError, match="class_labels must be given"):
        model(x, 7)
    plain = with_weights(NetworkSpec("unet-8", 8, 1), models.initial(NetworkSpec("unet-8", 8, 1), 0)).double()
    with pytest.raises(ValueError, match="class_labels must not be given"):
        plain(x, 7, class_labels=labels)


def test_a_copy_of_a_network_computes_with_its_own_weights() -> None:
    spec, batch = CASES[0]
    model = with_weights(spec, models.initial(spec, 0)).double()
    again = copy.deepcopy(model)
    with torch.no_grad():
        model.conv_out.weight.zero_()
        model.conv_out.bias.zero_()
    x, t, labels = inputs(spec, batch)
    assert not model(x, t, class_labels=labels).sample.any()
    assert again(x, t, class_labels=labels).sample.any()

"""A process of the command imports neither the compiler nor what else nothing uses; whoever asks for it gets it."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import sys
from osmotic import lean
lean.start()
"""
TORCH = """
import torch
layer = torch.nn.Linear(2, 2)
"""


def said(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", BEGIN + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_building_a_network_training_and_drawing_import_no_compiler() -> None:
    code = """
import torch
from osmotic.runs import resolve
from osmotic.federation.blueprint import Blueprint
from osmotic.training.optimizers import OPTIMIZERS
blueprint = Blueprint.of(resolve.load(sets=["score.steps=2"]), 8, 1, 0)
model = blueprint.model(torch.device("cpu"))
for make in OPTIMIZERS.values():
    optimizer = make(list(model.parameters()), 1e-3)
    model(torch.zeros(2, 1, 8, 8), torch.zeros(2), return_dict=False)[0].sum().backward()
    optimizer.step()
    optimizer.zero_grad()
blueprint.draw(model, None, 2, 0)
print(sorted({".".join(m.split(".")[:2]) for m in sys.modules} & {"torch._dynamo", "scipy.stats", "sympy", "transformers", "matplotlib"}))
print([type(sys.modules[m]).__name__ for m in ("torch._dynamo", "scipy.stats")])
"""
    # These two are what stands in their places.
    assert said(code) == "['scipy.stats', 'torch._dynamo']\n['Compiler', 'Later']"


COMPILES = {
    "compile": "print(torch.equal(torch.compile(layer, backend='eager')(torch.ones(1, 2)), layer(torch.ones(1, 2))))",
    "a submodule": "import torch._dynamo.config; print(torch._dynamo.config.verbose in (True, False))",
    "a name": "from torch._dynamo import config; print(config.verbose in (True, False))",
}


@pytest.mark.parametrize("how", COMPILES)
def test_who_asks_for_the_compiler_gets_it(how: str) -> None:
    """Also after optimisers and diffusers have met what stands in its place."""
    met = TORCH + "torch.optim.SGD(layer.parameters(), lr=1.0).step(); import diffusers.utils.torch_utils\n"
    after = "\nprint(type(sys.modules['torch._dynamo']).__name__)"
    assert said(met + COMPILES[how] + after).split() == ["True", "module"]


STATISTICS = {
    "a name": "from scipy.stats import norm; print(norm.cdf(0))",
    "an attribute": "import scipy.stats; print(scipy.stats.norm.cdf(0))",
    "a submodule": "import scipy.stats.distributions as d; print(d.norm.cdf(0))",
    "a library": "import sklearn.neighbors; from scipy import stats; print(stats.norm.cdf(0))",
}


@pytest.mark.parametrize("how", STATISTICS)
def test_who_asks_for_statistics_gets_them(how: str) -> None:
    after = "\nprint(type(sys.modules['scipy.stats']).__name__)"
    assert said(STATISTICS[how] + after).split() == ["0.5", "module"]


def test_a_compiler_that_is_there_stays() -> None:
    assert (
        said("import torch._dynamo as real; lean.start(); print(sys.modules['torch._dynamo'] is real)")
        == "True"
    )


def test_importing_osmotic_in_a_process_of_somebody_else_leaves_its_compiler_alone() -> None:
    code = "import osmotic, sys; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

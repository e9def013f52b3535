"""A quicker start for a process that is all ours: modules that libraries import, and no first step needs, wait until they are used.

diffusers and torch.optim import torch._dynamo, 800 modules, to say what must not be compiled and to break graphs that
nobody draws; in a process that compiles nothing these are no-operations. The schedulers of diffusers import scipy.stats for
noise levels that no sampler of ours has.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any


class Later(ModuleType):
    """Stands in a module's place, and gives way to it as soon as anything of it is used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        # `from MODULE import NAME` asks for a path first, to look among submodules; any submodule is the real one's.
        if name.startswith("__") and not (name == "__path__" and _asked_for_a_submodule()):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _asked_for_a_submodule() -> bool:
    """Whether the import under way is `import MODULE.NAME`, and no `from MODULE import NAME`."""
    return sys._getframe(2).f_code.co_name == "_find_and_load_unlocked"


class Compiler(Later):
    """Does the little that is asked of torch._dynamo where nothing is compiled."""

    def allow_in_graph(self, fn: Any) -> Any:
        """`fn` as it is."""
        return fn

    def disable(self, fn: Any = None, *_: Any, **__: Any) -> Any:
        """`fn` as it is; without one, what gives it back."""
        return fn if fn is not None else self.allow_in_graph

    def graph_break(self, *_: Any, **__: Any) -> None:
        """Nothing: there is no graph."""

    class OptimizedModule:
        """What compiled modules are instances of: none is."""

    eval_frame = SimpleNamespace(OptimizedModule=OptimizedModule)


def start() -> None:
    """To be called before anything heavy is imported, and not in a process of somebody else, who may compile."""
    for kind, name in ((Compiler, "torch._dynamo"), (Later, "scipy.stats")):
        sys.modules.setdefault(name, kind(name))

"""Starting and going on with a run, as the command and `osmotic.run` both do: observers, folders, torch left as it was found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from osmotic.config.schema import Config
    from osmotic.data.dataset import Dataset
    from osmotic.runs.callbacks import Callback, RunObserver
    from osmotic.runs.display import Display
    from osmotic.storage.folder import RunDir


def fresh_folder(config: Config) -> Path:
    """runs/PRESET-DATA-SEED, with a number behind it if that is taken."""
    source = (
        config.data.source.rstrip("/").replace("\\", "/").split("/")[-1].split(":")[-1].removesuffix(".npz")
    )
    base = Path("runs") / f"{config.preset or config.method.name}-{source}-{config.seed}"
    folder, number = base, 2
    while folder.exists():
        folder, number = base.with_name(f"{base.name}-{number}"), number + 1
    return folder


def start(
    config: Config,
    folder: Path,
    dataset: Dataset | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = True,
) -> RunDir:
    """Trains a resolved configuration into a new folder; scored and summed up, but without a report.

    What can be known without the images is refused before the seconds that imports take.
    """
    with whole_imports():
        from osmotic.runs import apart
        from osmotic.runs import plan as planning
        from osmotic.storage.folder import RunDir

    RunDir.refuse_used(folder)
    more = () if dataset is None else (dataset,)
    # Images at sites are nobody's to look at.
    num_train = 0 if config.engine.name == "sites" else planning.network(config, *more)[1].num_train
    # Before the seconds that imports take here: they take as long there.
    with (
        apart.started(config, num_train) as nursery,
        _observed(callbacks, quiet) as (observer, display),
    ):
        with whole_imports():
            from osmotic.runs import launch

        return launch.start(config, folder, observer, dataset, display.read, nursery)


def go_on(
    folder: Path,
    dataset: Dataset | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = True,
    sets: Sequence[str] = (),
    keys: Mapping[str, Any] | None = None,
) -> RunDir:
    """Resumes the run in a folder, as `start` ends it; `sets` and `keys` change what `launch.resume` lets them."""
    with _observed(callbacks, quiet) as (observer, display):
        with whole_imports():
            from osmotic.runs import launch

        return launch.resume(folder, observer, dataset, sets, keys, display.read)


@contextmanager
def whole_imports() -> Iterator[None]:
    """Inside the block Ctrl-C and SIGTERM wait for its end: torch takes one that comes while it imports numpy for a missing numpy.

    Raises: KeyboardInterrupt at the end, if one came.
    """
    from osmotic.federation.interrupts import Interrupts

    interrupts = Interrupts()
    with interrupts.installed(), interrupts.held():
        yield


@contextmanager
def _observed(
    callbacks: Sequence[Callback], quiet: bool
) -> Iterator[tuple[Callable[[RunDir, Config], RunObserver], Display]]:
    """What makes the observer of a run (its progress and trackers, then the callbacks), and what is printed to before."""
    from osmotic.runs.callbacks import Observers
    from osmotic.runs.display import Display
    from osmotic.runs.progress import Progress

    opened: list[Progress] = []
    with Display(quiet) as display:

        def observe(run_dir: RunDir, config: Config) -> RunObserver:
            display.at("building the network")
            opened.append(Progress(run_dir, config, quiet, display))
            return Observers([*opened, *callbacks])

        display.at("starting")  # before the seconds that imports take
        try:
            yield observe, display
        finally:
            for progress in opened:
                progress.close()


@contextmanager
def torch_as_found() -> Iterator[None]:
    """A run sets torch's threads and switches for its bits; the caller gets them back as they were."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark


def native(value: Any) -> Any:
    """Numbers of numpy and paths as Python's own numbers and texts, in whatever they stand; sweeps are full of them."""
    if isinstance(value, Mapping):
        return {str(k): native(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [native(v) for v in value]
    if isinstance(value, os.PathLike):
        return str(value)
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value

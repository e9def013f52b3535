"""The commands: parse, call, print. No logic lives here, and nothing heavy is imported before it is needed.

What a command does is `osmotic.api`, the package's face in Python, and `runs/commands.py`.
"""

from __future__ import annotations

import errno
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from osmotic import __version__, api, hints
from osmotic.errors import ConfigError, RunStopped, plain
from osmotic.runs import session
from osmotic.sites import commands as sites
from osmotic.storage import strict_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from osmotic.config.schema import Config
    from osmotic.storage.folder import RunDir

app = typer.Typer(
    name="osmotic",
    invoke_without_command=True,
    suggest_commands=False,  # `hints.py` does, for options and other tools' words too
    context_settings={"help_option_names": ["--help", "-h"]},
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Train one image generator by federated learning: clients train, a server averages their weights "
    "(diffusion models).\n\n"
    "`osmotic run` simulates all clients on this machine; `osmotic hub` and `osmotic site` train across machines, where images "
    "stay at their sites. "
    "`osmotic run` alone trains on the built-in digits and leaves a report in ./runs.",
)

app.add_typer(sites.site, name="site")
app.add_typer(sites.hub, name="hub")

ConfigArg = Annotated[
    Path | None, typer.Argument(metavar="CONFIG", help="Configuration in TOML; every key has a default.")
]
PresetOpt = Annotated[
    str | None, typer.Option("--preset", help="Named set of choices, see `osmotic methods`.")
]
DataOpt = Annotated[
    str | None, typer.Option("--data", help="Images: digits, mnist, npz:PATH, folder:PATH, hf:NAME ...")
]
SetOpt = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Any key, e.g. training.rounds=5; repeatable.")
]
PluginOpt = Annotated[
    list[Path],
    typer.Option(
        "--plugin",
        metavar="FILE",
        help="Python file that registers pieces, methods, metrics ...; repeatable.",
    ),
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON document for scripts, nothing else.")]
RunArg = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")]


def _load(
    config: Path | None, preset: str | None, data: str | None, sets: list[str], plugin: list[Path]
) -> Config:
    _plug(plugin)
    with session.whole_imports():
        from osmotic.runs import resolve

    if config is not None and not config.exists() and (option := hints.option_of(str(config))):
        raise ConfigError("CONFIG", str(config), f"is no file. Did you mean {option} {config}?")
    return resolve.load(config, preset=preset, data=data, sets=sets)


def _plug(files: list[Path]) -> None:
    from osmotic import plugins

    for file in files:
        plugins.load_file(file)


def _say(document: dict[str, Any], json: bool, text: str) -> None:
    print(strict_json.dumps(document) if json else text)


@app.command()
def run(
    config: ConfigArg = None,
    preset: PresetOpt = None,
    data: DataOpt = None,
    sets: SetOpt = [],  # noqa: B006 - typer reads it, nobody writes it
    out: Annotated[
        Path | None, typer.Option("--out", help="New folder for the run; default runs/PRESET-DATA-SEED.")
    ] = None,
    plugin: PluginOpt = [],  # noqa: B006
    json: JsonOpt = False,
) -> None:
    """Train a model, score it and write the report. CONFIG is a TOML file; every key has a default."""
    cfg = _load(config, preset, data, sets, plugin)
    folder = out or session.fresh_folder(cfg)
    _train(lambda: session.start(cfg, folder, quiet=json), folder, json)


@app.command()
def resume(
    directory: RunArg,
    sets: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="KEY=VALUE", help="training.rounds=N makes the run longer; else only free keys."
        ),
    ] = [],  # noqa: B006
    plugin: PluginOpt = [],  # noqa: B006
    json: JsonOpt = False,
) -> None:
    """Go on with the run in folder DIR after a crash, a power cut or Ctrl-C, or for more rounds."""
    from osmotic.storage.folder import RunDir

    _plug(plugin)
    RunDir.existing(directory)
    _train(lambda: session.go_on(directory, quiet=json, sets=sets), directory, json)


def _train(train: Callable[[], RunDir], folder: Path, json: bool) -> None:
    from osmotic.runs import commands

    def stopped(told: str, code: int) -> typer.Exit:
        started = (folder / "config.toml").is_file()
        hint = f"go on with: osmotic resume {folder}" if started else "nothing was begun"
        print(f"osmotic: {plain(f'{told}; {hint}', None)}", file=sys.stderr)
        return typer.Exit(code)

    try:
        published = commands.publish(train(), json)
    except KeyboardInterrupt:
        print(file=sys.stderr)  # below the bar
        raise stopped("stopped", 130) from None
    except RunStopped as error:
        raise stopped(f"error: {error}", 1) from None
    except OSError as error:  # disk full: what was written before is whole
        if error.errno == errno.ENAMETOOLONG:
            raise
        raise stopped(f"error: {_file_error(error)}", 1) from None
    if not published:
        raise typer.Exit(1)


def _file_error(error: OSError) -> str:
    """An error of the file system in words: which file, and why."""
    return f"{plain(error.filename or 'file')}: {error.strerror or error}"


@app.command()
def sample(
    directory: RunArg,
    count: Annotated[int, typer.Option("--count", min=1, help="How many images.")] = 100,
    label: Annotated[
        str | None, typer.Option("--label", help="Class name or number; default: all classes in turn.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Sampler steps; default as scored.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", min=0, help="Classifier-free guidance; 1 is off.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the noise.")] = 0,
    client: Annotated[
        str | None,
        typer.Option(
            "--client",
            help="Whose model, where each client has its own; mixture draws from all, by their number of images.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for the images; default DIR/samples/new-SEED, with --client new-SEED-CLIENT.",
        ),
    ] = None,
    plugin: PluginOpt = [],  # noqa: B006
    json: JsonOpt = False,
) -> None:
    """Draw images from the model of the run in folder DIR: one PNG grid and one PNG per image."""
    from osmotic.runs import commands

    _plug(plugin)
    made = commands.sample(directory, count, label, steps, guidance, seed, client, out, quiet=json)
    _say(made, json, f"{made['count']} images in {made['folder']}\ngrid: {made['grid']}")


@app.command()
def evaluate(
    directory: RunArg,
    sets: SetOpt = [],  # noqa: B006
    ema: Annotated[
        float | None,
        typer.Option("--ema", help="Half-life in images of the average to score; 0: raw weights."),
    ] = None,
    plugin: PluginOpt = [],  # noqa: B006
    json: JsonOpt = False,
) -> None:
    """Score the run in folder DIR again, e.g. with --set score.sampler=ddim --set score.samples=5000."""
    from osmotic.runs import commands

    _plug(plugin)
    quality = commands.evaluate(directory, sets, ema, quiet=json)
    _say(quality, json, commands.quality_text(quality))


@app.command()
def personalise(
    directory: RunArg,
    data: Annotated[str, typer.Option("--data", help="Images to train on: npz:PATH, folder:PATH, hf:NAME.")],
    out: Annotated[Path, typer.Option("--out", help="New folder of the model, which diffusers loads.")],
    client: Annotated[
        str | None, typer.Option("--client", help="Whose model to start from, where each has its own.")
    ] = None,
    sets: SetOpt = [],  # noqa: B006
    plugin: PluginOpt = [],  # noqa: B006
    json: JsonOpt = False,
) -> None:
    """Fine-tune the model of the run in folder DIR on images of one's own, e.g. with --set after.personalise.trains=adapter."""
    from osmotic.runs import commands, joining

    _plug(plugin)
    try:
        found = joining.personalise(commands.finished(directory), data, out, client, sets)
    except RunStopped as error:
        print(f"osmotic: error: {plain(error, None)}", file=sys.stderr)
        raise typer.Exit(1) from None
    _say(found, json, joining.text(found))


@app.command()
def compare(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of finished runs.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write an HTML page with plots here.")
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", help="Also write a row per run here, and a row per group beside it."),
    ] = None,
    plugin: PluginOpt = [],  # noqa: B006
    json: JsonOpt = False,
) -> None:
    """Set runs side by side: scores, bytes, images; those that differ in seeds alone as groups."""
    from osmotic.runs import commands

    _plug(plugin)
    commands.compare(directories, out, json, csv)


@app.command()
def report(directory: RunArg, plugin: PluginOpt = [], json: JsonOpt = False) -> None:  # noqa: B006
    """Write report.html and the model card of the run in folder DIR anew."""
    from osmotic.runs import commands

    _plug(plugin)
    path = commands.report(directory)
    _say({"report": str(path)}, json, str(path))


@app.command()
def methods(
    pieces: Annotated[
        bool, typer.Option("--pieces", help="List the pieces of the learning rule instead, with their keys.")
    ] = False,
    plugin: PluginOpt = [],  # noqa: B006
    json: JsonOpt = False,
) -> None:
    """List the presets: what each exchanges, and the paper it comes from."""
    _plug(plugin)
    rows = api.list_pieces() if pieces else api.list_presets()
    if json:
        print(strict_json.dumps(rows))
        return
    name, words = ("piece", "title") if pieces else ("preset", "exchanges")
    width = max(len(row[name]) for row in rows)
    for row in rows:
        section = f"[{row['section']}]".ljust(8) + "  " if pieces else ""
        paper = f"  (arXiv {row['paper']})" if row["paper"] else ""
        print(f"{row[name]:{width}}  {section}{row[words]}{paper}")
        for key, default in row["keys"].items() if pieces else ():
            print(f"{'':{width}}            {key} = {default}")


@app.command()
def plan(
    config: ConfigArg = None,
    preset: PresetOpt = None,
    data: DataOpt = None,
    sets: SetOpt = [],  # noqa: B006
    link: Annotated[
        float, typer.Option("--link", min=0.001, help="Speed of a site's line in Mbit/s.")
    ] = 100.0,
    time: Annotated[
        bool,
        typer.Option(
            "--time", help="Read the images, time a few steps here, and say how long the run takes."
        ),
    ] = False,
    plugin: PluginOpt = [],  # noqa: B006
    json: JsonOpt = False,
) -> None:
    """Say what a run will send and hold, before anything runs. CONFIG is a TOML file."""
    from osmotic.runs import plan as planning

    figures = planning.plan(_load(config, preset, data, sets, plugin), link, time=time)
    _say(figures, json, planning.text(figures))


@app.command()
def look(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Images: digits, mnist, npz:PATH, folder:PATH, hf:NAME ..."),
    ],
    sets: SetOpt = [],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option("--out", help="New PNG file for the grid; default look.png, look-2.png ...")
    ] = None,
    plugin: PluginOpt = [],  # noqa: B006
    json: JsonOpt = False,
) -> None:
    """Draw what the network will see of SOURCE, and say what is in it and what each client would hold."""
    from osmotic.runs import look as looking

    seen = looking.look(_load(None, None, source, sets, plugin), looking.fresh_file() if out is None else out)
    _say(seen, json, looking.text(seen))


@app.command()
def leaves(
    config: ConfigArg = None,
    preset: PresetOpt = None,
    data: DataOpt = None,
    sets: SetOpt = [],  # noqa: B006
    plugin: PluginOpt = [],  # noqa: B006
    json: JsonOpt = False,
) -> None:
    """Say what would leave a site and what the server could learn from it, before anything runs. CONFIG is a TOML file."""
    from osmotic.runs import leaves as leaving

    told = leaving.leaves(_load(config, preset, data, sets, plugin))
    _say(told, json, leaving.text(told))


@app.command()
def split(
    config: ConfigArg = None,
    preset: PresetOpt = None,
    data: DataOpt = None,
    sets: SetOpt = [],  # noqa: B006
    out: Annotated[Path, typer.Option("--out", help="New folder for the files.")] = Path("split"),
    plugin: PluginOpt = [],  # noqa: B006
    json: JsonOpt = False,
) -> None:
    """Write one npz file per client, divided as CONFIG (a TOML file) and the options say."""
    cfg = _load(config, preset, data, sets, plugin)
    from osmotic.data import partition, sources
    from osmotic.data import split as splitting

    dataset = sources.load(cfg.data)
    held = partition.divide(cfg.data, dataset.train)
    paths = splitting.write(dataset, [train for train, _ in held], [own for _, own in held], out)
    _say({"files": [str(p) for p in paths]}, json, "\n".join(map(str, paths)))


@app.command()
def autoencoder(
    config: ConfigArg = None,
    data: DataOpt = None,
    sets: SetOpt = [],  # noqa: B006
    out: Annotated[
        Path, typer.Option("--out", help="New folder of the run; its model/ is the autoencoder.")
    ] = Path("autoencoder"),
    plugin: PluginOpt = [],  # noqa: B006
    json: JsonOpt = False,
) -> None:
    """Train an autoencoder on images that anybody may have, for runs in its latents; osmotic run --preset autoencoder does it federatedly."""
    cfg = _load(config, "autoencoder", data, ["method.name=central", *sets], plugin)
    if cfg.model.network != "autoencoder":
        raise ConfigError(
            "model.network", cfg.model.network, "osmotic autoencoder trains no other network than autoencoder"
        )
    _train(lambda: session.start(cfg, out, quiet=json), out, json)


@app.command()
def encoder(
    config: ConfigArg = None,
    preset: PresetOpt = None,
    data: DataOpt = None,
    sets: SetOpt = [],  # noqa: B006
    out: Annotated[Path, typer.Option("--out", help="The file.")] = Path("encoder.safetensors"),
    plugin: PluginOpt = [],  # noqa: B006
    json: JsonOpt = False,
) -> None:
    """Train a feature network on images that anybody may have, for the scores of runs whose images may not move."""
    cfg = _load(config, preset, data, sets, plugin)
    from osmotic.data import sources
    from osmotic.metrics import encoder_file

    made = encoder_file.write(out, sources.load(cfg.data))
    accuracy = (
        "" if made.test_accuracy is None else f", {made.test_accuracy:.1%} of held-out images told right"
    )
    _say(
        {
            "file": str(out),
            "name": made.name,
            "sha256": made.sha256,
            "encoder_accuracy": made.test_accuracy,
        },
        json,
        f'{out}: {made.name}{accuracy}\nuse     score.encoder = "file:{out.resolve()}"\nsites   encoders = ["{made.sha256}"] in the policy of each',
    )


def _version(wanted: bool) -> None:
    if wanted:
        print(f"osmotic {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Entry point: bad input is one line on stderr and exit code 2."""
    warnings.showwarning = lambda message, category, *_args, **_kwargs: print(
        f"osmotic: {'note' if category.__name__ == 'Converted' else 'warning'}: {plain(message, None)}",
        file=sys.stderr,
    )
    from click.exceptions import Abort, ClickException

    from osmotic import lean

    lean.start()
    try:
        code = app(standalone_mode=False)
    except ConfigError as error:
        told, code = str(error), 2
    except ClickException as error:  # a wrong flag or word; click itself would print several lines
        told, code = hints.told(error), error.exit_code
    except Abort:
        told, code = "stopped", 130
    except OSError as error:  # disk full, no permission: what was written before is whole
        told, code = _file_error(error), 2 if error.errno == errno.ENAMETOOLONG else 1
    else:
        raise SystemExit(code if isinstance(code, int) else 0)
    # What was typed, and names of files, may hold anything.
    print(f"osmotic: error: {plain(told, None)}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()

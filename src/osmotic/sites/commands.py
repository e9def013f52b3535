"""`osmotic site` and `osmotic hub`: parse, call, print."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from osmotic.errors import ConfigError, RunStopped, plain
from osmotic.storage import strict_json

_settings = {"help_option_names": ["--help", "-h"]}
site = typer.Typer(
    help="A site that takes part in a federation with images that stay with it.", context_settings=_settings
)
hub = typer.Typer(help="The hub of a federation: runs train at its sites.", context_settings=_settings)

SiteArg = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the site.")]
HubOpt = Annotated[Path, typer.Option("--hub", metavar="DIR", help="Folder of the hub.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON document for scripts, nothing else.")]


def _needs_flower() -> None:
    from osmotic.engines.quiet import require

    require("osmotic", None, "flwr")


def _failed(error: RunStopped) -> typer.Exit:
    print(f"osmotic: error: {plain(error, None)}", file=sys.stderr)
    return typer.Exit(1)


@site.command("init")
def site_init(
    directory: SiteArg,
    name: Annotated[str, typer.Option("--name", help="The site's name, under which the hub registers it.")],
    data: Annotated[str, typer.Option("--data", help="Its images: npz:PATH, folder:PATH, hf:NAME.")],
    hub: Annotated[str, typer.Option("--hub", metavar="HOST:PORT", help="Where the hub is reached.")],
    ca: Annotated[
        Path | None, typer.Option("--ca", metavar="FILE", help="ca.crt of the hub's folder.")
    ] = None,
    plaintext: Annotated[
        bool,
        typer.Option(
            "--plaintext", help="Speak without encryption or proof of identity: trials on one machine."
        ),
    ] = False,
    port: Annotated[
        int, typer.Option("--port", help="On this machine alone, for the site's own processes.")
    ] = 9094,
) -> None:
    """Make a site's folder: its file with a policy, its keys, room for its private states."""
    _needs_flower()
    if ca is None and not plaintext:
        raise ConfigError(
            "--ca", None, "must name the ca.crt of the hub; --plaintext goes without encryption"
        )
    from osmotic.sites import site as sites

    made = sites.init(directory, name, data, hub, ca, port)
    print(f"site    {made.path / 'site.toml'}: read its policy, which allows as little as it can")
    print(f"send    {made.path / 'site.key.pub'} to the hub; nothing else leaves")
    print(f"next    osmotic site check {directory}")


@site.command("check")
def site_check(directory: SiteArg, json: JsonOpt = False) -> None:
    """Try everything that a site needs: each line is ok, or says what to do."""
    from osmotic.sites import site as sites

    lines = []
    for line in sites.check(directory):
        lines.append(line)
        if not json:
            print(f"{'ok' if line.good else 'no':4}{line.what:13}{plain(line.told, None)}", flush=True)
    if json:
        print(strict_json.dumps({"checks": [vars(line) for line in lines]}))
    if not all(line.good for line in lines):
        raise typer.Exit(1)


@site.command("allows")
def site_allows(
    directory: SiteArg,
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="Configuration in TOML that a hub would run.")
    ] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="Named set of choices.")] = None,
    sets: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Any key; repeatable.")] = [],  # noqa: B006
    json: JsonOpt = False,
) -> None:
    """Say which tasks of a run this site's policy would let it do, before a hub asks."""
    from osmotic import plugins
    from osmotic.runs import resolve
    from osmotic.sites import site as sites

    plugins.load_installed()
    lines = list(sites.allows(directory, resolve.load(config, preset=preset, sets=sets)))
    if json:
        print(strict_json.dumps({"tasks": [vars(line) for line in lines]}))
    for line in () if json else lines:
        print(f"{'ok' if line.good else 'no':4}{line.what:28}{plain(line.told, None)}")
    if not all(line.good for line in lines):
        raise typer.Exit(1)


@site.command("start")
def site_start(directory: SiteArg) -> None:
    """Take part until Ctrl-C; what dies is started again."""
    _needs_flower()
    from osmotic.sites import site as sites
    from osmotic.sites.folder import SiteFolder

    folder = SiteFolder.read(directory)
    print(
        f"osmotic: site {folder.config.name} takes part at {folder.config.hub}; logs in {folder.path / 'logs'}",
        file=sys.stderr,
    )
    sites.services(folder).run()


@hub.command("init")
def hub_init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    host: Annotated[
        list[str], typer.Option("--host", help="Name or address by which sites reach the hub; repeatable.")
    ] = ["localhost"],  # noqa: B006 - typer reads it, nobody writes it
    port: Annotated[int, typer.Option("--port", help="Of Flower's SuperLink on this machine.")] = 9092,
    listen: Annotated[
        str,
        typer.Option(
            "--listen",
            help="Address it is bound to; others than this machine's own need a proxy or a firewall.",
        ),
    ] = "127.0.0.1",
    plaintext: Annotated[
        bool, typer.Option("--plaintext", help="No encryption, no proof of identity: trials on one machine.")
    ] = False,
) -> None:
    """Make a hub's folder: its own authority, a certificate, a database, and the configuration of a proxy."""
    _needs_flower()
    from osmotic.sites import hub as hubs

    made = hubs.init(directory, host, port, listen, plaintext)
    print(f"hub     {made.path / 'hub.toml'}")
    if not plaintext:
        print(f"sites   need {made.path / 'ca.crt'}, and send you their site.key.pub")
    print(f"proxy   {made.path / 'nginx.conf'} shows sites the one path that they need")
    print(f"next    osmotic hub start {directory}")


@hub.command("start")
def hub_start(directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the hub.")]) -> None:
    """Keep the hub up until Ctrl-C; what dies is started again, and runs go on."""
    _needs_flower()
    from osmotic.sites import hub as hubs

    made = hubs.Hub.read(directory)
    made.connect()
    if (line := made.ending()) is not None:
        print(f"osmotic: {line}", file=sys.stderr)
    print(f"osmotic: hub on {made.listen}:{made.port}; logs in {made.path / 'logs'}", file=sys.stderr)
    made.services().run()


@hub.command("renew")
def hub_renew(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the hub.")],
    host: Annotated[
        list[str], typer.Option("--host", help="Names by which sites reach the hub, if they are others now.")
    ] = [],  # noqa: B006
) -> None:
    """Make a new certificate of the server; sites go on trusting it, as its authority is the same."""
    _needs_flower()
    from osmotic.sites import hub as hubs

    print(f"server.crt is valid until {hubs.Hub.read(directory).renew(host)}")
    print("next    start osmotic hub start anew, and the proxy")


@hub.command("add-site")
def hub_add_site(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Under which the site is known.")],
    key: Annotated[Path, typer.Argument(metavar="KEY.pub", help="The site's public key, site.key.pub.")],
    directory: HubOpt = Path("."),
) -> None:
    """Let a site connect: whoever holds this key is NAME."""
    _needs_flower()
    from osmotic.sites import hub as hubs

    try:
        hubs.Hub.read(directory).add_site(name, key)
    except RunStopped as error:
        raise _failed(error) from None
    print(f"site {name} may connect")


@hub.command("remove-site")
def hub_remove_site(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A site of `osmotic hub status`.")],
    directory: HubOpt = Path("."),
) -> None:
    """Take a site's key back: it connects no more."""
    _needs_flower()
    from osmotic.sites import hub as hubs

    try:
        hubs.Hub.read(directory).remove_site(name)
    except RunStopped as error:
        raise _failed(error) from None
    print(f"site {name} may connect no more")


@hub.command("run")
def hub_run(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="Configuration in TOML, as of `osmotic run`.")
    ] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="Named set of choices.")] = None,
    sets: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Any key; repeatable.")] = [],  # noqa: B006
    out: Annotated[
        str | None, typer.Option("--name", help="Name of the run's folder under DIR/runs.")
    ] = None,
    directory: HubOpt = Path("."),
    json: JsonOpt = False,
) -> None:
    """Train at the sites, and follow it: the configuration of a simulation, with `data.clients` sites in the clients' place."""
    _needs_flower()
    from osmotic import plugins
    from osmotic.runs import resolve
    from osmotic.sites import follow
    from osmotic.sites import hub as hubs

    plugins.load_installed()  # own parts are packages, installed at the hub and at every site
    made = hubs.Hub.read(directory)
    cfg = resolve.load(config, preset=preset, sets=[*sets, "engine.name=sites"])
    folder = made.fresh_run(out or cfg.preset or cfg.method.name, named=out is not None)
    _finish(lambda: follow.run(made, cfg, folder, json), folder, json)


@hub.command("resume")
def hub_resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run under DIR/runs.")],
    directory: HubOpt = Path("."),
    json: JsonOpt = False,
) -> None:
    """Go on with a run that was stopped or failed."""
    _needs_flower()
    from osmotic.sites import follow
    from osmotic.sites import hub as hubs
    from osmotic.storage.folder import RunDir

    made = hubs.Hub.read(directory)
    RunDir.existing(run)
    folder = Path(run).resolve()
    _finish(lambda: follow.run(made, None, folder, json), folder, json)


@hub.command("status")
def hub_status(directory: HubOpt = Path("."), json: JsonOpt = False) -> None:
    """Which sites are registered and online, and what runs there are."""
    _needs_flower()
    from osmotic.sites import hub as hubs

    made = hubs.Hub.read(directory)
    try:
        sites, runs = made.sites(), made.listed()
    except RunStopped as error:
        raise _failed(error) from None
    if json:
        print(strict_json.dumps({"sites": sites, "runs": runs}))
        return
    for one in sites:
        print(f"site  {plain(one.get('name') or one.get('node-id')):24} {plain(one.get('status', ''))}")
    for one in runs:
        print(f"run   {plain(one.get('run-id')):24} {plain(one.get('status', ''))}")


@hub.command("stop")
def hub_stop(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Number of a run, as `osmotic hub status` has it.")
    ],
    directory: HubOpt = Path("."),
) -> None:
    """Stop a run; what had counted stays, and it can be gone on with."""
    _needs_flower()
    from osmotic.sites import hub as hubs

    try:
        hubs.Hub.read(directory).stop(run)
    except RunStopped as error:
        raise _failed(error) from None
    print(f"run {run} is stopped")


def _finish(follow: Callable[[], int], folder: Path, json: bool) -> None:
    try:
        code = follow()
    except RunStopped as error:
        raise _failed(error) from None
    if code:
        raise typer.Exit(code)
    if json:
        print((folder / "summary.json").read_text(encoding="utf-8"), end="")
    else:
        print(f"report   {folder / 'report.html'}")

"""A site, as its operator sees it: made, checked line by line, started."""

from __future__ import annotations

import datetime
import email.utils
import secrets
import shutil
import ssl
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from importlib import metadata
from pathlib import Path

import numpy as np

from osmotic.config.schema import Config, to_dict
from osmotic.engines.quiet import require
from osmotic.errors import ConfigError, plain
from osmotic.report.formatting import plural, size
from osmotic.sites.answers import FOLDER, broken_off
from osmotic.sites.flwr_command import program
from osmotic.sites.folder import AUTHORITY, FILE, KEY, SECRET, SiteConfig, SiteFolder, text
from osmotic.sites.folder import check as check_config
from osmotic.sites.supervisor import Service, Supervisor
from osmotic.sites.task import write_program
from osmotic.storage.atomic import write_text

CLOCK = (
    30.0  # seconds by which clocks of site and hub may differ: Flower refuses requests signed at another time
)
SOON = datetime.timedelta(days=30)


def init(path: Path, name: str, data: str, hub: str, authority: Path | None, port: int) -> SiteFolder:
    """A new site: its file with the strictest policy, its keys, room for private states.

    Args:
        authority: ca.crt of the hub; None for a hub without encryption.
    Raises: ConfigError for a folder that is in use, or what `SiteFolder.read` refuses.
    """
    from osmotic.sites import certificates

    path = Path(path).resolve()
    kind, colon, place = data.partition(":")
    if kind in ("npz", "folder") and colon:  # services start elsewhere than whoever types this
        data = f"{kind}:{Path(place).resolve()}"
    made = SiteConfig(name=name, data=data, hub=hub, port=port, plaintext=authority is None)
    check_config(str(path / FILE), made)
    if path.exists() and any(path.iterdir()):
        raise ConfigError(str(path), None, "is not empty")
    if authority is not None and not certificates.is_certificate(authority):
        raise ConfigError("--ca", str(authority), "must be the ca.crt of the hub's folder")
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    (path / "state").mkdir(mode=0o700)
    certificates.make_key(path / KEY)
    certificates.write_private(path / SECRET, secrets.token_hex(32).encode())
    if authority is not None:
        shutil.copyfile(authority, path / AUTHORITY)
    write_text(path / FILE, text(made))
    return SiteFolder.read(path)


def services(site: SiteFolder) -> Supervisor:
    """Flower's SuperNode, and what starts a process of this site's for each task."""
    path, config = site.path, site.config
    secret = ["--superexec-auth-secret-file", str(path / SECRET)]
    node = [sys.executable, "-m", "osmotic.sites.node"]
    node += ["--superlink", config.hub, "--port", str(config.port), *secret]
    node += ["--isolation", "process", "--node-config", f'site="{path}"']
    if (authority := site.authority) is not None:
        node += ["--root-certificates", str(authority)]
        node += ["--auth-supernode-private-key", str(path / KEY)]
    else:
        node += ["--insecure"]
    # Between processes of this machine alone.
    executor = [
        program("flower-superexec"),
        "--runtime-api-address",
        f"127.0.0.1:{config.port}",
        "--insecure",
        *secret,
    ]
    hint = "is its key registered? osmotic hub add-site does it; after a kill the hub lets it in again within a minute"
    programs, answers = write_program(path / "bin"), path / FOLDER
    made = [
        Service("supernode", node, hint=hint, stuck=lambda since: broken_off(answers, since)),
        Service("superexec", executor),
    ]
    return Supervisor(
        made,
        path / "logs",
        {"FLWR_HOME": str(path / "flower"), "OMP_NUM_THREADS": "1"},
        programs,
    )


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Args:
        what: in a word or two.
        good: whether it is as it must be.
        told: what was found, or what to do.
    """

    what: str
    good: bool
    told: str


def check(path: Path) -> Iterator[Line]:
    """Everything that a site needs, one line after the other; each says what was found or what to do."""
    try:
        site = SiteFolder.read(path)
    except ConfigError as error:
        yield Line("file", False, str(error))
        return
    yield Line("file", True, f"site {site.config.name}, {site.path / FILE}")
    looked: tuple[tuple[str, Callable[[SiteFolder], str]], ...] = (
        ("programs", _programs),
        ("keys", _keys),
        ("images", _images),
        ("device", _device),
        ("states", _states),
        ("scores", _scores),
        ("certificate", _certificate),
        ("hub", _hub),
    )
    for what, look in looked:
        try:
            yield Line(what, True, look(site))
        except ConfigError as error:
            yield Line(what, False, str(error))
        except (OSError, ValueError) as error:
            yield Line(what, False, plain(f"{type(error).__name__}: {error}"))


def allows(path: Path, config: Config) -> Iterator[Line]:
    """What this site's policy says of a run, before a hub asks: one line for each kind of task.

    Raises: ConfigError for a folder that is no site's, or a configuration that cannot be with this site's images.
    """
    from osmotic.data import sources
    from osmotic.data.dataset import Dataset, Split
    from osmotic.runs import leaves
    from osmotic.sites.desk import Declined, SiteDesk, Spec

    site = SiteFolder.read(path)
    policy = site.config.policy
    try:
        own = SiteDesk(site).configuration(Spec(to_dict(config)))
    except Declined as error:
        yield Line("run", False, str(error))
        return
    shape = sources.describe(own.data, keep_all=True)
    side, names = shape.image_size, tuple(map(str, range(shape.num_classes)))
    # As many as there are clients at least: tasks do not depend on how many images there are, and nothing is read.
    count = max(shape.num_train, own.data.clients)
    images = np.broadcast_to(np.uint8(0), (count, side, side, shape.channels))
    split = Split(images, np.zeros(count, np.int64) if names else None)
    told = leaves.leaves(own, Dataset(site.config.name, split, split, names))
    for one in told["exchanges"]:
        back = one["from_site"]
        header = {"action": one["action"], "returns": back["parts"], "local_epochs": one["passes"]}
        reason = policy.objection(own, header) or policy.too_large(max(back["bytes"] or [0]))
        yield Line(one["when"], reason is None, reason or f"{leaves.side(back)} may leave")
    if config.score.encoder != "classifier":
        among = "sums of features may leave if policy.encoders has the hash of the feature network"
        none = "policy.encoders is empty: no sums of features leave, and runs are scored without this site"
        yield Line("scores", True, among if policy.encoders else none)


def _programs(site: SiteFolder) -> str:
    require("osmotic", None, "flwr")
    names = ("osmotic", "torch", "diffusers", "flwr")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def _keys(site: SiteFolder) -> str:
    for name in (KEY, SECRET):
        file = site.path / name
        if not file.is_file():
            raise ConfigError(
                str(file), None, "is not there: osmotic site init makes one, and its .pub goes to the hub"
            )
        if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(str(file), None, f"can be read by others: chmod 600 {file}")
    return f"{KEY}, which nobody else can read; the hub needs {KEY}.pub"


def _images(site: SiteFolder) -> str:
    from osmotic.config.schema import DataConfig
    from osmotic.data import sources

    cfg = DataConfig(source=site.config.data)
    sources.check(cfg)
    shape = sources.describe(cfg, keep_all=True)
    classes = f"{shape.num_classes} classes" if shape.num_classes else "no labels"
    side, kind = shape.image_size, {1: "grey", 3: "colour"}[shape.channels]
    return f"{shape.num_train:,} images of {side}x{side}, {kind}, {classes}"


def _device(site: SiteFolder) -> str:
    from osmotic.runs.study import choose_device

    return f"trains on {choose_device(site.config.device)}"


def _states(site: SiteFolder) -> str:
    runs, held = site.states()
    if (reason := site.config.policy.too_full(held)) is not None:
        raise ConfigError(str(site.path / "state"), None, f"{reason}; delete those of runs that are over")
    most = site.config.policy.most_state_gigabytes
    return f"private states of {plural(runs, 'run')}, {size(held)} of at most {most:g} GB"


def _scores(site: SiteFolder) -> str:
    allowed = site.config.policy.encoders
    if not allowed:
        return "sums of features do not leave: runs are scored without this site"
    if site.encoder is None:
        return f"{len(allowed)} feature networks are allowed"
    from osmotic.metrics import encoder_file

    found = encoder_file.read(site.encoder)
    if found.sha256 not in allowed:
        rule = f"does not have the hash of {site.encoder.name}, which is {found.sha256}"
        raise ConfigError("policy.encoders", list(allowed), rule)
    return f"sums of features by {found.name} may leave"


def _certificate(site: SiteFolder) -> str:
    if (file := site.authority) is None:
        return "none, as plaintext = true says: no encryption, and anybody can be the hub"
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(file.read_bytes())
    now, end = datetime.datetime.now(datetime.UTC), certificate.not_valid_after_utc
    if now > end:
        raise ConfigError(str(file), None, f"ended on {end:%Y-%m-%d}: ask the hub for its new one")
    soon = ", soon" if end - now < SOON else ""
    return f"the hub's authority, valid until {end:%Y-%m-%d}{soon}"


def _hub(site: SiteFolder) -> str:
    """Whether the hub answers under its certificate, and whether the clocks agree."""
    host, _, port = site.config.hub.rpartition(":")
    connection: HTTPConnection
    if (file := site.authority) is not None:
        context = ssl.create_default_context(cafile=str(file))
        connection = HTTPSConnection(host, int(port), timeout=10, context=context)
    else:
        connection = HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request("GET", "/v1/fleet/")
        answer = connection.getresponse()
        answer.read()
    except ssl.SSLCertVerificationError as error:
        rule = f"has another certificate than this site's ca.crt stands for ({plain(error.verify_message)})"
        raise ConfigError("hub", site.config.hub, rule) from None
    except (OSError, HTTPException) as error:
        rule = f"does not answer ({plain(error)}): is osmotic hub start running there, and the port open?"
        raise ConfigError("hub", site.config.hub, rule) from None
    finally:
        connection.close()
    told = answer.getheader("Date")
    apart = 0.0
    if told is not None:
        theirs = email.utils.parsedate_to_datetime(told)
        apart = abs((datetime.datetime.now(datetime.UTC) - theirs).total_seconds())
        if apart > CLOCK:
            raise ConfigError("clock", None, f"differs by {apart:.0f} s from the hub's: set both by NTP")
    return f"{site.config.hub} answers, clocks agree within {max(1, round(apart))} s"

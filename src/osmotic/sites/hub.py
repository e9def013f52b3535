"""The hub of a federation: its folder, Flower's SuperLink, and runs that are handed to it.

A hub sees names, counts and what a run's rules let leave a site; it never sees images.
"""

from __future__ import annotations

import datetime
import re
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from osmotic.config import toml
from osmotic.config.keys import checked, nearest
from osmotic.config.schema import Config
from osmotic.config.toml import read_toml
from osmotic.errors import ConfigError, plain
from osmotic.metrics.weights import PREFIX
from osmotic.protocol.messages import Client
from osmotic.sites.flwr_command import ask, environment, program
from osmotic.sites.supervisor import Service, Supervisor
from osmotic.storage import strict_json
from osmotic.storage.atomic import write_text

FILE, DATABASE, SECRET, NAMES = "hub.toml", "state.db", "superexec.secret", "sites.json"
SUPERLINK = "hub"  # the name of the connection in Flower's own file
STARTING = 60.0  # seconds that a hub may take to start, or to start again
KEYS = {"port", "listen", "plaintext"}
SOON = datetime.timedelta(days=60)  # before the end of a certificate it is told of
ENDING = {
    "server.crt": "osmotic hub renew makes a new one, which sites trust as they did the old",
    "ca.crt": "a new hub, whose ca.crt goes to every site, must take over",
}
LARGEST_BODY = 16  # MB of one request; Flower cuts arrays into pieces of 5 MB


@dataclass(frozen=True)
class Hub:
    """A hub's folder.

    Args:
        path: of the folder.
        port: of Flower's SuperLink on this machine.
        listen: address that it is bound to.
        plaintext: without TLS and keys.
    """

    path: Path
    port: int
    listen: str
    plaintext: bool

    @classmethod
    def read(cls, path: Path) -> Hub:
        """Raises: ConfigError for a folder that holds no hub, or a file with a mistake."""
        path = Path(path).resolve()
        if not (path / FILE).is_file():
            raise ConfigError(str(path), None, f"holds no {FILE}: osmotic hub init makes one")
        table = read_toml(path / FILE)
        for name in table.keys() - KEYS:
            raise ConfigError(f"{path / FILE}: {name}", table[name], "unknown key", nearest(name, KEYS))
        where = f"{path / FILE}: "
        port = checked(f"{where}port", table.get("port"), int, {"low": 1, "high": 65535})
        listen = checked(f"{where}listen", table.get("listen", "127.0.0.1"), str, {})
        return cls(path, port, listen, checked(f"{where}plaintext", table.get("plaintext", False), bool, {}))

    @property
    def home(self) -> Path:
        """Flower's own folder."""
        return self.path / "flower"

    @property
    def runs(self) -> Path:
        """Where runs go."""
        return self.path / "runs"

    def services(self) -> Supervisor:
        """Flower's SuperLink, and what starts servers of runs beside it: either may die, and a run goes on."""
        files = [str(self.path / name) for name in ("ca.crt", "server.crt", "server.key")]
        tls = ["--ssl-ca-certfile", files[0], "--ssl-certfile", files[1], "--ssl-keyfile", files[2]]
        secret = ["--superexec-auth-secret-file", str(self.path / SECRET)]
        superlink = [program("flower-superlink"), "--host", self.listen, "--port", str(self.port)]
        superlink += ["--database", str(self.path / DATABASE), "--isolation", "process", *secret]
        superlink += ["--disable-runtime-dependency-installation"]
        superlink += ["--insecure"] if self.plaintext else [*tls, "--enable-supernode-auth"]
        executor = [program("flower-superexec"), "--runtime-api-address", f"127.0.0.1:{self.port}", *secret]
        executor += ["--insecure"] if self.plaintext else ["--root-certificates", files[0]]
        made = [Service("superlink", superlink), Service("superexec", executor)]
        return Supervisor(made, self.path / "logs", {"FLWR_HOME": str(self.home)})

    def connect(self) -> None:
        """Flower's own file, by which its command finds this hub."""
        address = f'address = "127.0.0.1:{self.port}"\n'
        certificate = (
            "insecure = true\n" if self.plaintext else f'root-certificates = "{self.path / "ca.crt"}"\n'
        )
        self.home.mkdir(exist_ok=True)
        write_text(
            self.home / "config.toml",
            f'[superlink]\ndefault = "{SUPERLINK}"\n\n[superlink.{SUPERLINK}]\n{address}{certificate}',
        )

    def renew(self, hosts: Sequence[str] = ()) -> str:
        """A new key and certificate of the server by the same authority, so that sites need nothing; returns until when.

        Args:
            hosts: names and addresses by which sites reach it; () keeps those of the old one.
        Raises: ConfigError for a hub without certificates, or whose own are damaged.
        """
        from osmotic.sites import certificates

        if self.plaintext:
            raise ConfigError(str(self.path / FILE), None, "has plaintext = true: there is no certificate")
        try:
            known = [*hosts, "localhost", "127.0.0.1"] if hosts else certificates.hosts_of(self.path)
            certificates.make_server(self.path, list(dict.fromkeys(known)))
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        return f"{certificates.ends(self.path / 'server.crt'):%Y-%m-%d}"

    def ending(self) -> str | None:
        """A line about a certificate that ends soon; None while none does. Raises: ConfigError for one that is damaged."""
        from osmotic.sites import certificates

        if self.plaintext:
            return None
        try:
            until = {name: certificates.ends(self.path / name) for name in ENDING}
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        now = datetime.datetime.now(datetime.UTC)
        soon = [name for name in ENDING if until[name] - now < SOON]
        return f"{soon[0]} ends on {until[soon[0]]:%Y-%m-%d}: {ENDING[soon[0]]}" if soon else None

    def _unreadable(self, error: Exception) -> ConfigError:
        return ConfigError(str(self.path), None, f"its certificates cannot be read ({plain(error)})")

    def add_site(self, name: str, key: Path) -> None:
        """Lets the site with this public key connect, under this name. Raises: ConfigError, RunStopped."""
        from osmotic.sites.certificates import is_public_key

        try:
            Client(0, name, 1)
        except ValueError as error:
            raise ConfigError("NAME", name, str(error).partition(": ")[2]) from None
        try:
            data = Path(key).read_bytes()
        except OSError as error:
            raise ConfigError("KEY", str(key), f"cannot be read ({error.strerror})") from None
        if name in self.names().values():
            raise ConfigError(
                "NAME", name, "is the name of a site that is there: osmotic hub remove-site takes it away"
            )
        if not is_public_key(data):
            raise ConfigError("KEY", str(key), "is no public key of osmotic site init (site.key.pub)")
        words = ["supernode", "register", str(Path(key).resolve()), SUPERLINK, "--name", name]
        node = ask(self.home, words, patience=STARTING).get("node-id")
        # Flower lists numbers alone, and takes a name twice.
        names = {**self.names(), str(node): name}
        write_text(self.path / NAMES, strict_json.dumps(names, indent=1) + "\n")

    def remove_site(self, name: str) -> None:
        """Takes a site's key back. Raises: ConfigError for a name that is not there, RunStopped."""
        names = self.names()
        if not (nodes := [node for node, known in names.items() if known == name]):
            raise ConfigError("NAME", name, "is no site of this hub", nearest(name, names.values()))
        for node in nodes:
            ask(self.home, ["supernode", "unregister", node, SUPERLINK], patience=STARTING)
            del names[node]
        write_text(self.path / NAMES, strict_json.dumps(names, indent=1) + "\n")

    def names(self) -> dict[str, str]:
        """Names of registered sites by Flower's number of each."""
        file = self.path / NAMES
        return strict_json.read_table(file) if file.exists() else {}

    def sites(self) -> list[dict[str, Any]]:
        """Sites that are registered: name, and whether they are online."""
        names = self.names()
        nodes = ask(self.home, ["supernode", "list", SUPERLINK]).get("nodes", [])
        return [{"name": names.get(str(node.get("node-id")), ""), **node} for node in nodes]

    def listed(self) -> list[dict[str, Any]]:
        """Runs as Flower knows them, with its counters of bytes."""
        return list(ask(self.home, ["list", SUPERLINK]).get("runs", []))

    def stop(self, run: str) -> None:
        """Stops a run; what had counted stays, and it can be gone on with."""
        ask(self.home, ["stop", run, SUPERLINK])

    def submit(self, config: Config | None, out: Path) -> str:
        """Hands a run to Flower, a new one or (without a configuration) one to go on with; returns Flower's number of it."""
        app = self.path / "app"
        app.mkdir(exist_ok=True)
        told = {"sites": True, "config": "", "out": "", "resume": ""}
        submitted = self.path / "submitted"
        submitted.mkdir(exist_ok=True)
        if config is None:
            told["resume"] = str(out)
        else:
            write_text(file := submitted / f"{out.name}.toml", toml.to_toml(_from_anywhere(config)))
            told |= {"config": str(file), "out": str(out)}
        import tomli_w

        write_text(app / "pyproject.toml", APP)
        write_text(overrides := submitted / f"{out.name}.app.toml", tomli_w.dumps(told))
        started = ask(
            self.home, ["run", str(app), SUPERLINK, "--run-config", str(overrides)], patience=STARTING
        )
        return str(started["run-id"])

    def follow(self, run: str) -> Iterator[str]:
        """Lines of a run's server as they come, and at the end its status, such as `finished:completed`."""
        command = [program("flwr"), "log", run, SUPERLINK, "--stream"]
        log = subprocess.Popen(
            command,
            env=environment(self.home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            assert log.stdout is not None
            for line in log.stdout:
                yield line.rstrip("\n")
        finally:
            with suppress(ProcessLookupError):
                log.kill()
            log.wait()

    def fresh_run(self, name: str, named: bool) -> Path:
        """A new folder under `runs`. Raises: ConfigError for a name that was given and is taken, or is no folder's."""
        if named and not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,99}", name):
            raise ConfigError("--name", name, "must be letters, digits, . + - and _")
        folder, number = self.runs / name, 2
        while True:
            try:
                folder.mkdir()  # from here on it is this run's, though its server writes there only once sites have come
                return folder
            except FileExistsError:
                if named:
                    raise ConfigError("--name", name, "is the name of another run") from None
                folder, number = self.runs / f"{name}-{number}", number + 1

    def status(self, run: str) -> str:
        """Flower's word for the state of a run; "" where it knows none of it."""
        for one in self.listed():
            if str(one.get("run-id")) == run:
                return str(one.get("status", ""))
        return ""


def _from_anywhere(config: Config) -> Config:
    """With whole paths of feature network, autoencoder and pretrained weights: a run's server starts elsewhere than whoever types this."""
    if (name := config.score.encoder).startswith(PREFIX):
        whole = f"{PREFIX}{Path(name.removeprefix(PREFIX)).resolve()}"
        config = replace(config, score=replace(config.score, encoder=whole))
    model = config.model
    if place := model.autoencoder:
        model = replace(model, autoencoder=str(Path(place).expanduser().resolve()))
    folder = Path(model.pretrained).expanduser()
    if model.pretrained and folder.is_dir():  # else a name on a hub
        model = replace(model, pretrained=str(folder.resolve()))
    return replace(config, model=model)


APP = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "osmotic-hub"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "osmotic"

[tool.flwr.app.components]
serverapp = "osmotic.flower:server"
clientapp = "osmotic.flower:client"

[tool.flwr.app.config]
sites = true
preset = ""
data = ""
config = ""
set = ""
out = ""
resume = ""
"""


def init(path: Path, hosts: Sequence[str], port: int, listen: str, plaintext: bool) -> Hub:
    """A new folder of a hub: its authority, server certificate, secret, and the configuration of a proxy.

    Args:
        hosts: names and addresses by which sites reach it.
    Raises: ConfigError for a folder that is in use.
    """
    from osmotic.sites import certificates

    path = Path(path).resolve()
    if path.exists() and any(path.iterdir()):
        raise ConfigError(str(path), None, "is not empty")
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    (path / "runs").mkdir()
    if not plaintext:
        certificates.make_authority(path)
        certificates.make_server(path, [*dict.fromkeys([*hosts, "localhost", "127.0.0.1"])])
    certificates.write_private(path / SECRET, secrets.token_hex(32).encode())
    write_text(path / "nginx.conf", proxy(path, hosts[0], port))
    # Last: a folder with this file is a hub's.
    lines = [
        "# The hub of an osmotic federation.",
        "# port of Flower's SuperLink on this machine",
        f"port = {port}",
        "# Whoever reaches this address may also start runs and register sites, so it is this machine's alone;",
        "# nginx.conf shows sites the one path that they need.",
        f'listen = "{listen}"',
        "# true: no encryption, and nobody has to prove who it is; for trials on one machine",
        f"plaintext = {'true' if plaintext else 'false'}",
    ]
    write_text(path / FILE, "\n".join(lines) + "\n")
    hub = Hub.read(path)
    hub.connect()
    return hub


def proxy(path: Path, host: str, port: int) -> str:
    """nginx.conf: sites reach the one path that is theirs, with bodies of bounded size."""
    return f"""# Sites connect here. Of Flower's SuperLink they need /v1/fleet alone: its other paths start runs and register sites.
server {{
    listen 443 ssl;
    server_name {host};
    ssl_certificate {path}/server.crt;
    ssl_certificate_key {path}/server.key;
    client_max_body_size {LARGEST_BODY}m;

    location /v1/fleet/ {{
        proxy_pass https://127.0.0.1:{port};
        proxy_ssl_trusted_certificate {path}/ca.crt;
        proxy_ssl_verify on;
        proxy_ssl_name localhost;
        proxy_set_header Host $host;
        proxy_read_timeout 60s;
    }}
    location / {{
        return 404;
    }}
}}
"""

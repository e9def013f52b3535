"""The folder of a site: its file, its keys, its private states, its own models. Nothing of it leaves but the public key."""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osmotic.config.keys import checked, key, nearest
from osmotic.config.toml import read_toml
from osmotic.errors import ConfigError
from osmotic.protocol.messages import Client
from osmotic.sites.policy import Policy

FILE, KEY, SECRET, AUTHORITY = "site.toml", "site.key", "superexec.secret", "ca.crt"


@dataclass(frozen=True, kw_only=True)
class SiteConfig:
    """site.toml: what a site says of itself, and what it allows."""

    name: str = key("", "the site's name, under which the hub knows it")
    data: str = key("", "its images: npz:PATH, folder:PATH, hf:NAME; read in place, never sent")
    hub: str = key("", "HOST:PORT of the hub")
    device: str = key("auto", "auto, cpu, cuda or cuda:N")
    encoder: str = key(
        "", "path of a file of osmotic encoder: the feature network of the scores of runs that name one"
    )
    autoencoder: str = key(
        "", "folder of the autoencoder of runs that work in its latents; the hub must have the same"
    )
    pretrained: str = key(
        "", "pipeline folder of the weights that runs start from; where it is empty they are sent once"
    )
    port: int = key(9094, "on this machine alone, between the site's own processes", 1, 65535)
    plaintext: bool = key(
        False, "true: no encryption, and the hub does not prove who it is; for trials on one machine"
    )
    policy: Policy = field(default_factory=Policy)


@dataclass(frozen=True)
class SiteFolder:
    """A site's folder and what stands in its file."""

    path: Path
    config: SiteConfig

    @classmethod
    def read(cls, path: Path) -> SiteFolder:
        """Raises: ConfigError, naming file, key and rule, for a folder that is none or a file with a mistake."""
        path = Path(path).resolve()
        file = path / FILE
        if not file.is_file():
            raise ConfigError(str(path), None, f"holds no {FILE}: osmotic site init makes one")
        table = read_toml(file)
        policy = table.pop("policy", {})
        if not isinstance(policy, dict):
            raise ConfigError(f"{file}: policy", policy, "must be a section")
        made = SiteConfig(
            **_checked(file, SiteConfig, table, ""),
            policy=Policy(**_checked(file, Policy, policy, "policy.")),
        )
        check(str(file), made)
        return cls(path, made)

    @property
    def authority(self) -> Path | None:
        """The hub's certificate of authority; None where nothing is encrypted, which the file must say.

        Raises: ConfigError if it is gone: a site does not fall back on speaking without encryption.
        """
        if self.config.plaintext:
            return None
        if not (file := self.path / AUTHORITY).is_file():
            raise ConfigError(str(file), None, "is not there: get it from the hub again")
        return file

    @property
    def encoder(self) -> Path | None:
        """The file of the feature network for scores; a relative path is one from the site's folder."""
        return self.path / self.config.encoder if self.config.encoder else None

    @property
    def autoencoder(self) -> Path | None:
        """The folder of the autoencoder; a relative path is one from the site's folder."""
        return self.path / self.config.autoencoder if self.config.autoencoder else None

    @property
    def pretrained(self) -> Path | None:
        """The folder of pretrained weights; a relative path is one from the site's folder."""
        return self.path / self.config.pretrained if self.config.pretrained else None

    def state(self, run: object) -> Path:
        """Where this site's private states of a run lie. Raises: ValueError for what is no run's id."""
        return self._of("state", run)

    def model(self, run: object) -> Path:
        """Where this site's own model of a run lies, as a pipeline folder; errors as `state`."""
        return self._of("models", run)

    def _of(self, folder: str, run: object) -> Path:
        if not (isinstance(run, str) and run.isascii() and run.isalnum() and 0 < len(run) <= 64):
            raise ValueError("a run's id is letters and digits")
        return self.path / folder / run

    def states(self) -> tuple[int, int]:
        """Runs that have private states or an own model here, and the bytes of these."""
        runs, held = set(), 0
        for top in (self.path / "state", self.path / "models"):
            for file in (Path(at, name) for at, _, names in os.walk(top) for name in names):
                runs.add(file.relative_to(top).parts[0].removesuffix(".json"))
                with suppress(FileNotFoundError):  # another task's process clears up behind itself
                    held += file.lstat().st_size
        return len(runs), held


def check(where: str, made: SiteConfig) -> None:
    """What no single key tells. Raises: ConfigError naming file, key and rule."""
    try:
        Client(0, made.name, 1)
    except ValueError as error:
        raise ConfigError(f"{where}: name", made.name, str(error).partition(": ")[2]) from None
    if not made.data:
        raise ConfigError(f"{where}: data", "", "must be given")
    for one in made.policy.encoders:
        if not re.fullmatch("[0-9a-f]{64}", one):
            raise ConfigError(f"{where}: policy.encoders", one, "must be a hash, 64 hexadecimal digits")
    host, _, port = made.hub.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"{where}: hub", made.hub, "must be HOST:PORT")


def _checked(file: Path, cls: Any, table: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The keys of a section, each checked for its type and range."""
    hints = typing.get_type_hints(cls)
    meta = {f.name: f.metadata for f in dataclasses.fields(cls) if f.name != "policy"}
    for name in table:
        if name not in meta:
            known = [prefix + known for known in meta]
            raise ConfigError(
                f"{file}: {prefix}{name}", table[name], "unknown key", nearest(prefix + name, known)
            )
    return {name: checked(f"{file}: {prefix}{name}", v, hints[name], meta[name]) for name, v in table.items()}


def text(config: SiteConfig) -> str:
    """site.toml with every key and what it means."""
    import tomli_w

    lines = ["# A site of an osmotic federation. `osmotic site check` tries all of it.", ""]
    for cls, made in ((SiteConfig, config), (Policy, config.policy)):
        if cls is Policy:
            lines += ["", "# What may happen here, whatever the hub asks.", "[policy]"]
        for one in dataclasses.fields(cls):
            if one.name == "policy":
                continue
            value = getattr(made, one.name)
            lines.append(f"# {one.metadata['doc']}")
            lines.append(
                tomli_w.dumps({one.name: list(value) if isinstance(value, tuple) else value}).strip()
            )
    return "\n".join(lines) + "\n"

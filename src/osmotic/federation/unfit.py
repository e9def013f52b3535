"""Exchanges and pieces that cannot work with a run's network, refused before any work; torch is not imported."""

from __future__ import annotations

from osmotic import methods, models, pieces
from osmotic.config.schema import PIECE_SECTIONS, Config
from osmotic.errors import ConfigError
from osmotic.models import NetworkSpec


def refuse_unfit(config: Config, spec: NetworkSpec) -> None:
    """Raises ConfigError for an exchange or piece that cannot work with this network; one that is not known here trains nothing here."""
    part_names = spec.part_names()

    def refuse(key: str, value: object, who: str, reason: str | None) -> None:
        if reason is None:
            return
        if spec.adapter is not None:  # all that is trained are the layers that it names
            raise ConfigError("adapter.targets", list(spec.adapter.targets), f"{who}: {reason}")
        raise ConfigError(key, value, f"network {spec.name}: {reason}")

    name = config.method.name
    if name in methods.METHODS:
        method = methods.make(name, dict(config.method.options))
        refuse("method.name", name, f"method {name}", method.unfit_parts(part_names))
    for section in PIECE_SECTIONS:
        chosen = getattr(config, section)
        for name in chosen.pieces:
            kind = pieces.PIECES.get(name)
            if kind is None:
                continue
            piece = kind(**chosen.options.get(name, {}))
            reason = None if kind.unfit is pieces.Piece.unfit else piece.unfit(models.layout(spec))
            key, who = f"{section}.{name}", f"piece {name}"
            refuse(key, None, who, reason or piece.unfit_parts(part_names))

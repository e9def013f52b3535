"""The exchange and the pieces of a run as their own classes tell them, so that no page, card or table knows one by name.

Words come from the classes in the registries, the package's or a plugin's, and never from a run folder: a folder is a
stranger's text, and what a card says of privacy must not be. Facts come from summary.json, which is what the run did;
older summaries lack them, and then the class is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from osmotic.methods import METHODS
from osmotic.pieces import PIECES
from osmotic.report.reading import Run

# For a run whose exchange is not installed here. It cannot be known where its images were, so nothing is claimed.
UNKNOWN_SENTENCE = "{clients} trained {model} on {data} with {method}, for {rounds}; the images were {split}."
UNKNOWN_LEFT = (
    "How this run exchanged its models is not known to the software that wrote this card. Whether anything but what "
    "is listed here left the clients, images among it, cannot be told."
)
UNKNOWN_PIECE_LEFT = "not known: this piece is not known to the software that wrote this card, and it may make anything leave a client"


@dataclass(frozen=True, kw_only=True)
class ExchangeWords:
    """How a run's exchange is told, and the facts that decide what can be said of it."""

    name: str  # as the run calls it; "" where the summary does not say
    known: bool  # whether a class of that name is installed
    sentence: str  # a template for str.format with the fields of `osmotic.methods.Method.sentence`
    left: str  # what left the clients and what did not, in whole sentences
    paper: str  # arXiv id, or ""
    exchanges: str  # what travels, in a few words; "" where that is not known
    shared: tuple[str, ...]  # parts of the network that are averaged
    travels: bool  # whether anything goes over a network
    global_model: bool  # whether a whole model exists at the server


@dataclass(frozen=True, kw_only=True)
class PieceWords:
    """How one piece of a run's learning rule is told; the empty text where it is not known here."""

    name: str
    title: str
    paper: str  # arXiv id, or ""
    left: str  # what it makes leave a client beside what the exchange sends


def exchange_of(run: Run) -> ExchangeWords:
    """The exchange of a run in the words of its class, or in words that claim nothing where there is no such class."""
    summary = run.summary
    name = str(summary.get("method") or "")
    known = METHODS.get(name)
    shared, travels, whole = (summary.get(key) for key in ("shared", "travels", "global_model"))
    # `is None`, as an empty list and False are answers too.
    if shared is None:
        shared = known.shared if known else ()
    if travels is None:
        travels = known.travels if known else True
    if whole is None:
        whole = known.global_model if known else True
    return ExchangeWords(
        name=name,
        known=known is not None,
        sentence=known.sentence if known else UNKNOWN_SENTENCE,
        left=known.left if known else UNKNOWN_LEFT,
        paper=known.paper if known else "",
        exchanges=known.exchanges if known else "",
        shared=tuple(str(part) for part in shared),
        travels=bool(travels),
        global_model=bool(whole),
    )


def pieces_of(run: Run) -> list[PieceWords]:
    """The pieces of a run's learning rule in the order of their chain; none for a run from before there were pieces."""
    told = []
    for name in piece_names(run):
        piece = PIECES.get(name)
        told.append(
            PieceWords(
                name=name,
                title=piece.title if piece else "",
                paper=piece.paper if piece else "",
                left=piece.left if piece else UNKNOWN_PIECE_LEFT,
            )
        )
    return told


def rule_name(run: Run) -> str:
    """The exchange and its pieces by name, such as `fedavg + prox + adam`."""
    return " + ".join([exchange_of(run).name or "an unnamed exchange", *piece_names(run)])


def piece_names(run: Run) -> list[str]:
    """The names of the pieces in the order of their chain, whether or not they are known here."""
    return [str(name) for name in run.summary.get("pieces") or ()]


def unknown(run: Run) -> list[str]:
    """The names of its exchange and pieces that are not registered here."""
    exchange = [name] if (name := str(run.summary.get("method") or "")) and name not in METHODS else []
    return exchange + [name for name in piece_names(run) if name not in PIECES]


def rule_lines(run: Run) -> list[tuple[str, str]]:
    """(`exchange` or `piece`, what it is with its paper): the learning rule of a run, one line for each of its parts."""
    exchange = exchange_of(run)
    lines = [("exchange", _line(exchange.name or "unnamed", exchange.exchanges, exchange.paper))]
    return lines + [("piece", _line(p.name, p.title, p.paper)) for p in pieces_of(run)]


def _line(name: str, words: str, paper: str) -> str:
    # A dot, as the words of an exchange may hold a colon of their own.
    return name + (f" · {words}" if words else "") + (f" (arXiv {paper})" if paper else "")


def words_of(parts: Sequence[str]) -> str:
    """Parts of the network in words: `the decoder`, `bottleneck and decoder`; `nothing` for none."""
    if len(parts) < 2:
        return f"the {parts[0]}" if parts else "nothing"
    return f"{', '.join(parts[:-1])} and {parts[-1]}"

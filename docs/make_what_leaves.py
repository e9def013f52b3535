"""Writes what-leaves-a-site.md from the declarations of exchanges, pieces and packets, so that the page cannot drift from the code.

python docs/make_what_leaves.py
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from osmotic.config.presets import PRESETS
from osmotic.runs import resolve
from osmotic.runs.leaves import leaves, side

TARGET = Path(__file__).with_name("what-leaves-a-site.md")
DATA = {"feddiffuse": "fashion-mnist"}  # what FedDiffuse's presets are made for

HEAD = """\
# What leaves a site

This page is made by `docs/make_what_leaves.py` from the code; change the code, then run the script. `tests/runs/test_leaves.py` holds it against the packets of
real runs of every preset.

A data steward who is asked to join wants to know what the site would send, to whom, when, and what could be learnt from it. This command tells it for the very
configuration in question, before anything runs; `--json` gives it to a script:

```sh
osmotic leaves config.toml
osmotic leaves --preset udec --set codec.up=int8
osmotic leaves --preset feddm-learned --set codec.first_contact=seed
```

Packets are the same in a simulation ({where}) and [across sites](deploy.md). There a site
also trusts the transport (Flower 1.41 over TLS, and the hub's certificate), and tells the hub before a run its name, how many images it trains on and how many it holds out, their shape, the names of
the classes, its versions of osmotic and torch, and which of four leaves its policy gives (own models, images drawn from them, feature sums, kernel distances). Its policy file says what it declines, whatever the hub asks; that it declines, and by which key of its policy, is told too.

A site's own images and labels are in no packet; with the piece `correction` images that a model of the site's own draws are, and their labels. That is not the same as privacy: what can be learnt from packets is told below, and nothing here prevents it:
"""

AFTER = """\
Bytes are of the encoded tensors; headers are small JSON values on top. `osmotic plan` has the sums over the training of a run, `ledger.jsonl` those of scores and
models too. Figures of the presets are for their defaults, with `digits` ({feddiffuse} for `feddiffuse-*`). The numbers depend on the network; `osmotic leaves` has
those of any configuration. Where a codec's lengths depend on the data only the most is known beforehand, and the least is told as 0 B.
"""

CODECS = """\
## What the codec adds

[codecs.md](codecs.md) says what each codec writes. For what can be learnt from a site:

- **A codec that loses something is no protection.** It leaves less of each change, but how much less can be learnt from it is not shown, and
  `codec.error_feedback` sends later what was left out: a packet then holds some of the changes of earlier rounds too. What is still owed stays at the site.
- **`codec.up_sends = "weights"`** sends the site's weights; the server subtracts what it sent and has the same change.
- **`codec.first_contact = "seed"`** tells a site a hash of the initial weights, which it draws itself, instead of sending them. Nothing of its images is in
  the answer. A site that draws others says so, which tells that its libraries differ.
- **`learned`** lets no more leave a site, but more come back to all of them. The server computes the second moments of every site's changes along each axis
  of each weight, mixes them, and sends their leading eigenvectors and the variances along them to every site, beside a task and within the bytes below. So
  each site, and whoever reads its packets, learns in which directions the changes of all sites together lie: of the class embedding directions over classes,
  from which the classes that were trained together can be guessed; of the first layers directions of what enters them. With few sites, or one that is far
  from the others, the mixture is mostly the changes of that one, and two networks in turn tell what moved between them. The sums of moments stay in the
  server's checkpoints after the replies are dropped. A site keeps the network and the one before it.
"""


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines) + "\n"


def bullets(lines: Iterable[str]) -> str:
    """A list in Markdown."""
    return "".join(f"- {line}\n" for line in lines)


def headers(told: Mapping[str, Mapping[str, str]]) -> str:
    """The entries of the headers, both ways."""
    parts = (
        ("Beside every answer: figures", "metrics"),
        ("Beside every answer: the rest", "from_site"),
        ("Beside every task, to the site", "to_site"),
    )
    return "\n".join(
        f"### {title}\n\n" + table(("entry", "what it says"), ((f"`{n}`", w) for n, w in told[name].items()))
        for title, name in parts
    )


def preset(name: str) -> str:
    """The section of one preset."""
    source = next((data for start, data in DATA.items() if name.startswith(start)), "digits")
    told = leaves(resolve.load(preset=name, data=source))
    rows = [(row["when"], side(row["to_site"]), side(row["from_site"])) for row in told["exchanges"]]
    exchanged = table(("when", "to the site", "from the site"), rows) if rows else NOTHING
    pieces = bullets(f"`{piece}` sends {left}" for piece, left in told["pieces_send"].items())
    parts = [f"## {name}\n", exchanged]
    if pieces:
        parts.append(pieces)
    if told["stays"]:
        parts.append("Stays: " + "; ".join(told["stays"]) + ".\n")
    parts.append("Can be learnt:\n")
    parts.append(bullets(f"{of}: {words}" for of, words in told["reveals"].items()))
    return "\n".join(parts)


NOTHING = "There is no site: one trainer holds all images.\n"


def page() -> str:
    """The whole page."""
    told: dict[str, Any] = leaves(resolve.load())
    # One that needs a folder of the user's own sends what its exchange does.
    names = [name for name, chosen in PRESETS.items() if not chosen.needs]
    parts = [
        HEAD.format(where=told["engine"]),
        bullets(told["missing"]),
        "And in a simulation:\n",
        bullets(told["in_a_simulation"]),
        AFTER.format(feddiffuse=f"`{DATA['feddiffuse']}`"),
        CODECS,
        "## In every packet\n",
        headers(told["headers"]),
        *(preset(name) for name in names),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(page())

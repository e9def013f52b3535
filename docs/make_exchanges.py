"""Draws exchanges.svg: which parts of the network travel in FedDiffuse's four modes (arXiv 2406.12575).

python docs/make_exchanges.py
"""

from __future__ import annotations

from pathlib import Path

TARGET = Path(__file__).with_name("exchanges.svg")
PARTS = ("encoder", "bottleneck", "decoder")
COLOURS = {"encoder": "#3b6ea5", "bottleneck": "#8a6bb1", "decoder": "#c8703a"}
CELL, GAP = 46, 4
PANEL_WIDTH, PANEL_HEIGHT = 400, 300

# (title, caption, parts sent to each client, parts each client returns, parts that stay on a client)
MODES = (
    ("full", "everything, both ways", (PARTS, PARTS), (PARTS, PARTS), ()),
    (
        "usplit",
        "everything down; a pair returns one whole, by lot",
        (PARTS, PARTS),
        (("bottleneck", "decoder"), ("encoder",)),
        (),
    ),
    ("ulatdec", "the encoder is personal", (PARTS[1:], PARTS[1:]), (PARTS[1:], PARTS[1:]), ("encoder",)),
    (
        "udec",
        "encoder and bottleneck are personal",
        (PARTS[2:], PARTS[2:]),
        (PARTS[2:], PARTS[2:]),
        ("encoder", "bottleneck"),
    ),
)


def unet(x: float, y: float, solid: tuple[str, ...], personal: tuple[str, ...] = ()) -> str:
    """Three boxes; those that are neither `solid` nor `personal` are outlines, personal ones carry a dot."""
    out = []
    for i, part in enumerate(PARTS):
        left = x + i * (CELL + GAP)
        fill = COLOURS[part] if part in solid or part in personal else "none"
        faint = ' opacity="0.45"' if part in personal else ""
        out.append(
            f'<rect x="{left:g}" y="{y:g}" width="{CELL}" height="26" rx="4" fill="{fill}" stroke="{COLOURS[part]}"{faint}/>'
        )
        if part in personal:
            out.append(f'<circle cx="{left + CELL / 2:g}" cy="{y + 13:g}" r="4" fill="#ffffff"/>')
    return "".join(out)


def arrow(x: float, top: float, bottom: float, up: bool, parts: tuple[str, ...]) -> str:
    """A line with a head, and beside it one small square per part that travels."""
    start, end = (bottom, top) if up else (top, bottom)
    squares = "".join(
        f'<rect x="{x + 6 + 12 * i:g}" y="{(top + bottom) / 2 - 5:g}" width="10" height="10" fill="{COLOURS[p]}"/>'
        for i, p in enumerate(parts)
    )
    return f'<line x1="{x:g}" y1="{start:g}" x2="{x:g}" y2="{end:g}" stroke="#555" marker-end="url(#head)"/>{squares}'


def panel(x: float, y: float, mode: tuple) -> str:
    """One mode: the server above, two clients below, what goes down and what comes up between them."""
    title, caption, down, up, personal = mode
    width = 3 * CELL + 2 * GAP
    shared = tuple(p for p in PARTS if p not in personal)
    centre = x + PANEL_WIDTH / 2
    out = [
        f'<text x="{x + 12:g}" y="{y + 24:g}" class="title">{title}</text>',
        f'<text x="{x + 12:g}" y="{y + 44:g}">{caption}</text>',
        f'<text x="{centre - width / 2 - 8:g}" y="{y + 82:g}" text-anchor="end">server</text>',
        unet(centre - width / 2, y + 64, shared),
    ]
    for i in range(2):
        left = x + 16 + i * (PANEL_WIDTH / 2 - 4)
        out.append(unet(left, y + 212, shared, personal))
        out.append(f'<text x="{left:g}" y="{y + 258:g}">client {i + 1}</text>')
        out.append(arrow(left + 30, y + 104, y + 202, False, down[i]))
        out.append(arrow(left + 92, y + 104, y + 202, True, up[i]))
    return "".join(out)


def picture() -> str:
    """The whole drawing."""
    width, height = 2 * PANEL_WIDTH, 2 * PANEL_HEIGHT + 44
    panels = "".join(
        panel(PANEL_WIDTH * (i % 2), PANEL_HEIGHT * (i // 2), mode) for i, mode in enumerate(MODES)
    )
    legend, left = "", 14
    for part in PARTS:
        legend += f'<rect x="{left}" y="{height - 32}" width="12" height="12" fill="{COLOURS[part]}"/>'
        legend += f'<text x="{left + 18}" y="{height - 22}">{part}</text>'
        left += 40 + 8 * len(part)
    legend += f'<text x="{left}" y="{height - 22}">white dot: personal, stays on its client for the whole run</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        'aria-label="What travels in full, usplit, ulatdec and udec">'
        "<style>text{font:13px sans-serif;fill:#333}.title{font-weight:bold;font-size:16px}</style>"
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="6" refY="3" orient="auto">'
        '<path d="M0,0 L6,3 L0,6 z" fill="#555"/></marker></defs>'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>{panels}{legend}</svg>\n'
    )


if __name__ == "__main__":
    TARGET.write_text(picture(), encoding="utf-8")
    print(TARGET)

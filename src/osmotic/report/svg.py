"""What every drawing of a report shares: colours, axes, and the way from a matplotlib figure to inline SVG.

The same run gives the same bytes, and colours follow the page's light or dark theme.
Palette: Okabe and Ito's colour-blind-safe set (Wong, Nature Methods 8:441, 2011).
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

# Inches, 72 points each as is usual in SVG. Two stand side by side on a screen, and one fits a phone with its text legible.
SIZE = (5.2, 3.0)
SMALL = (3.6, 1.9)  # of one among many
TINY = (2.15, 1.5)  # of one among very many, two of which stand side by side on a phone
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
# Colours that the page overrides as CSS variables, so that one drawing serves the light and the dark theme; where
# there is no style sheet, the fallback is the colour itself.
INK, SOFT, RULE = "#1c2126", "#5b6570", "#d9dee3"
VARIABLES = {INK: "--ink", SOFT: "--soft", RULE: "--rule"} | {c: f"--c{i}" for i, c in enumerate(COLOURS)}

RC: dict[str, Any] = {
    "svg.hashsalt": "osmotic",  # ids are drawn at random without it, and no page would equal its repetition
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud, and set in the page's own font
    "text.parse_math": False,  # class names may hold dollar signs
    "axes.formatter.useoffset": False,  # an offset would stand where the title is
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": RULE,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "ytick.major.size": 0,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


def element(draw: Callable[[Figure], None], title: str, prefix: str, size: tuple[float, float]) -> str:
    """What `draw` puts on an empty figure, as an inline <svg> element that depends on nothing but its input.

    Args:
        draw: draws on the figure it is given.
        title: told to those who cannot see it; plain text.
        prefix: begins every id of the drawing; letters, digits and hyphens, its own on the page.
        size: width and height in inches.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    # Not pyplot: it keeps figures and settings in globals, and a report may be written in the midst of a user's own.
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser draws the text, in its own fonts
        fig = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(fig)
        draw(fig)
        none = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # a date would change the bytes
        fig.savefig(buffer, format="svg", transparent=True, metadata=none)
    return inline(buffer.getvalue(), title, prefix)


def inline(svg: str, title: str, prefix: str) -> str:
    """A matplotlib SVG file as an element for an HTML page: no prolog, no metadata, no link outside of it.

    Args:
        svg: the file's text.
        title: plain text; escaped here.
        prefix: as in `element`.
    """
    body = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="([^"]*)"', body)
    assert box is not None
    body = body[body.index(">") + 1 :]
    # Its style sheet would hold for the whole page, and its metadata names addresses.
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    body = body.replace("xlink:href", "href")
    # Several drawings stand on one page, so their ids must differ.
    body = re.sub(r'\bid="([^"]*)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r'url\(#|href="#', lambda m: m.group(0) + prefix + "-", body)
    body = re.sub(r"font-family: [^;\"]*(; )?", "", body)  # the page's own font
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable}, {colour})")
    body = re.sub(r"\n\s*", "\n", body)
    width = float(box.group(1).split()[2])
    # A point is 4 / 3 pixels: no wider than drawn, so that text is never larger than that of the page.
    return (
        f'<svg class="plot" role="img" aria-labelledby="{prefix}-title" viewBox="{box.group(1)}" '
        f'style="max-width: {width * 4 / 3:.0f}px"><title id="{prefix}-title">{html.escape(title)}</title>{body.strip()}'
    )


def marker(x: Sequence[float]) -> str:
    """A dot at every point of `x` [points] while they are few enough to be told apart, else none."""
    return "o" if len(x) <= 25 else ""


def ticks(most: int) -> MaxNLocator:
    """At most `most` ticks, all at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=most, integer=True, steps=[1, 2, 5, 10])


def round_axis(ax: Axes, x: Sequence[float]) -> None:
    """Labels the x axis as rounds; `x` [points] are the rounds drawn, at least one."""
    ax.xaxis.set_major_locator(ticks(8))
    ax.set_xlabel("round")
    if len(set(x)) == 1:
        ax.set_xlim(x[0] - 1, x[0] + 1)  # matplotlib would show a twentieth of a round


def legend(ax: Axes) -> None:
    """Beside the title, above the drawing, where it covers nothing; a single line needs none."""
    handles, _ = ax.get_legend_handles_labels()
    if len(handles) > 1:
        ax.legend(
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=4,
            borderaxespad=0.2,
            handlelength=1.4,
            columnspacing=1.4,
        )


def tilt(labels: Sequence[str], room: int) -> dict[str, Any]:
    """How to write labels under an axis: slanted where they have more characters together than there is room for."""
    longest = max(map(len, labels), default=0)
    slanted = longest > 1 and (longest + 1) * len(labels) > room
    return {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if slanted else {}


def short(text: str, most: int = 16) -> str:
    """`text` in at most `most` characters, none of which turns the direction of writing or breaks the XML."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= most else text[: most - 1] + "…"

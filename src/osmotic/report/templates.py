"""The two Jinja environments of this folder: in HTML everything is escaped, in Markdown every text from a run folder.

A run folder may come from anybody: its class and client names must not become markup of the page or card.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.report import formatting

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def html() -> Environment:
    """The environment of the pages; its filters write figures the same way everywhere, and null as a dash with a title."""
    from jinja2 import ChainableUndefined, Environment, PackageLoader
    from markupsafe import Markup, escape

    null = Markup('<span class="null" title="not measured">—<span class="sr"> not measured</span></span>')

    env = Environment(
        loader=PackageLoader("osmotic", "report"),
        autoescape=True,
        undefined=ChainableUndefined,  # a field that is missing reads like one that is null
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def text_of(write: Callable[[Any], str]) -> Callable[[Any], Markup]:
        def told(value: Any) -> Markup:
            text = formatting.DASH if _missing(value) else write(value)
            return null if text == formatting.DASH else escape(text)

        return told

    env.filters |= {
        "count": text_of(formatting.count),
        "figure": text_of(formatting.figure),
        "bytesize": text_of(formatting.size),
        "told": text_of(str),
    }
    env.globals["css"] = Markup((Path(__file__).parent / "style.css").read_text(encoding="utf-8"))
    env.globals["svg"] = Markup  # only ever called on drawings of svg.py, which escapes what it is given
    return env


def markdown() -> Environment:
    """The environment of the model card; what is told of a run goes through its filter `md`, or one for figures."""
    from jinja2 import ChainableUndefined, Environment, PackageLoader, Undefined

    env = Environment(
        loader=PackageLoader("osmotic", "report"),
        autoescape=False,  # Markdown, not HTML: every text of the run goes through `md`
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda v: "" if v is None else v,
    )
    env.filters |= {
        "md": lambda v: escape_markdown(formatting.DASH if _missing(v) else str(v)),
        "count": lambda v: formatting.count(None if isinstance(v, Undefined) else v),
        "figure": lambda v: formatting.figure(None if isinstance(v, Undefined) else v),
        "bytesize": lambda v: formatting.size(None if isinstance(v, Undefined) else v),
    }
    return env


def _missing(value: Any) -> bool:
    from jinja2 import Undefined

    # Undefined first: compared with anything it is an error or True, by its class.
    return isinstance(value, Undefined) or value is None or value == ""


def escape_markdown(text: str) -> str:
    """Plain text that stays plain in Markdown: no markup, no HTML, no table cell or line break of its own."""
    flat = " ".join(text.split())
    # Marks first, as the entities after them bring none in; of those, & first, as the others begin with it.
    return (
        re.sub(r"([\\`*_\[\]|~#])", r"\\\1", flat)
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
    )

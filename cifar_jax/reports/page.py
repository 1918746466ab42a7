"""Builds a self-contained HTML page: no scripts, nothing loaded from the network."""

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

# The page may use only what it contains: should the name of a file or a class ever get through as a
# tag, it can neither run nor load anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --ground: #f3f4f6; --card: #ffffff; --ink: #22262b;
  --soft: #5b636d; --line: #d9dce0; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #121417; --card: #1b1e23; --ink: #e4e6e9; --soft: #a3abb5; --line: #3d434b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 90rem; padding: 1rem; background: var(--ground);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
p { margin: .25rem 0; max-width: 46rem; }
.soft, figcaption { color: var(--soft); font-size: .875rem; }
.tiles { display: grid; gap: .75rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); }
.pictures { columns: 22rem; column-gap: 1rem; }
.pictures:has(> .card:nth-child(4):last-child) { columns: 22rem 2; }
.pictures .card { break-inside: avoid; margin: 0 0 1rem; }
.card, .tile, details { background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; padding: .75rem 1rem; margin: 0; min-width: 0; }
.paper { background: #fff; --soft: #5b636d; color: #22262b; }
.tile b { display: block; font-size: 1.35rem; font-weight: 600; }
a { color: inherit; }
img { display: block; width: 100%; max-width: 30rem; height: auto; margin: 0 auto .5rem; }
details { margin: .75rem 0; } summary { cursor: pointer; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; margin: .5rem 0; }
th, td { text-align: left; padding: .2rem 1.25rem .2rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .875rem; margin: .5rem 0; }
pre span { display: inline-block; max-width: 100%; }
@media (max-width: 30rem) { body, .card, details { padding: .5rem; }
  table { font-size: .8125rem; } th, td { padding-right: .6rem; }
  th, th.number { white-space: normal; }
  pre { font-size: .75rem; } }
"""


class Picture(NamedTuple):
    """A picture on a light and on a dark background, as PNGs.

    Attributes:
      name: the file's name, without ".png".
      title: the text above the picture.
      caption: the text below the picture.
      light: the PNG for a light page.
      dark: the PNG for a dark page.
    """

    name: str
    title: str
    caption: str
    light: bytes
    dark: bytes


def page(title: str, lead: str, parts: Iterable[str]) -> str:
    """Returns the page's HTML; the parts are HTML, the title and the lead are plain text."""
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<h1>{escape(title)}</h1>\n{paragraph(lead)}",
            *parts,
            "</body>\n</html>\n",
        ]
    )


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Returns (name, value) pairs as a row of tiles."""
    cells = (
        f'<div class="tile"><span class="soft">{escape(name)}</span><b>{escape(value)}</b></div>'
        for name, value in values
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def pictures(title: str, shown: Sequence[Picture]) -> str:
    """Returns a section with pictures, in as many columns as there is room for.

    One that has no dark version is on white on a dark page too.
    """
    cards = []
    for picture in shown:
        light, dark = (
            f"data:image/png;base64,{base64.b64encode(png).decode()}"
            for png in (picture.light, picture.dark)
        )
        kind = "card paper" if light == dark else "card"
        cards.append(
            f'<figure class="{kind}"><h3>{escape(picture.title)}</h3><picture>'
            f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img src="{light}" alt="{escape(picture.title)}"></picture>'
            f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        )
    return f'<h2>{escape(title)}</h2>\n<div class="pictures">{"".join(cards)}</div>'


def paragraph(text: str) -> str:
    """Returns a line of text."""
    return f'<p class="soft">{escape(text)}</p>'


def link(path: str, text: str) -> str:
    """Returns a paragraph that links to a file beside the page."""
    return f'<p><a href="{escape(path)}">{escape(text)}</a></p>'


def fold(title: str, content: str, opened: bool = False) -> str:
    """Returns HTML below a title that a click opens and closes."""
    state = " open" if opened else ""
    return f"<details{state}><summary>{escape(title)}</summary>{content}</details>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: int = 0) -> str:
    """Returns a table; the last `numbers` columns are aligned to the right."""
    kinds = ["" if place < len(head) - numbers else ' class="number"' for place in range(len(head))]

    def line(tag: str, cells: Sequence[object]) -> str:
        return "".join(
            f"<{tag}{kind}>{escape(str(cell))}</{tag}>"
            for kind, cell in zip(kinds, cells, strict=True)
        )

    body = "\n".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{line("th", head)}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def code(text: str) -> str:
    """Returns lines of code, which a narrow page breaks only between words."""
    words = re.sub(r"\S+", r"<span>\g<0></span>", escape(text))
    return f"<pre>{words}</pre>"

"""A report as one HTML page that needs nothing else: no other file, no network and no script.

The frame and its style are in page.html; texts are escaped, pictures are embedded.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

_TEMPLATE = Path(__file__).with_suffix(".html")
_MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg"}


@dataclass(frozen=True)
class Picture:
    """A picture file and what it shows; a wide one takes the page's whole width."""

    path: Path
    caption: str
    wide: bool = False


def page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """Put sections, made by the functions below, into the frame."""
    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), subtitle=escape(subtitle), sections="\n".join(sections))


def cards(values: Mapping[str, Any]) -> str:
    """The most important numbers, large."""
    items = (f"<div><dt>{escape(key)}</dt><dd>{_text(value)}</dd></div>" for key, value in values.items())
    return f'<dl class="cards">{"".join(items)}</dl>'


def table(heading: str, note: str, rows: Sequence[Mapping[str, Any]], *, shares: Sequence[str] = ()) -> str:
    """Rows under the keys of the first; the columns `shares`, numbers from 0 to 1, are shown as bars as well."""
    head = "".join(f'<th scope="col">{escape(key)}</th>' for key in rows[0])
    body = "\n".join(
        f"<tr>{''.join(_cell(value, bar=key in shares) for key, value in row.items())}</tr>" for row in rows
    )
    content = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
    return f"<section><h2>{escape(heading)}</h2><p>{escape(note)}</p>{content}</section>"


def settings(heading: str, values: Mapping[str, Any]) -> str:
    """Names and values, folded until they are wanted."""
    rows = "\n".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(str(value))}</td></tr>' for key, value in values.items()
    )
    content = f'<div class="scroll"><table class="settings"><tbody>\n{rows}\n</tbody></table></div>'
    return f"<details><summary>{escape(heading)}</summary>{content}</details>"


def gallery(heading: str, pictures: Sequence[Picture]) -> str:
    """Pictures with their captions."""
    content = f'<div class="pictures">{"".join(map(_figure, pictures))}</div>' if pictures else "<p>None.</p>"
    return f"<section><h2>{escape(heading)}</h2>{content}</section>"


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    source = f"data:{_MEDIA_TYPES[picture.path.suffix]};base64,{data}"
    caption = escape(picture.caption)
    return (
        f'<figure{" class=wide" if picture.wide else ""}><img src="{source}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def _cell(value: Any, *, bar: bool) -> str:
    if bar and math.isfinite(value):
        return f'<td class="share" style="--share: {min(max(value, 0), 1):.3f}">{_text(value)}</td>'
    return f"<td>{_text(value)}</td>"


def _text(value: Any) -> str:
    """A number with three digits behind the point, a dash for one that is not, and any text escaped."""
    if isinstance(value, float):
        return f"{value:.3f}" if math.isfinite(value) else "-"
    return escape(str(value))

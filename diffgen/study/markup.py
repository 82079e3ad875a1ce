"""One self-contained HTML page: no scripts, no network, every text escaped.

Figures are inline SVG, or PNG in base64; the style is inline. What is not markup of this module
goes through `escape`.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from diffgen.study.answer import Table

STYLE = """
:root { --ink: #1c1c1c; --faint: #666; --line: #ddd; --blue: #0072b2; --orange: #d55e00; }
body { color: var(--ink); background: #fff; font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 62rem; padding: 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { border-top: 1px solid var(--line); font-size: 1.3rem; margin: 2.2rem 0 .4rem;
  padding-top: 1.2rem; }
h3 { font-size: 1rem; margin: 1.3rem 0 .3rem; }
p { margin: .4rem 0; } .faint, figcaption, caption { color: var(--faint); font-size: .9rem; }
.verdict { background: #f2f7fb; border-left: 4px solid var(--blue); margin: .8rem 0;
  padding: .6rem .9rem; }
.partial { background: #fff4ec; border-left: 4px solid var(--orange); margin: .8rem 0;
  padding: .6rem .9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .93rem; margin: .6rem 0; }
caption { caption-side: bottom; padding-top: .3rem; text-align: left; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .8rem .25rem 0; text-align: right;
  vertical-align: top; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child, table.text th, table.text td { text-align: left; }
figure { margin: 1rem 0; } figure svg, figure img { height: auto; max-width: 100%; }
code { font-size: .88em; overflow-wrap: anywhere; } ul { padding-left: 1.2rem; }
""".strip()


def escape(text: str) -> str:
    """A text where markup is expected.

    Example:
        >>> escape('a < b & "c"')
        'a &lt; b &amp; &quot;c&quot;'
    """
    return html.escape(text, quote=True)


def element(tag: str, content: str, **attributes: str) -> str:
    """An element around markup; ``class_`` is the attribute ``class``.

    Example:
        >>> element("p", escape("1 < 2"), class_="faint")
        '<p class="faint">1 &lt; 2</p>'
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
    )
    return f"<{tag}{given}>{content}</{tag}>"


def paragraphs(texts: Iterable[str], **attributes: str) -> str:
    """A paragraph for each text."""
    return "\n".join(element("p", escape(text), **attributes) for text in texts)


def bullets(texts: Sequence[str]) -> str:
    """A list of texts."""
    return element("ul", "\n".join(element("li", escape(text)) for text in texts))


def table(content: Table, **attributes: str) -> str:
    """A table with its caption.

    Raises:
        ValueError: If a row has not as many cells as there are columns.
    """
    head = element("tr", "".join(element("th", escape(c), scope="col") for c in content.columns))
    rows = []
    for row in content.rows:
        if len(row) != len(content.columns):
            raise ValueError(f"a row must have {len(content.columns)} cells, got {len(row)}: {row}")
        rows.append(element("tr", "".join(element("td", escape(cell)) for cell in row)))
    caption = element("caption", escape(content.caption)) if content.caption else ""
    body = element("thead", head) + element("tbody", "\n".join(rows))
    return element("div", element("table", caption + body, **attributes), class_="wide")


def figure(svg: str, caption: str) -> str:
    """A figure with its caption; ``svg`` is markup."""
    return element("figure", svg + element("figcaption", escape(caption)))


def page(title: str, body: str) -> str:
    """The whole page around a body of markup."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing is loaded and nothing runs, whatever a browser finds in the page.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )

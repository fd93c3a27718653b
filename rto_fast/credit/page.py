"""Heat maps as a page of their own."""

from collections.abc import Sequence
from html import escape

from rto_fast.evaluate.heatmap import MAX_TITLE, Heatmap, scale_of, visible
from rto_fast.evaluate.heatmap_html import CSS, html

_PAGE_CSS = """
:root{color-scheme:light dark}
body{font:1rem/1.5 system-ui,sans-serif;max-width:52rem;margin:0 auto;padding:1rem 1.5rem;overflow-x:hidden;
background:light-dark(#fff,#16181c);color:light-dark(#1b1b1b,#e6e6e6)}
h1{font-size:1.4rem}
.hm-legend{display:inline-block;width:8rem;height:.8rem;vertical-align:middle;border-radius:.2rem;
background:linear-gradient(90deg,rgb(214 69 48/.75),transparent,rgb(46 117 201/.75))}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.1rem .6rem .1rem 0;text-align:left}
"""


def page(heatmaps: Sequence[Heatmap], *, title: str = "Token rewards", before: str = "") -> str:
    """A self-contained page (no script, no network) of all maps on one scale; `before` is HTML of the caller's own."""
    scale, name = scale_of(heatmaps), escape(visible(title, MAX_TITLE))
    legend = (
        f'<p>{-scale:+.3f} <span class="hm-legend" role="img" aria-label="colour scale from blamed to credited"></span>'
        f" {scale:+.3f} per token. Hover, tap or tab to a token for its number; known wrong tokens are underlined.</p>"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{name}</title><style>{_PAGE_CSS}{CSS}</style></head><body><h1>{name}</h1>\n{before}\n"
        + (legend if heatmaps else "")
        + "\n".join(["", *(html(h, scale=scale) for h in heatmaps), "</body></html>\n"])
    )

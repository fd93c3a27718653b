"""Heat maps as HTML: a token's colour is its reward over a scale, from -1 (blamed: red) to +1 (credited: blue)."""

import math
from html import escape

from rto_fast.evaluate.heatmap import MAX_TITLE, Heatmap, left_out, prompt_lines, scale_of, shown_tokens, visible


def html(heatmap: Heatmap, *, scale: float | None = None) -> str:
    """The map as an escaped fragment for any page that has `CSS` (or rules of its own for the same classes).

    <figure class="hm"> with one <span class="hm-token" style="--v:..."> per token, --v in [-1, 1]; hm-wrong and
    hm-right where the truth is known. The number is in title, in aria-label, and on focus in a bubble (data-r). Only
    the whitespace of the text itself separates the tokens, so that sub-words read as words. `scale`: see `scale_of`.
    """
    scale = scale or scale_of([heatmap])
    parts = []
    for i, space, text in shown_tokens(heatmap):
        number, known = f"{heatmap.rewards[i]:+.3f}", ""
        if heatmap.signs is not None and heatmap.signs[i]:
            known = "wrong" if heatmap.signs[i] < 0 else "right"
        v = max(-1.0, min(1.0, heatmap.rewards[i] / scale))
        said = escape(f"{text}: {number}" + (f", known to be {known}" if known else ""))
        parts.append(
            f'{space}<span class="hm-token{known and f" hm-{known}"}" style="--v:{v:.3f}" tabindex="0" role="img" '
            f'title="{said}" aria-label="{said}" data-r="{number}">{escape(text)}</span>'
            # a line may break behind spaces that are drawn
            + ("<br>" if heatmap.tokens[i].endswith("\n") else "<wbr>" if text == "␣" else "")
        )
    parts += [f' <span class="hm-more">{line}</span>' for line in left_out(heatmap)]
    title, prompt = escape(visible(heatmap.title, MAX_TITLE)), "<br>".join(map(escape, prompt_lines(heatmap.prompt)))
    total = math.fsum(heatmap.rewards)
    return (
        f'<figure class="hm"><figcaption><b>{title}</b> <span class="hm-sum">sum {total:+.3f}</span>'
        f'<span class="hm-prompt">{prompt}</span></figcaption><p class="hm-text">{"".join(parts)}</p></figure>'
    )


CSS = """
.hm{--hm-plus:46 117 201;--hm-minus:214 69 48;margin:0 0 1.5rem}
.hm figcaption{margin-bottom:.35rem}
.hm-sum{float:right;opacity:.7;font-variant-numeric:tabular-nums}
.hm-prompt{display:block;opacity:.75;overflow-wrap:anywhere}
.hm-text{margin:0;line-height:2.1;overflow-wrap:anywhere}
.hm-token{position:relative;unicode-bidi:isolate;padding:.15em 0;border-radius:.15em;
background:linear-gradient(rgb(var(--hm-plus)/calc(max(var(--v),0)*.75)) 0 0),
linear-gradient(rgb(var(--hm-minus)/calc(max(0 - var(--v),0)*.75)) 0 0)}
.hm-wrong{text-decoration:underline wavy 1px;text-underline-offset:.3em}
.hm-token:hover,.hm-token:focus{outline:1px solid currentColor;z-index:1}
.hm-token:hover::after,.hm-token:focus::after{content:attr(data-r);position:absolute;left:50%;bottom:100%;
transform:translateX(-50%);padding:0 .4em;border-radius:.25em;background:#222;color:#fff;line-height:1.6;
font-size:.8rem;white-space:nowrap;font-variant-numeric:tabular-nums;pointer-events:none}
.hm-more{opacity:.7}
"""
"""Rules of a heat map; a page needs them once."""

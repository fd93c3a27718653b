"use strict";
(() => {
  const root = document.documentElement;
  // a file opened from disk may have no storage
  const recall = () => { try { return localStorage.getItem("rto_fast-theme"); } catch { return null; } };
  const keep = (value) => { try { localStorage.setItem("rto_fast-theme", value); } catch { return; } };
  const themes = ["auto", "light", "dark"];
  const button = document.getElementById("theme");
  const dress = (theme) => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    button.textContent = theme;
    button.setAttribute("aria-label", "Theme: " + theme);
    button.dataset.now = theme;
  };
  button.hidden = false;
  dress(themes.includes(recall()) ? recall() : "auto");
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(button.dataset.now) + 1) % themes.length];
    keep(next);
    dress(next);
  });

  const make = (tag, name, parent, text) => {
    const node = document.createElement(tag);
    node.className = name;
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  };

  for (const figure of document.querySelectorAll("figure.chart")) {
    const plot = figure.querySelector(".plot"), area = figure.querySelector(".area");
    const heads = [...figure.querySelectorAll("thead th")];
    const rows = [...figure.querySelectorAll("tbody tr")];
    const flat = figure.classList.contains("plane");
    const order = rows.map((_, i) => i);
    const tip = make("div", "tip", figure), mark = make("i", flat ? "spot" : "cross", area);
    tip.setAttribute("aria-live", "polite");
    let at = -1;
    const hide = () => { tip.hidden = mark.hidden = true; at = -1; };
    const show = (place) => {
      if (place === at || !rows.length) return;
      at = place;
      const row = rows[order[place]], x = Number(row.dataset.x) / 10;
      mark.style.left = x + "%";
      if (flat) mark.style.top = Number(row.dataset.y) / 10 + "%";
      const cells = [...row.children].map((cell) => cell.textContent);
      tip.replaceChildren();
      make("b", "", tip, flat ? cells[0] : cells[0] + " " + heads[0].textContent);
      cells.slice(1).forEach((cell, i) => { if (cell) make("span", heads[i + 1].className, tip, heads[i + 1].textContent + ": " + cell); });
      tip.hidden = mark.hidden = false;
      const box = figure.getBoundingClientRect(), inner = area.getBoundingClientRect();
      const pixel = inner.left - box.left + inner.width * x / 100;
      const left = x > 50 ? pixel - tip.offsetWidth - 14 : pixel + 14;
      tip.style.left = Math.max(0, Math.min(left, box.width - tip.offsetWidth)) + "px";
      // on a phone the tip would hide what it is about
      tip.style.top = (box.width < 500 ? inner.bottom - box.top + 46 : inner.top - box.top + 4) + "px";
    };
    hide();
    const nearest = (event) => {
      const box = area.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * 1000, y = (event.clientY - box.top) / box.height * 1000;
      const off = (row) => {
        const dx = (Number(row.dataset.x) - x) * box.width;
        return flat ? Math.hypot(dx, (Number(row.dataset.y) - y) * box.height) : Math.abs(dx);
      };
      let best = 0;
      order.forEach((row, i) => { if (off(rows[row]) < off(rows[order[best]])) best = i; });
      show(best);
    };
    area.addEventListener("pointermove", nearest);
    area.addEventListener("pointerdown", nearest);
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: at + 1, ArrowLeft: at < 0 ? rows.length - 1 : at - 1, Home: 0, End: rows.length - 1 };
      if (event.key === "Escape") hide();
      if (!(event.key in moves)) return;
      event.preventDefault();
      show(Math.max(0, Math.min(rows.length - 1, moves[event.key])));
    });
  }

  for (const map of document.querySelectorAll(".hm")) {
    const tokens = [...map.querySelectorAll(".hm-token")];
    const out = make("output", "readout", map.parentElement, " ");
    map.after(out);
    tokens.forEach((token, i) => {
      const said = token.dataset.tip || token.title || token.getAttribute("aria-label") || token.textContent;
      token.removeAttribute("title");
      token.setAttribute("aria-label", said);
      // one stop of the tab key per map; the arrow keys go on inside it
      token.tabIndex = i ? -1 : 0;
      const say = () => { out.textContent = said; };
      for (const kind of ["pointerenter", "pointerdown", "focus"]) token.addEventListener(kind, say);
      token.addEventListener("keydown", (event) => {
        const next = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: tokens.length - 1 }[event.key];
        if (next === undefined || !tokens[next]) return;
        event.preventDefault();
        tokens[next].focus();
      });
    });
  }

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details.sample:not([open])")];
    opened.forEach((part) => { part.open = true; });
  });
  addEventListener("afterprint", () => { opened.forEach((part) => { part.open = false; }); });
})();

// Clauses of a verdict as a small drawing.
const SVG = "http://www.w3.org/2000/svg";
function shape(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text != null) node.textContent = text;
  return node;
}

// One row for each clause: where the bound allows, where the effect and its interval are.
function clausesFigure(host, verdict) {
  const own = (verdict.clauses || []).filter((c) => Number.isFinite(c.effect) && Number.isFinite(c.bound));
  if (!own.length) return () => {};
  const draw = () => {
    host.querySelector("svg")?.remove();
    const wide = Math.min(560, host.clientWidth || 560);
    const svg = shape("svg", { viewBox: `0 0 ${wide} ${own.length * 62}`, width: wide, role: "img", "aria-label": "Effect and interval of each clause against its bound" });
    own.forEach((c, i) => {
      const top = i * 62;
      const values = [c.effect, c.low, c.high, c.bound].filter(Number.isFinite);
      const log = Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 10;
      const f = log ? Math.log : (v) => v;
      const low = Math.min(...values.map(f)), high = Math.max(...values.map(f));
      const pad = 0.25 * (high - low || Math.abs(high) || 1);
      const x = (v) => 8 + ((wide - 16) * (f(v) - low + pad)) / (high - low + 2 * pad);
      const bound = x(c.bound);
      const allowed = c.direction.startsWith("<") ? [8, bound - 8] : [bound, wide - 8 - bound];
      svg.append(
        shape("rect", { x: allowed[0], y: top + 18, width: Math.max(0, allowed[1]), height: 18, fill: css("--good"), opacity: 0.14 }),
        shape("line", { x1: 8, x2: wide - 8, y1: top + 27, y2: top + 27, stroke: css("--line") }),
        shape("line", { x1: bound, x2: bound, y1: top + 13, y2: top + 41, stroke: css("--ink"), "stroke-dasharray": "3 2" }),
        shape("text", { x: 8, y: top + 11, "font-size": 12, fill: css("--soft") }, `${short(c.name, Math.floor(wide / 8))}${log ? " (log scale)" : ""}`),
        shape("text", {
          x: Math.min(wide - 45, Math.max(45, bound)), y: top + 52, "font-size": 11, fill: css("--ink"), "text-anchor": "middle",
        }, `bound ${{ "<=": "≤", ">=": "≥" }[c.direction] || c.direction} ${Number(c.bound.toPrecision(6))}`),
      );
      if (Number.isFinite(c.low) && Number.isFinite(c.high)) {
        svg.append(shape("line", { x1: x(c.low), x2: x(c.high), y1: top + 27, y2: top + 27, stroke: css("--accent"), "stroke-width": 4, "stroke-linecap": "round" }));
      }
      svg.append(shape("circle", { cx: x(c.effect), cy: top + 27, r: 5.5, fill: css("--accent"), stroke: css("--card"), "stroke-width": 1.5 }));
    });
    host.prepend(svg);
  };
  return draw;
}

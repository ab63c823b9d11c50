// Curves over epochs, with seed bands and the zero-error line.

// Log-spaced epochs: epoch 0 sits half a step before the first one, and is called start.
function epochAxis(all) {
  const positive = all.filter((e) => e > 0);
  const first = Math.min(...positive), last = Math.max(...positive);
  if (!positive.length || last / first < 20) return { at: (e) => e, axis: { title: "epoch" } };
  const start = first / 2.2;
  const ticks = [];
  for (let power = 1; power <= last; power *= 10) [1, 3].forEach((m) => { if (m * power >= first && m * power <= last) ticks.push(m * power); });
  const values = (all.includes(0) ? [start] : []).concat(ticks);
  return {
    at: (e) => (e > 0 ? e : start),
    axis: {
      title: "epoch", type: "log", tickvals: values, ticktext: values.map((v) => (v === start ? "start" : String(v))),
      range: [Math.log10(all.includes(0) ? start / 1.2 : first / 1.2), Math.log10(last * 1.2)],
    },
  };
}

const RAISED = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
function power(k) {
  if (k >= -3 && k <= 3) return String(Number((10 ** k).toPrecision(1)));
  return `10${String(k).split("").map((c) => RAISED[c]).join("")}`;
}

// From zero, unless all values lie far from it; a log axis has exact zeros on a line of their own at the bottom, and is
// one only where the values span enough of it to carry ticks.
function valueAxis(values, log, title) {
  const finite = values.filter((v) => v != null && Number.isFinite(v));
  const positive = finite.filter((v) => v > 0);
  const [least, most] = finite.length ? [Math.min(...finite), Math.max(...finite)] : [0, 0];
  if (!log || !positive.length || least < 0 || (least > 0 && most < 3 * least)) {
    const near = least > 0.6 * most ? least : Math.min(0, least), far = Math.max(0, most);
    const room = 0.07 * (far - near || 1);
    return { at: (v) => v, axis: { title, range: [near === 0 ? 0 : near - room, far + room] } };
  }
  const low = Math.log10(Math.min(...positive)), high = Math.log10(Math.max(...positive));
  const zeros = finite.includes(0);
  const floor = Math.floor(low - 0.15) - (zeros ? 0.5 : 0);
  const bottom = zeros ? floor - 0.2 : low - 0.08 * Math.max(high - low, 0.5);
  const top = high + 0.08 * Math.max(high - low, 0.5);
  const steps = high - low > 6 ? 2 : 1;
  const ticks = [];
  for (let k = Math.floor(low); k <= Math.ceil(high); k += steps) ticks.push([10 ** k, power(k)]);
  if (high - low < 1.4) {
    for (let k = Math.floor(low); k <= Math.ceil(high); k += 1) {
      [2, 5].forEach((m) => ticks.push([m * 10 ** k, String(Number((m * 10 ** k).toPrecision(1)))]));
    }
  }
  if (zeros) ticks.push([10 ** floor, "0"]);
  return {
    at: (v) => (v === 0 ? 10 ** floor : v),
    axis: { title, type: "log", range: [bottom, top], tickvals: ticks.map((t) => t[0]), ticktext: ticks.map((t) => t[1]) },
  };
}

function panelFigure(host, panel, layer) {
  const many = data.groups.length > 1;
  const drawn = [];
  const lacking = new Set();
  panel.lines.forEach((line, i) => data.groups.forEach((group, g) => {
    const name = `${line.metric}|${line.split}|${layer}`;
    const curve = group.curves[name];
    if (curve) drawn.push({ line, i, group, g, curve });
    else lacking.add(group.why[name] || `no run holds ${line.metric}`);
  }));
  const box = el("div", { class: "panel" }, el("h3", {}, panel.title));
  host.append(box);
  if (!drawn.length) {
    box.append(missing(...lacking));
    return () => {};
  }
  const node = el("div", { class: "plot", id: `${panel.id}-plot` });
  box.append(node);
  const zeros = data.groups.map((group, g) => [group.zero, g]).filter(([z]) => z);
  return () => {
    const x = epochAxis([...new Set(drawn.flatMap((d) => d.curve.x))]);
    // The means decide the scale: the band of few seeds is wider than everything else.
    const y = valueAxis(drawn.flatMap((d) => d.curve.y), panel.log, panel.unit);
    const [bottom, top] = y.axis.type === "log" ? y.axis.range.map((r) => 10 ** r) : y.axis.range;
    const traces = [];
    if (many) {
      panel.lines.forEach((line, i) => { if (drawn.some((d) => d.i === i)) traces.push({
        x: [null], y: [null], mode: "lines", name: line.label, legendgroup: String(i), visible: line.main || "legendonly",
        line: { color: css("--soft"), dash: DASHES[i], width: 2 },
      }); });
    }
    drawn.forEach(({ line, i, group, g, curve }) => {
      const tone = colour(many ? g : i);
      const shared = { legendgroup: String(i), visible: !many || line.main || "legendonly" };
      const at = curve.x.map(x.at);
      if (curve.low) {
        const bound = (values) => values.map((v, j) => Math.min(top, Math.max(bottom, y.at(v ?? curve.y[j]))));
        traces.push({
          ...shared, x: [...at, ...at.slice().reverse()], y: [...bound(curve.high), ...bound(curve.low).reverse()], fill: "toself",
          fillcolor: faint(tone, line.main ? 0.18 : 0.06), line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false,
        });
      }
      traces.push({
        ...shared, x: at, y: curve.y.map((v) => (v == null ? null : y.at(v))), mode: "lines+markers", showlegend: !many,
        name: line.label, line: { color: tone, width: 2, dash: DASHES[i % DASHES.length] },
        marker: { symbol: LINE_MARKERS[i % LINE_MARKERS.length], size: 6, color: tone },
        text: curve.x.map((e, j) => `${esc(group.label, 40)}<br>${line.label}, epoch ${e}: ${curve.y[j] ?? "undefined"}`
          + (curve.low && curve.low[j] != null ? `<br>95 % interval ${curve.low[j]} to ${curve.high[j]}, ${curve.n} seeds` : "")),
        hovertemplate: "%{text}<extra></extra>",
      });
    });
    const shapes = [], annotations = [];
    zeros.forEach(([zero, g]) => {
      const tone = many ? colour(g) : css("--soft");
      shapes.push({
        type: "line", x0: x.at(zero[1]), x1: x.at(zero[1]), yref: "paper", y0: 0, y1: 1, line: { color: tone, width: 1.2, dash: "dot" },
      });
      if (zero[2] > zero[0]) shapes.push({
        type: "rect", x0: x.at(zero[0]), x1: x.at(zero[2]), yref: "paper", y0: 0, y1: 1, line: { width: 0 }, fillcolor: faint(tone.length === 7 ? tone : "#888888", 0.12),
      });
    });
    if (zeros.length) annotations.push({
      x: x.axis.type === "log" ? Math.log10(x.at(zeros[0][0][1])) : zeros[0][0][1], y: 1, yref: "paper", text: "zero error", showarrow: false, xanchor: "left",
      yanchor: "bottom", font: { size: 11, color: css("--soft") },
    });
    const listed = [...new Set(drawn.map((d) => d.line.label))];
    const { room, legend } = foot(listed.length > 1 ? listed : [], node.clientWidth);
    plot(node, traces, {
      height: 262 + room, margin: { l: 56, r: 14, t: 18, b: 46 + room }, legend, showlegend: listed.length > 1,
      xaxis: axis(x.axis), yaxis: axis(y.axis), shapes, annotations,
    }, `${panel.title} over epochs`);
  };
}

function groupKeys() {
  if (data.groups.length < 2 && data.groups[0].seeds < 2) return null;
  const list = el("ul", { class: "keys", "aria-label": "Runs" });
  data.groups.forEach((group, g) => {
    const swatch = el("span", { class: "swatch" });
    swatch.style.borderTopColor = data.groups.length > 1 ? colour(g) : css("--soft");
    list.append(el("li", {}, swatch, `${group.label}: ${group.told}`));
  });
  return list;
}

function panels(host, section, withLayers) {
  const own = data.panels.filter((p) => p.section === section);
  if (!own.length) return () => {};
  const keys = el("div");
  const grid = el("div", { class: "panels" });
  let draws = [];
  const fill = (layer) => {
    grid.replaceChildren();
    draws = own.map((p) => panelFigure(grid, p, layer ?? p.layer));
  };
  const draw = () => {
    const list = groupKeys();
    keys.replaceChildren(...(list ? [list] : []));
    draws.forEach((d) => d());
  };
  if (withLayers) {
    const have = new Set(data.groups.flatMap((g) => Object.keys(g.curves)).filter((n) => n.startsWith("nc1")).map((n) => n.split("|").slice(2).join("|")));
    const names = [...new Set(data.runs.flatMap((r) => r.layers))].filter((n) => have.has(n));
    if (names.length > 1) {
      const start = names.includes("penultimate") ? "penultimate" : names[names.length - 1];
      host.append(el("div", { class: "controls" }, choice("Layer", names.map((n) => [n, n]), start, (n) => { fill(n); draw(); })));
    }
  }
  fill();
  host.append(keys, grid);
  return draw;
}

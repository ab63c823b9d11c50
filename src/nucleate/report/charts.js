// Charts of studies along density, width or whatever else their records hold: curves with seed bands, and heat maps.

function chartFigure(host, chart) {
  const box = el("div", { class: "panel" }, el("h3", {}, chart.title));
  host.append(box);
  if (chart.missing) {
    box.append(missing(chart.missing));
    return () => {};
  }
  const node = el("div", { class: "plot" });
  box.append(node);
  if (chart.seeds) box.append(el("p", { class: "small" }, `${chart.seeds}.`));
  return () => (chart.z ? heatChart(node, chart) : curveChart(node, chart));
}

function curveChart(node, chart) {
  const drawn = chart.curves;
  const y = valueAxis(drawn.flatMap((c) => c.y), chart.logY, chart.yLabel);
  const [bottom, top] = y.axis.type === "log" ? y.axis.range.map((r) => 10 ** r) : y.axis.range;
  // A single number is a name: an axis around it would invent a range.
  const places = new Set(drawn.flatMap((c) => c.x));
  const numeric = places.size > 1 && [...places].every((x) => typeof x === "number");
  const traces = [];
  drawn.forEach((c) => {
    const i = c.tone;
    const tone = colour(i);
    const shared = { legendgroup: String(i), visible: c.main || "legendonly" };
    if (c.low.some((v) => v != null)) {
      const bound = (values) => values.map((v, j) => Math.min(top, Math.max(bottom, y.at(v ?? c.y[j]))));
      traces.push({
        ...shared, x: [...c.x, ...c.x.slice().reverse()], y: [...bound(c.high), ...bound(c.low).reverse()], fill: "toself",
        fillcolor: faint(tone, 0.15), line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false,
      });
    }
    traces.push({
      ...shared, x: c.x, y: c.y.map((v) => (v == null ? null : y.at(v))), mode: "lines+markers", name: esc(c.label, 44),
      line: { color: tone, width: 2, dash: DASHES[Math.floor(i / LIGHT.length) % DASHES.length] },
      marker: { symbol: marker(i), size: 7, color: tone },
      text: c.x.map((x, j) => `${esc(c.label, 44)}, ${esc(chart.xLabel, 30)} ${esc(String(x), 20)}: ${c.y[j] ?? "undefined"}`
        + (c.low[j] != null ? `<br>95 % interval ${c.low[j]} to ${c.high[j]}` : "") + `<br>${c.n[j]} seed${c.n[j] === 1 ? "" : "s"}`),
      hovertemplate: "%{text}<extra></extra>",
    });
  });
  const { room, legend } = foot(drawn.map((c) => short(c.label, 44)), node.clientWidth);
  const log = numeric && chart.logX && drawn.every((c) => c.x.every((x) => x > 0));
  const xs = [...places].sort((a, b) => a - b);
  const [first, last] = [xs[0], xs[xs.length - 1]];
  const apart = (a, b) => Math.log(b / a) >= Math.log(last / first) / 8;
  const shown = xs.reduce((kept, x) => (kept.length === 0 || x === last || (apart(kept[kept.length - 1], x) && apart(x, last)) ? [...kept, x] : kept), []);
  const own = log ? { type: "log", tickvals: shown, ticktext: shown.map((x) => String(Number(x.toPrecision(3)))) } : numeric ? {} : { type: "category" };
  return plot(node, traces, {
    height: 300 + room, margin: { l: 56, r: 14, t: 18, b: 46 + room }, legend, showlegend: true,
    xaxis: axis({ title: chart.xLabel, ...own, ...(chart.reverseX ? { autorange: "reversed" } : {}) }), yaxis: axis(y.axis),
    shapes: (numeric ? chart.marks : []).map((place) => ({
      type: "line", x0: place, x1: place, yref: "paper", y0: 0, y1: 1, line: { color: css("--soft"), width: 1.2, dash: "dot" },
    })),
  }, chart.title);
}

function heatChart(node, chart) {
  const names = (values) => values.map((v) => (typeof v === "number" ? String(Number(v.toPrecision(4))) : esc(v, 20)));
  return plot(node, [{ type: "heatmap", x: names(chart.xs), y: names(chart.ys), z: chart.z, colorscale: "Cividis", hoverongaps: false, colorbar: { thickness: 12 } }], {
    height: 340, margin: { l: 56, r: 14, t: 18, b: 48 }, xaxis: axis({ title: chart.xLabel, type: "category" }), yaxis: axis({ title: chart.yLabel, type: "category" }),
  }, chart.title);
}

function chartsFigure(host, charts) {
  const grid = el("div", { class: "panels" });
  host.append(grid);
  const draws = charts.map((chart) => chartFigure(grid, chart));
  return () => draws.forEach((draw) => draw());
}

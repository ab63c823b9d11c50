// Layers as pictures, as heat maps and by depth; weight histograms; distances to the boundary.
function layersFigure(host, run) {
  const names = run.layers.filter((n) => run.frames.some((f) => f.layers[n]));
  if (!names.length) {
    host.append(missing("the run stored no coordinates of its layers (tensors pca:LAYER)"));
    return () => {};
  }
  const state = { layer: Math.max(0, names.indexOf("penultimate")) };
  const node = el("div", { class: "plot square", id: "layers-plot" });
  const note = el("p", { class: "small" });
  // One scale for all layers and epochs, so that sliders move points and not axes.
  const far = run.frames.flatMap((f) => Object.values(f.layers).flatMap((packed) => rows(packed).flat()))
    .filter(Number.isFinite).reduce((most, v) => Math.max(most, Math.abs(v)), 0);
  const reach = Math.min(2.6, 1.08 * far) || 2.6;
  const draw = () => {
    const frame = run.frames[state.epoch];
    const packed = frame.layers[names[state.layer]];
    const points = packed ? rows(packed) : [];
    const traces = run.classes.map((text, c) => {
      const at = points.filter((_, i) => run.labels[i] === c);
      return {
        x: at.map((p) => p[0]), y: at.map((p) => p[1]), mode: "markers", name: esc(text), text: at.map(() => esc(text, 40)),
        hovertemplate: "%{text}<extra></extra>",
        marker: { symbol: marker(c), color: colour(c), size: 7.5, opacity: 0.85, line: { width: 0.6, color: css("--paper") } },
      };
    });
    const kind = { pca: "principal component", tsne: "t-SNE axis", umap: "UMAP axis" }[data.projection];
    const bare = { showticklabels: false, ticks: "", range: [-reach, reach], zeroline: false };
    const { room, legend } = foot(run.classes.map((n) => short(n)), node.clientWidth);
    plot(node, traces, {
      height: node.clientWidth * 0.95 + room, margin: { l: 34, r: 8, t: 8, b: 40 + room }, legend,
      xaxis: axis({ ...bare, title: `${kind} 1` }), yaxis: axis({ ...bare, title: `${kind} 2`, scaleanchor: "x" }),
    }, `Points of layer ${names[state.layer]} at epoch ${frame.epoch} in two dimensions`);
    note.textContent = `${points.length} training points of ${run.label}, the same at every epoch; axes in units of the `
      + "cloud's root mean square radius" + (packed ? "." : `. Not stored at epoch ${frame.epoch}.`);
  };
  const depth = slider("Layer", names.length, state.layer, (i) => `${short(names[i], 30)} (${i + 1} of ${names.length})`, (i) => {
    state.layer = i;
    draw();
  });
  host.append(el("div", { class: "controls" }, depth), epochs(run, state, draw), node, note);
  return draw;
}

function depthFigure(host, run, prefix, measures) {
  const have = measures.filter((m) => run.depth[m]);
  if (!have.length) {
    host.append(missing(`the run holds no record of ${measures.map((m) => data.labels[m] || m).join(", ")} at two layers or more`));
    return () => {};
  }
  const state = { measure: have[0], split: null };
  const controls = el("div", { class: "controls" });
  const grid = el("div", { class: "panels" });
  const heat = el("div", { class: "plot", id: `${prefix}-heat` });
  const curves = el("div", { class: "plot", id: `${prefix}-curves` });
  const note = el("p", { class: "small" });
  grid.append(el("div", { class: "panel" }, heat), el("div", { class: "panel" }, curves));
  const title = (m) => data.labels[m] || `${data.labels[m.split("@")[0]] || m} (${m.split("@")[1]})`;
  const build = () => {
    const splits = Object.keys(run.depth[state.measure]);
    if (!splits.includes(state.split)) state.split = splits[0];
    controls.replaceChildren();
    if (have.length > 1) controls.append(choice("Measure", have.map((m) => [m, title(m)]), state.measure, (m) => {
      state.measure = m;
      build();
      controls.querySelector("select").focus();
      draw();
    }));
    controls.append(choice("Points", splits.map((s) => [s, s === "test" ? "held-out" : "training"]), state.split, (s) => { state.split = s; draw(); }));
  };
  const draw = () => {
    const table = run.depth[state.measure][state.split];
    const ticks = { tickvals: table.layers.map((_, i) => i), ticktext: distinct(table.layers, 16).map((n) => esc(n)) };
    const flat = table.values.flat().filter((v) => v != null);
    const share = flat.every((v) => v >= 0 && v <= 1);
    const chance = (table.chance || []).flat().filter((v) => v != null);
    const when = table.epochs.map((_, i) => i);
    const low = share ? Math.min(...flat, ...chance) : Math.min(...flat), high = share ? 1 : Math.max(...flat);
    const step = Math.ceil(table.epochs.length / (narrow.matches ? 6 : 12));
    const roomy = flat.length <= 90 && !narrow.matches && node_wide(heat, table.epochs.length);
    plot(heat, [{
      type: "heatmap", x: when, y: ticks.tickvals, z: table.values, colorscale: "Cividis", xgap: 1, ygap: 1,
      zmin: low, zmax: high, hoverongaps: false,
      text: table.values.map((row, i) => row.map((v, j) => `${esc(table.layers[i], 40)}<br>epoch ${table.epochs[j]}: ${v}`)),
      hovertemplate: "%{text}<extra></extra>",
      colorbar: { thickness: 10, outlinewidth: 0, len: 1, tickfont: { size: 11 } },
    }], {
      height: Math.max(300, 110 + 34 * table.layers.length), margin: { l: 60, r: 8, t: 30, b: 48 },
      xaxis: axis({ title: "epoch", tickvals: when.filter((i) => i % step === 0), ticktext: table.epochs.filter((_, i) => i % step === 0).map(String), showgrid: false }),
      yaxis: axis({ ...ticks, showgrid: false }),
      annotations: (table.epochs.includes(run.zero) ? [{
        x: table.epochs.indexOf(run.zero), y: 1, yref: "paper", yanchor: "bottom", text: "zero error ▾", showarrow: false, font: { size: 11, color: css("--soft") },
      }] : []).concat(roomy ? cells(table.values, low, high) : []),
    }, `${title(state.measure)}, layers by epochs`);
    const named = run.moments.filter(([, e]) => table.epochs.includes(e));
    const shown = named.length ? named : [["first", table.epochs[0]], ["last", table.epochs[table.epochs.length - 1]]];
    const traces = [];
    shown.forEach(([name, epoch], i) => {
      const j = table.epochs.indexOf(epoch);
      const column = (grid) => grid.map((row) => row[j]);
      const tone = colour([2, 1, 0][i % 3]);
      if (table.low && table.high) {
        const low = column(table.low), high = column(table.high);
        if (low.every((v) => v != null)) traces.push({
          x: [...ticks.tickvals, ...ticks.tickvals.slice().reverse()], y: [...high, ...low.slice().reverse()], fill: "toself",
          fillcolor: faint(tone, 0.18), line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false,
        });
      }
      traces.push({
        x: ticks.tickvals, y: column(table.values), mode: "lines+markers", name: `${name} (epoch ${epoch})`,
        line: { color: tone, width: 2, dash: DASHES[(shown.length - 1 - i) % 3] }, marker: { symbol: LINE_MARKERS[i % 4], size: 8, color: tone },
        hovertemplate: `${name}, epoch ${epoch}: %{y:.3g}<extra></extra>`,
      });
    });
    if (chance.length) traces.push({
      x: ticks.tickvals, y: table.chance.map((row) => row[row.length - 1]), mode: "lines", name: "chance",
      line: { color: css("--soft"), width: 1.5, dash: "dot" }, hovertemplate: "chance %{y:.3g}<extra></extra>",
    });
    const effective = prefix === "depth" && state.measure === "ncc_accuracy" ? effectiveDepth(table) : null;
    const { room, legend } = foot(traces.filter((t) => t.name && t.showlegend !== false).map((t) => t.name), curves.clientWidth);
    const longest = Math.max(...table.layers.map((n) => short(n, 16).length));
    const slanted = longest * 7.5 * table.layers.length > curves.clientWidth - 70;
    const below = slanted ? 16 + longest * 5.2 : 46;
    plot(curves, traces, {
      height: Math.max(300, 60 + 34 * table.layers.length) + room, margin: { l: 56, r: 14, t: 30, b: below + room },
      xaxis: axis({ ...ticks, title: slanted ? "" : "layer", range: [-0.3, table.layers.length - 0.7], automargin: false, tickangle: slanted ? 40 : 0 }),
      yaxis: axis({ title: title(state.measure), ...(share ? { range: [Math.min(0, ...flat), 1.03] } : {}) }),
      legend,
      shapes: effective == null ? [] : [{
        type: "line", x0: effective, x1: effective, yref: "paper", y0: 0, y1: 1, line: { color: css("--soft"), width: 1.2, dash: "dash" },
      }],
      annotations: effective == null ? [] : [{
        x: effective, y: 1, yref: "paper", yanchor: "bottom", text: "effective depth", showarrow: false, font: { size: 11, color: css("--soft") },
      }],
    }, `${title(state.measure)} by layer`);
    note.textContent = `${run.label}, ${state.split === "test" ? "held-out" : "training"} points.`
      + (table.low ? " Bands: 95 % interval over points." : "") + (chance.length ? " Dotted: chance level." : "")
      + (effective == null ? "" : " Effective depth: the first layer from which the nearest class mean is within 1 point of the last hidden layer, at the end.");
  };
  host.append(controls, grid, note);
  build();
  return draw;
}

// Numbers in the cells, light on the dark half of Cividis and dark on the light half.
function cells(values, low, high) {
  return values.flatMap((row, i) => row.map((v, j) => (v == null ? null : {
    x: j, y: i, text: String(Number(v.toPrecision(2))), showarrow: false,
    font: { size: 11, color: (v - low) / (high - low || 1) > 0.5 ? "#101418" : "#ffffff" },
  })).filter(Boolean));
}

const node_wide = (node, columns) => node.clientWidth / (columns + 2) > 34;

function effectiveDepth(table) {
  const last = table.epochs.length - 1;
  const column = table.values.map((row) => row[last]);
  const home = table.layers.lastIndexOf("penultimate");
  const target = column[home >= 0 ? home : column.length - 1];
  if (target == null) return null;
  const end = home >= 0 ? home : column.length - 1;
  let first = end;
  while (first > 0 && column[first - 1] != null && column[first - 1] >= target - 0.01) first -= 1;
  return first;
}

function weightsFigure(host, run) {
  const names = Object.keys(run.histograms);
  if (!names.length) {
    host.append(missing("the run stored no weight histograms (tensors hist:PARAMETER)"));
    return () => {};
  }
  const state = { name: names[0] };
  const node = el("div", { class: "plot", id: "weights-plot" });
  const note = el("p", { class: "small" });
  const draw = () => {
    const series = run.histograms[state.name];
    const { room, legend } = foot(series.map((h) => `${h.when} (epoch ${h.epoch})`), node.clientWidth);
    plot(node, series.map((h, i) => {
      const tone = colour([2, 1, 0][i % 3]);
      return {
        x: h.edges, y: [...h.density, h.density[h.density.length - 1]].map((v) => v || null), mode: "lines",
        name: `${h.when} (epoch ${h.epoch})`, line: { shape: "hv", color: tone, width: 2, dash: DASHES[(series.length - 1 - i) % 3] },
        hovertemplate: `${esc(h.when)}: w = %{x:.3g}, density %{y:.3g}<extra></extra>`,
      };
    }), {
      height: 310 + room, margin: { l: 56, r: 14, t: 18, b: 46 + room }, legend, xaxis: axis({ title: "weight" }),
      yaxis: axis({ ...valueAxis(series.flatMap((h) => h.density).filter((v) => v > 0), true, "").axis, title: "density (log)" }),
    }, `Histogram of ${state.name}`);
    note.textContent = `${series[0].n.toLocaleString("en")} weights of ${state.name}, ${run.label}; both axes share one scale over training.`;
  };
  host.append(el("div", { class: "controls" }, choice("Parameter", names.map((n) => [n, n]), state.name, (n) => { state.name = n; draw(); })), node, note);
  return draw;
}

function boundaryFigure(host, run) {
  const frames = run.frames.filter((f) => f.boundary);
  if (!frames.length) {
    host.append(missing("the run stored no distances to the boundary (tensor boundary)"));
    return () => {};
  }
  const held = { ...run, frames };
  const state = {};
  const node = el("div", { class: "plot", id: "boundary-plot" });
  const note = el("p", { class: "small" });
  const draw = () => {
    const frame = frames[state.epoch];
    const values = rows(frame.boundary).map((r) => r[0]);
    const traces = run.classes.map((text, c) => {
      const at = values.map((v, i) => [v, i]).filter(([, i]) => run.labels[i] === c);
      return {
        x: at.map(([, i]) => c + 0.55 * jitter(i)), y: at.map(([v]) => v), mode: "markers", showlegend: false,
        text: at.map(([v]) => `${esc(text, 40)}: ${v.toPrecision(3)}`), hovertemplate: "%{text}<extra></extra>",
        marker: { symbol: marker(c), color: colour(c), size: 6, opacity: 0.8, line: { width: 0.5, color: css("--paper") } },
      };
    });
    const far = Math.max(0, ...values.filter(Number.isFinite)), near = Math.min(0, ...values.filter(Number.isFinite));
    plot(node, traces, {
      height: 340,
      xaxis: axis({ title: "class", tickvals: run.classes.map((_, c) => c), ticktext: distinct(run.classes, 12).map((t) => esc(t)), showgrid: false, zeroline: false, range: [-0.7, run.classes.length - 0.3] }),
      yaxis: axis({ title: "signed distance to the boundary", range: [near - 0.05 * (far - near), far + 0.08 * (far - near)], zeroline: true, zerolinewidth: 2, zerolinecolor: css("--soft") }),
    }, `Signed distance of each point to its class's boundary at epoch ${frame.epoch}`);
    note.textContent = `${values.length} training points of ${run.label}; below the line at 0 a point lies on the wrong side. The scale follows the epoch.`;
  };
  host.append(epochs(held, state, draw), node, note);
  return draw;
}

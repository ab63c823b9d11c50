// The simplex of two, three or four chosen classes: softmax outputs, logits, or features on the nearest ETF.
const CORNERS = {
  2: [[-0.5], [0.5]],
  3: [[-0.5, -Math.sqrt(3) / 6], [0.5, -Math.sqrt(3) / 6], [0, Math.sqrt(3) / 3]],
  4: [
    [-0.5, -Math.sqrt(3) / 6, -Math.sqrt(6) / 12], [0.5, -Math.sqrt(3) / 6, -Math.sqrt(6) / 12],
    [0, Math.sqrt(3) / 3, -Math.sqrt(6) / 12], [0, 0, Math.sqrt(6) / 4],
  ],
};
const SHAPES = { 2: "segment", 3: "triangle", 4: "tetrahedron" };
const SOURCES = {
  simplex: {
    field: "probs", what: "Softmax outputs",
    note: "Projected orthogonally: probability given to classes that are not chosen pulls a point to the centre.",
  },
  logits: {
    field: "logits", what: "Logits",
    note: "Projected orthogonally, in the units of the logits; the small simplex has the unit vectors as corners.",
  },
  etf: {
    field: "etf", what: "Penultimate features",
    note: "Projected orthogonally, in units of the nearest ETF's radius at that epoch; weights are scaled to that radius.",
  },
};

function place(score, chosen, renormalise) {
  const corners = CORNERS[chosen.length];
  let weights = chosen.map((c) => score[c]);
  if (renormalise) {
    const sum = weights.reduce((a, b) => a + b, 0);
    weights = weights.map((w) => w / sum);
  }
  return corners[0].map((_, j) => weights.reduce((total, w, i) => total + w * corners[i][j], 0));
}

// Index whose jitter is 0: marks lie in the middle of their lane.
const MIDDLE = 0.5 / 0.618033988749895;

function jitter(i) {
  return ((i * 0.618033988749895) % 1) - 0.5;
}

// Screen position of a point: a lane for each class on the segment, a turned view in space.
function screen(state, point, lane, i) {
  if (point.length === 1) return [point[0], -0.22 * lane + 0.12 * jitter(i), 0];
  if (point.length === 2) return [point[0], point[1], 0];
  const [x, y, z] = point;
  const { azimuth: a, elevation: e } = state;
  const deep = x * Math.sin(a) + y * Math.cos(a);
  return [x * Math.cos(a) - y * Math.sin(a), z * Math.cos(e) + deep * Math.sin(e), z * Math.sin(e) - deep * Math.cos(e)];
}

function simplexFigure(host, run, name) {
  const source = SOURCES[name];
  const frames = run.frames.filter((f) => f[source.field]);
  if (!frames.length) {
    host.append(missing(run.notDrawn[source.field]));
    return () => {};
  }
  const held = { ...run, frames };
  const count = rows(frames[0][source.field])[0].length;
  const sizes = [2, 3, 4].filter((k) => k <= count);
  const state = { size: Math.min(3, count), chosen: [], all: false, renormalise: false, azimuth: 0.5, elevation: 0.25 };
  const controls = el("div", { class: "controls" });
  const node = el("div", { class: "plot square", id: `${name}-plot`, tabindex: "0" });
  const hint = el("p", { class: "small" });
  const ranges = new Map();

  function range() {
    const key = state.chosen.join();
    if (name === "simplex") return 0.78;
    if (!ranges.has(key)) {
      const far = frames.flatMap((f) => rows(f[source.field])
        .filter((_, i) => state.chosen.includes(run.labels[i]))
        .map((r) => Math.hypot(...place(r, state.chosen, false)))).filter(Number.isFinite).sort((a, b) => a - b);
      const reach = far[Math.floor(0.97 * (far.length - 1))] || 1;
      ranges.set(key, name === "etf" ? Math.min(1.6, Math.max(0.8, reach)) : Math.max(0.9, far[far.length - 1] * 1.2 || 1));
    }
    return ranges.get(key);
  }

  function skeleton() {
    const corners = CORNERS[state.size];
    const at = corners.map((c) => screen(state, c, -0.8, MIDDLE));
    const lines = [];
    for (let i = 0; i < corners.length; i += 1) {
      for (let j = i + 1; j < corners.length; j += 1) {
        const back = at[i][2] + at[j][2] < -0.3;
        lines.push({
          x: [at[i][0], at[j][0]], y: [at[i][1], at[j][1]], mode: "lines", hoverinfo: "skip", showlegend: false,
          line: { color: css("--soft"), width: back ? 1 : 1.5, dash: back ? "dot" : "solid" },
        });
      }
    }
    const tight = range() > 2;
    const labels = {
      x: at.map((p) => p[0]), y: at.map((p) => p[1]), mode: "markers+text",
      text: state.chosen.map((c) => (tight ? "" : esc(run.classes[c], 14))), hoverinfo: "skip", showlegend: false,
      textposition: at.map((p) => (p[1] > 0 ? "top center" : "bottom center")),
      marker: { symbol: "circle-open", size: tight ? 5 : 9, color: css("--ink"), line: { width: 1.5 } },
      textfont: { size: 13, color: css("--ink") }, cliponaxis: false,
    };
    return [...lines, labels];
  }

  function cloud(points, keep, lane, look) {
    const at = points.map((p, i) => (keep(i) ? [...screen(state, p, lane, i), i] : null)).filter(Boolean);
    return {
      x: at.map((p) => p[0]), y: at.map((p) => p[1]), mode: "markers", hovertemplate: "%{text}<extra></extra>",
      text: at.map((p) => look.text(p[3])), name: look.name, showlegend: look.legend !== false,
      marker: {
        symbol: look.symbol, color: look.colour, opacity: look.opacity,
        size: at.map((p) => look.size * (state.size === 4 ? 1 + 0.55 * Math.max(-1, Math.min(1, p[2] / range())) : 1)),
        line: { width: look.line || 0.6, color: look.edge || css("--paper") },
      },
    };
  }

  function draw() {
    const frame = frames[state.epoch];
    const scores = rows(frame[source.field]);
    const points = scores.map((s) => place(s, state.chosen, state.renormalise));
    const told = (i) => `${esc(run.classes[run.labels[i]] ?? "other", 40)}<br>` + state.chosen.map((c) =>
      `${esc(run.classes[c], 20)}: ${Number(scores[i][c].toPrecision(3))}`).join("<br>");
    const traces = skeleton();
    if (state.all) {
      traces.push(cloud(points, (i) => !state.chosen.includes(run.labels[i]), (state.size - 1) / 2, {
        name: "other classes", text: told, symbol: "circle", colour: css("--soft"), size: 5, opacity: 0.45,
      }));
    }
    state.chosen.forEach((c, lane) => traces.push(cloud(points, (i) => run.labels[i] === c, lane, {
      name: esc(run.classes[c]), text: told, symbol: marker(c), colour: colour(c), size: 8, opacity: 0.85,
    })));
    if (name === "etf") traces.push(...directions(frame));
    if (name === "logits" && state.size > 2 && range() > 2) traces.push(names(points));
    const reach = range();
    const span = state.size === 4 ? [-0.86, 0.98] : name === "simplex" ? [-0.55, 0.88] : [-0.78, 1.04];
    plot(node, traces, {
      height: state.size === 2 ? 300 : node.clientWidth * ((span[1] - span[0]) / 2) + 56,
      margin: { l: 8, r: 8, t: 8, b: 8 }, dragmode: false,
      legend: { orientation: "h", x: 0.5, xanchor: "center", y: -0.02, yanchor: "top", font: { size: 12 }, itemsizing: "constant" },
      xaxis: { visible: false, range: [-reach, reach], fixedrange: state.size === 4 },
      yaxis: state.size === 2
        ? { visible: false, range: [-0.42, 0.42], fixedrange: true }
        : { visible: false, range: span.map((s) => s * reach), scaleanchor: "x", fixedrange: state.size === 4 },
    }, `${source.what} of ${state.chosen.length} classes at epoch ${frame.epoch}, on a ${SHAPES[state.size]}`);
    node.classList.toggle("turn", state.size === 4);
    hint.textContent = `${run.labels.filter((c) => state.all || state.chosen.includes(c)).length} training points`
      + ` of ${run.label}. ` + (state.renormalise ? "Renormalised: only the chosen classes' probabilities count." : source.note)
      + (state.size === 4 ? " Drag, or use the arrow keys, to turn." : "");
  }

  function names(points) {
    const at = state.chosen.map((c, lane) => {
      const own = points.filter((_, i) => run.labels[i] === c);
      const mean = CORNERS[state.size][0].map((_, j) => own.reduce((sum, p) => sum + p[j], 0) / own.length);
      const far = Math.hypot(...mean) || 1;
      const outside = mean.map((m) => m * (1 + (0.13 * range()) / far));
      return screen(state, outside, lane, MIDDLE);
    });
    return {
      x: at.map((p) => p[0]), y: at.map((p) => p[1]), mode: "text", text: state.chosen.map((c) => `<b>${esc(run.classes[c], 14)}</b>`),
      textposition: "middle center", hoverinfo: "skip", showlegend: false,
      textfont: { size: 13, color: css("--ink") }, cliponaxis: false,
    };
  }

  function directions(frame) {
    const neutral = css("--ink");
    const means = rows(frame.etf_means).map((s) => place(s, state.chosen, false));
    const weights = rows(frame.etf_weights).map((s) => place(s, state.chosen, false));
    const origin = screen(state, CORNERS[state.size][0].map(() => 0), (state.size - 1) / 2, MIDDLE);
    const out = state.chosen.map((c, lane) => {
      const tip = screen(state, weights[c], lane, MIDDLE);
      return {
        x: [state.size === 2 ? 0 : origin[0], tip[0]], y: [state.size === 2 ? tip[1] : origin[1], tip[1]],
        mode: "lines+markers", name: "classifier row", legendgroup: "rows", showlegend: lane === 0,
        text: [0, 0].map(() => `classifier row of ${esc(run.classes[c], 40)}`), hovertemplate: "%{text}<extra></extra>",
        line: { color: neutral, width: 1.6 },
        marker: { symbol: "arrow", angleref: "previous", size: [0, 12], color: neutral },
      };
    });
    const at = state.chosen.map((c, lane) => screen(state, means[c], lane, MIDDLE));
    out.push({
      x: at.map((p) => p[0]), y: at.map((p) => p[1]), mode: "markers", name: "class mean",
      text: state.chosen.map((c) => `mean of ${esc(run.classes[c], 40)}`), hovertemplate: "%{text}<extra></extra>",
      marker: {
        symbol: state.chosen.map(marker), size: 15, color: state.chosen.map(colour), line: { width: 2.2, color: neutral },
      },
    });
    return out;
  }

  function choose(size) {
    state.size = size;
    const start = state.chosen.slice(0, size);
    for (let c = 0; start.length < size; c += 1) if (!start.includes(c)) start.push(c);
    state.chosen = start;
    build();
    draw();
  }

  function build() {
    controls.replaceChildren();
    const shapes = el("div", { class: "row", role: "group", "aria-label": "Shape" });
    sizes.forEach((k) => shapes.append(el("button", {
      type: "button", "aria-pressed": String(k === state.size), onclick: () => {
        choose(k);
        controls.querySelector('[aria-pressed="true"]').focus();
      },
    }, SHAPES[k])));
    controls.append(shapes);
    if (count > 2) {
      state.chosen.forEach((c, i) => {
        const options = run.classes.map((text, k) => [k, text]);
        const pick = choice(`Class ${"ABCD"[i]}`, options, c, (value) => {
          const other = state.chosen.indexOf(Number(value));
          if (other >= 0) state.chosen[other] = state.chosen[i];
          state.chosen[i] = Number(value);
          build();
          controls.querySelectorAll("select")[i].focus();
          draw();
        });
        controls.append(pick);
      });
      controls.append(check("points of other classes", state.all, (on) => { state.all = on; draw(); }));
      if (name === "simplex") {
        controls.append(check("renormalise over the chosen", state.renormalise, (on) => { state.renormalise = on; draw(); }));
      }
    }
    if (state.size === 4) {
      const turn = slider("Turn", 73, Math.round(((state.azimuth * 180) / Math.PI) / 5) + 36, (i) => `${(i - 36) * 5}°`, (i) => {
        state.azimuth = ((i - 36) * 5 * Math.PI) / 180;
        draw();
      });
      const tilt = slider("Tilt", 37, Math.round(((state.elevation * 180) / Math.PI) / 5) + 18, (i) => `${(i - 18) * 5}°`, (i) => {
        state.elevation = ((i - 18) * 5 * Math.PI) / 180;
        draw();
      });
      controls.append(turn, tilt);
    }
  }

  rotateBy(node, () => state.size === 4, (side, up) => {
    const wrap = (angle) => Math.atan2(Math.sin(angle), Math.cos(angle));
    state.azimuth = wrap(state.azimuth + side);
    state.elevation = Math.max(-Math.PI / 2, Math.min(Math.PI / 2, state.elevation + up));
    build();
    draw();
  });
  const time = epochs(held, state, draw);
  host.append(controls, time, node, hint);
  choose(state.size);
  return draw;
}

function rotateBy(node, active, turn) {
  let from = null;
  node.addEventListener("pointerdown", (e) => {
    if (!active()) return;
    from = [e.clientX, e.clientY];
    node.setPointerCapture(e.pointerId);
  });
  node.addEventListener("pointermove", (e) => {
    if (!from) return;
    const [x, y] = from;
    from = [e.clientX, e.clientY];
    turn((e.clientX - x) / 140, (e.clientY - y) / 140);
  });
  ["pointerup", "pointercancel"].forEach((kind) => node.addEventListener(kind, () => { from = null; }));
  const steps = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };
  node.addEventListener("keydown", (e) => {
    if (!active() || !steps[e.key]) return;
    e.preventDefault();
    turn(...steps[e.key]);
  });
}

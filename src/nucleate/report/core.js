// Values of the page, theme, and small pieces of the document. Text from the run only ever becomes textContent here;
// plotly reads some HTML in its labels, so it gets text through esc().
const data = JSON.parse(document.getElementById("data").textContent);
const MARKERS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star", "pentagon", "hexagram"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const LINE_MARKERS = ["circle", "square", "diamond", "triangle-up"];
// Okabe and Ito 2008; on a dark ground blue and black have lighter stand-ins.
const LIGHT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a7f00"];
const DARK = ["#4ba3e3", "#ff8a3d", "#2fc89b", "#e5a0c6", "#f2b632", "#a5dcff", "#f0e442"];
const CONFIG = {
  displaylogo: false, showSendToCloud: false, responsive: true, typesetMath: false, scrollZoom: false,
  displayModeBar: window.matchMedia("(hover: hover)").matches ? "hover" : false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
};
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const coarse = window.matchMedia("(pointer: coarse)");
const narrow = window.matchMedia("(max-width: 40rem)");

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = (i) => (dark.matches ? DARK : LIGHT)[i % LIGHT.length];
const marker = (i) => MARKERS[i % MARKERS.length];
const faint = (hex, share) => hex + Math.round(share * 255).toString(16).padStart(2, "0");

// Cut in the middle: names of layers differ at their ends.
function short(text, length = 22) {
  const line = String(text).replace(/\s+/g, " ");
  const keep = length - 1;
  return line.length > length ? `${line.slice(0, Math.ceil(keep / 2))}…${line.slice(line.length - Math.floor(keep / 2))}` : line;
}

// Names cut for an axis; those that would look alike get their position in front.
function distinct(names, length) {
  const cut = names.map((n) => short(n, length));
  return names.map((n, i) => (cut.filter((c) => c === cut[i]).length > 1 ? `${i + 1}: ${short(n, length - 4)}` : cut[i]));
}

function esc(text, length) {
  return short(text, length).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((c) => c != null));
  return node;
}

// Rows of an array that Python packed as 16-bit integers.
function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const [rows, columns = 1] = packed.shape;
  const out = new Array(rows);
  for (let i = 0; i < rows; i += 1) {
    out[i] = new Array(columns);
    for (let j = 0; j < columns; j += 1) {
      const whole = view.getUint16(2 * (i * columns + j), true);
      out[i][j] = whole === 65535 ? NaN : packed.low + whole * packed.step;
    }
  }
  return out;
}

const unpacked = new WeakMap();
function rows(packed) {
  if (!unpacked.has(packed)) unpacked.set(packed, unpack(packed));
  return unpacked.get(packed);
}

// Long axis titles break near their middle. Titles are the page's own words, and names that went through esc().
function wrapped(title) {
  if (title.length < 27) return title;
  const spaces = [...title].map((c, i) => (c === " " ? i : -1)).filter((i) => i > 0);
  const middle = spaces.sort((a, b) => Math.abs(a - title.length / 2) - Math.abs(b - title.length / 2))[0];
  return middle ? `${title.slice(0, middle)}<br>${title.slice(middle + 1)}` : title;
}

function axis(more = {}) {
  return {
    gridcolor: css("--grid"), linecolor: css("--line"), zerolinecolor: css("--line"), tickcolor: css("--line"),
    automargin: true, ticks: "outside", ticklen: 4, ...more, title: { text: wrapped(more.title || ""), standoff: 8, font: { size: 12.5, color: css("--soft") } },
  };
}

function layout(more = {}) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: css("--ink") },
    margin: { l: 56, r: 14, t: 18, b: 48 }, height: 320, hovermode: "closest", dragmode: coarse.matches ? false : "zoom",
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") } },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent") }, ...more,
  };
}

// A legend at the foot of a figure, and the room that its rows take.
function foot(names, width) {
  const entry = Math.max(...names.map((n) => n.length), 1) * 6.9 + 54;
  const lines = Math.ceil(names.length / Math.max(1, Math.floor(width / entry)));
  return { room: names.length ? 20 * lines + 4 : 0, legend: { orientation: "h", x: 0, yref: "container", y: 0, yanchor: "bottom", font: { size: 12 } } };
}

function plot(node, traces, more, what) {
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", what);
  return Plotly.react(node, traces, layout(more), CONFIG);
}

function missing(...reasons) {
  return el("p", { class: "missing" }, "Not shown: " + reasons.join("; ") + ".");
}

function field(label, control, kind = "") {
  const id = `control-${(field.count = (field.count || 0) + 1)}`;
  control.id = id;
  const name = el("label", { for: id }, label);
  return el("div", { class: `field ${kind}` }, ...(kind === "check" ? [control, name] : [name, control]));
}

function choice(label, options, value, change) {
  const select = el("select", { onchange: () => change(select.value) });
  options.forEach(([key, text]) => select.append(el("option", { value: key }, short(text, 60))));
  select.value = value;
  return field(label, select);
}

function check(label, value, change) {
  const box = el("input", { type: "checkbox", onchange: () => change(box.checked) });
  box.checked = value;
  return field(label, box, "check");
}

function slider(label, count, value, text, change) {
  const range = el("input", { type: "range", min: 0, max: Math.max(0, count - 1), step: 1, disabled: count < 2 });
  const out = el("output");
  const show = () => {
    out.textContent = text(Number(range.value));
    range.setAttribute("aria-valuetext", out.textContent);
  };
  range.value = value;
  range.addEventListener("input", () => { show(); change(Number(range.value)); });
  show();
  const box = field(label, range, "wide");
  out.setAttribute("for", range.id);
  box.firstChild.append(": ", out);
  box.set = (i) => { range.value = i; show(); change(i); };
  box.get = () => Number(range.value);
  return box;
}

function whenName(run, epoch) {
  const named = run.moments.find((m) => m[1] === epoch);
  return named ? `${epoch} (${named[0]})` : String(epoch);
}

// Slider over the stored epochs, with a jump to start, zero error and end, and a button that plays them.
function epochs(run, state, draw) {
  const frames = run.frames;
  state.epoch = Math.min(state.epoch ?? frames.length - 1, frames.length - 1);
  const range = slider("Epoch", frames.length, state.epoch, (i) => whenName(run, frames[i].epoch), (i) => {
    state.epoch = i;
    draw();
  });
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "▶ play"; };
  const play = el("button", { type: "button", onclick: () => {
    if (timer) { stop(); return; }
    if (range.get() >= frames.length - 1) range.set(0);
    play.textContent = "❚❚ pause";
    timer = setInterval(() => {
      if (!play.isConnected || range.get() >= frames.length - 1) stop();
      else range.set(range.get() + 1);
    }, 650);
  } }, "▶ play");
  const jumps = run.moments.map(([name, epoch]) => el("button", { type: "button", onclick: () => {
    stop();
    range.set(frames.findIndex((f) => f.epoch === epoch));
  } }, name));
  const extra = frames.length > 1 ? el("div", { class: "row" }, play, ...jumps) : null;
  const group = el("div", { class: "controls" }, range);
  if (extra) group.append(extra);
  return group;
}

// Wires the page: one run is selected for the pictures, all runs share the curves.
let selected = 0;
let redraws = [];

const RUN_FIGURES = {
  simplex: (host, run) => simplexFigure(host, run, "simplex"),
  etf: (host, run) => simplexFigure(host, run, "etf"),
  logits: (host, run) => simplexFigure(host, run, "logits"),
  boundary: boundaryFigure,
  layers: layersFigure,
  chi: (host, run) => depthFigure(host, run, "chi", Object.keys(run.depth).filter((m) => m.split("@")[0] === "chi").concat("chi").filter((m, i, all) => all.indexOf(m) === i)),
  depth: (host, run) => depthFigure(host, run, "depth", ["ncc_accuracy", ...Object.keys(data.labels).filter((m) => m !== "chi" && m !== "ncc_accuracy" && run.depth[m])]),
  weights: weightsFigure,
};

// Figures are drawn when they come near the window, so that a page of many runs opens at once.
const near = new IntersectionObserver((entries) => {
  entries.filter((e) => e.isIntersecting).forEach((e) => {
    near.unobserve(e.target);
    e.target.start();
  });
}, { rootMargin: "900px 0px" });

function mount() {
  redraws = [];
  document.querySelectorAll("[data-figure]").forEach((host) => {
    host.replaceChildren();
    const name = host.dataset.figure;
    const own = el("div"), shared = el("div");
    host.append(own, shared);
    const draws = [];
    host.start = () => {
      if (RUN_FIGURES[name]) draws.push(RUN_FIGURES[name](own, data.runs[selected]));
      if (data.charts[name]) draws.push(chartsFigure(own, data.charts[name]));
      draws.push(panels(shared, name, name === "nc"));
      redraws.push(...draws);
      draws.forEach((draw) => draw());
    };
    near.unobserve(host);
    near.observe(host);
  });
  document.querySelectorAll("[data-verdict]").forEach((host) => {
    const draw = clausesFigure(host, data.verdicts[Number(host.dataset.verdict)]);
    redraws.push(draw);
    draw();
  });
}

if (data.runs.length > 1) {
  document.getElementById("bar").append(choice("Run shown in the pictures", data.runs.map((r, i) => [i, r.label + (r.done ? "" : " (not finished)")]), 0, (i) => {
    selected = Number(i);
    mount();
  }));
}
if (narrow.matches) document.getElementById("contents").open = false;
[dark, narrow].forEach((query) => query.addEventListener("change", () => redraws.forEach((draw) => draw())));
window.addEventListener("beforeprint", () => document.querySelectorAll("[data-figure]").forEach((host) => { if (!host.querySelector(".plot, .missing")) { near.unobserve(host); host.start(); } }));
mount();

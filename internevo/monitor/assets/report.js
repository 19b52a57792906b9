"use strict";
const report = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const ink = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const sync = uPlot.sync("steps");
const smoothing = document.getElementById("smoothing");

const short = (value) => {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  for (const [unit, scale] of [["T", 1e12], ["B", 1e9], ["M", 1e6], ["K", 1e3]])
    if (size >= scale) return +(value / scale).toPrecision(3) + unit;
  if (size !== 0 && size < 1e-3) return value.toExponential(1);
  return String(+value.toPrecision(4));
};

/* Stage bands and names behind the lines. */
const bands = {
  hooks: {
    drawClear: (u) => {
      const { ctx, bbox } = u;
      ctx.save();
      ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
      ctx.textBaseline = "top";
      report.stages.forEach((stage, i) => {
        const left = Math.max(bbox.left, u.valToPos(stage.first - 0.5, "x", true));
        const right = Math.min(bbox.left + bbox.width, u.valToPos(stage.last + 0.5, "x", true));
        if (right <= left) return;
        if (i % 2 === 1) {
          ctx.fillStyle = ink("--band");
          ctx.fillRect(left, bbox.top, right - left, bbox.height);
        }
        ctx.fillStyle = ink("--quiet");
        const room = right - left - 9 * devicePixelRatio;
        let name = stage.name;
        while (name.length > 1 && ctx.measureText(name).width > room)
          name = name.replace(/…$/, "").slice(0, -1) + "…";
        if (ctx.measureText(name).width <= room)
          ctx.fillText(name, left + 6 * devicePixelRatio, bbox.top + 4 * devicePixelRatio);
      });
      ctx.restore();
    },
  },
};

function draw(figure) {
  const chart = report.charts[figure.dataset.chart];
  figure.replaceChildren();
  if (!chart || !chart.x.length) { figure.hidden = true; return; }
  const caption = document.createElement("figcaption");
  caption.textContent = chart.title;
  const unit = document.createElement("small");
  unit.textContent = chart.unit;
  caption.append(unit);
  figure.append(caption);
  const value = (v) => (v === null || v === undefined ? "–" : chart.percent ? (100 * v).toFixed(1) + "%" : short(v));
  const axis = {
    stroke: ink("--quiet"), grid: { stroke: ink("--line"), width: 1 }, ticks: { stroke: ink("--line"), width: 1, size: 4 },
    font: "12px system-ui, sans-serif",
  };
  const bySteps = !chart.over;
  const values = (one) => (one.widths ? one.widths[smoothing ? smoothing.value : "0"] : one.y);
  const series = chart.series.map((one) => ({
    label: one.label,
    stroke: ink("--c" + (one.colour % 6)) + (one.faint ? "55" : ""),
    width: one.faint ? 1 : 2,
    dash: one.dashed ? [6, 5] : undefined,
    fill: one.fill ? ink("--c" + (one.colour % 6)) + "40" : undefined,
    points: { show: Boolean(one.points), size: 6, fill: ink("--c" + (one.colour % 6)) },
    spanGaps: true,
    value: (u, v) => value(v),
  }));
  new uPlot({
    width: figure.clientWidth - 26, height: chart.height || 230, plugins: bySteps ? [bands] : [],
    cursor: { sync: bySteps ? { key: sync.key } : undefined, drag: { x: true, y: false } },
    scales: { x: { time: false, distr: chart.xlog ? 3 : 1 }, y: { distr: chart.log ? 3 : 1, range: chart.zero ? (u, min, max) => [0, max * 1.2 || 1] : undefined } },
    axes: [
      { ...axis, label: chart.over, labelSize: 22, labelFont: axis.font, values: (u, ticks) => ticks.map((v) => (v === null ? "" : short(v))) },
      { ...axis, size: 58, values: (u, ticks) => ticks.map((v) => (v === null ? "" : value(v))) },
    ],
    series: [{ label: chart.over || "step", value: (u, v) => (v === null ? "–" : v.toLocaleString("en")) }, ...series],
  }, [chart.x, ...chart.series.map(values)], figure);
}

const drawAll = () => document.querySelectorAll("figure[data-chart]").forEach(draw);

function setTheme(theme) {
  root.dataset.theme = theme;
  drawAll();
}
const wanted = new URLSearchParams(location.search).get("theme");
const dark = matchMedia("(prefers-color-scheme: dark)");
setTheme(wanted || (dark.matches ? "dark" : "light"));
dark.addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
if (smoothing) smoothing.addEventListener("change", drawAll);
let pending;
addEventListener("resize", () => { clearTimeout(pending); pending = setTimeout(drawAll, 120); });

// Draws the charts of the page from the numbers in #payload, and redraws them when the reader changes axis or colours.
(() => {
  "use strict";
  const payload = JSON.parse(document.getElementById("payload").textContent);
  const axes = {
    b: { title: "step", format: ",.10~g" },
    tok: { title: "tokens, padding included", format: "~s" },
    h: { title: "hours", format: ",.6~g" },
  };
  // The choices are stored in the address, so that a link to the page keeps them: #x=tok&theme=dark&log=1
  const chosen = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (!(chosen.x in axes)) chosen.x = "b";
  const views = new Map();
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (chosen.theme === "dark") || (chosen.theme !== "light" && prefersDark.matches);

  function theme() {
    const [text, soft, line] = isDark() ? ["#e6e9ed", "#a0a9b4", "#343b44"] : ["#1b1f24", "#5b6470", "#e3e7eb"];
    return {
      background: "transparent",
      font: "system-ui, sans-serif",
      view: { stroke: line },
      axis: { gridColor: line, domainColor: line, tickColor: line, labelColor: soft, titleColor: soft, titleFontWeight: 400, minExtent: 46 },
      axisX: { minExtent: 0, tickCount: { signal: "max(3, min(10, floor(width / 90)))" } },
      legend: { labelColor: text, titleColor: soft, labelFontSize: 12 },
    };
  }

  // Dark colours of the palette are too dark on a dark page.
  const brighter = { "#0072B2": "#4FA8E0", "#8C6D31": "#C9A45C", "#D55E00": "#F08A3C", "#009E73": "#2CC79B" };
  const inTheme = (spec) => JSON.parse(JSON.stringify(spec).replace(/#[0-9A-F]{6}/g, (color) => (isDark() && brighter[color]) || color));

  // The value of the x axis at a step, by linear interpolation.
  function at(run, step, name) {
    const axis = payload.runs[run].axis, steps = axis.b, values = axis[name];
    if (name === "b" || steps.length === 0) return step;
    let low = 0, high = steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle + 1; else high = middle;
    }
    if (low === 0 || steps[low] < step) return step < steps[0] ? values[0] * step / steps[0] : values[low];
    const part = (step - steps[low - 1]) / (steps[low] - steps[low - 1]);
    return values[low - 1] + part * (values[low] - values[low - 1]);
  }
  const place = (run, step) => ({ b: step, tok: at(run, step, "tok"), h: at(run, step, "h"), x: at(run, step, chosen.x) });

  // A point without a neighbour is not connected by a line.
  const isAlone = (values, n) => values[n] !== null && (values[n - 1] ?? null) === null && (values[n + 1] ?? null) === null;

  function lineRows(lines) {
    return lines.flatMap(({ run, metric, label, points }) => {
      const { b, v, lo, hi } = payload.runs[run].series[metric];
      return b.map((step, n) => ({ ...place(run, step), y: v[n], lo: lo && lo[n], hi: hi && hi[n], label, points: points || isAlone(v, n) }));
    });
  }

  function withAxis(spec) {
    const copy = inTheme(spec), { title, format } = axes[chosen.x];
    if (copy.encoding.x && copy.encoding.x.field === "x") copy.encoding.x = { ...copy.encoding.x, title, axis: { format, grid: false, labelFlush: true } };
    return copy;
  }

  function logarithmic(spec) {
    for (const { encoding } of spec.layer) {
      if (encoding.y && encoding.y.scale) Object.assign(encoding.y, { scale: { type: "log", nice: false }, axis: { ...encoding.y.axis, tickCount: 5 } });
    }
  }

  // If a tooltip belongs to the nearest point, vega-lite 6.4 reads its texts (unlike its numbers) from the cell around
  // the point, where `datum` is the point and `datum.datum` its row.
  function textsOfNearest(compiled) {
    for (const mark of compiled.marks || []) {
      textsOfNearest(mark);
      const tooltip = /voronoi/.test(mark.name) && mark.encode.update.tooltip;
      if (tooltip) tooltip.signal = tooltip.signal.replace(/(?<!datum\.)datum\[/g, "datum.datum[");
    }
    return compiled;
  }

  async function draw(element, spec, datasets) {
    const old = views.get(element);
    if (old) old.finalize();
    const config = theme();
    config.legend.columns = Math.max(1, Math.floor(element.clientWidth / 180));
    if (element.closest(".wide") && element.clientWidth > 760) config.axis.minExtent = 84;
    const options = { actions: false, logLevel: 1, patch: textsOfNearest, mode: "vega-lite", renderer: "svg", config, tooltip: { theme: isDark() ? "dark" : "light" } };
    views.set(element, await vegaEmbed(element, { data: { name: "rows" }, datasets, autosize: { type: "fit-x", contains: "padding" }, ...spec }, options));
  }

  function drawLines(element) {
    const chart = payload.charts[element.dataset.chart], spec = withAxis(chart.spec);
    const rows = lineRows(chart.lines);
    spec.layer = spec.layer.filter(({ name }) => (name !== "band" || rows.some(({ hi }) => hi !== undefined)) && (name !== "points" || rows.some(({ points }) => points)));
    if (chart.log && chosen.log && rows.every((row) => !(row.y <= 0) && !(row.lo <= 0))) logarithmic(spec);
    const run = chart.lines[0].run;
    const stages = chart.stages ? payload.runs[run].stages.map(({ name, b }) => ({ name, ...place(run, b) })) : [];
    return draw(element, spec, { rows, stages });
  }

  function drawTimeline(element) {
    const run = Number(element.dataset.timeline), { timeline, timelineSpec } = payload.runs[run];
    return draw(element, withAxis(timelineSpec), { rows: timeline.map((row) => ({ ...row, ...place(run, row.b) })) });
  }

  const control = (name, run) => document.querySelector(`[data-${name}="${run}"]`);
  const load = (value) => ({ load: value === null ? null : value / 100, text: value === null ? "" : value === 0 ? "×" : (value / 100).toFixed(1) });
  const expertRows = {
    load(data, run) {
      const n = Number(control("slider", run).value);
      control("step-of", run).textContent = `step ${data.steps[n].toLocaleString("en")}`;
      return data.loads[n].flatMap((row, layer) => row.map((value, expert) => ({ layer: data.layers[layer], expert, ...load(value) })));
    },
    load_over_time(data, run) {
      const layer = Number(control("layer", run).value);
      return spans(data, run).flatMap((span, n) => data.loads[n][layer].map((value, row) => ({ ...span, row, ...load(value) })));
    },
    layers_over_time(data, run) {
      const values = data.metrics[control("metric", run).value] || [];
      return spans(data, run).flatMap((span, n) => (values[n] || []).map((value, row) => ({ ...span, row: data.layers[row], load: value })));
    },
  };

  // Each measurement is drawn from the previous one to its own step.
  function spans({ steps }, run) {
    return steps.map((step, n) => ({ b: step, x: at(run, n ? steps[n - 1] : Math.max(0, 2 * step - (steps[1] || step + 1)), chosen.x), x2: at(run, step, chosen.x) }));
  }

  function drawExperts(element) {
    const run = Number(element.dataset.run), kind = element.dataset.experts, { experts, expertSpecs } = payload.runs[run];
    return draw(element, withAxis(expertSpecs[kind]), { rows: expertRows[kind](experts, run) });
  }

  const kinds = [["[data-chart]", drawLines], ["[data-timeline]", drawTimeline], ["[data-experts]", drawExperts]];
  const isShown = (element) => element.offsetParent !== null;
  const stale = new Set();

  async function drawAll() {
    document.documentElement.dataset.theme = chosen.theme || "auto";
    for (const button of document.querySelectorAll("button")) {
      const { x, themeIs, log } = button.dataset;
      const isOn = x ? x === chosen.x : log ? Boolean(chosen.log) : themeIs === (chosen.theme || "auto");
      button.setAttribute("aria-pressed", isOn);
    }
    for (const [selector] of kinds) document.querySelectorAll(selector).forEach((element) => stale.add(element));
    await drawShown();
  }

  // Charts in a closed part of the page have no width yet: they are drawn when the part is opened.
  async function drawShown() {
    for (const [selector, drawOne] of kinds) {
      for (const element of document.querySelectorAll(selector)) {
        if (stale.has(element) && isShown(element)) {
          stale.delete(element);
          await drawOne(element);
        }
      }
    }
    document.documentElement.dataset.ready = "true";
  }

  function fail(error) {
    const failure = document.getElementById("failure");
    failure.hidden = false;
    failure.textContent = `A chart could not be drawn: ${error.message}`;
    console.error(error);
  }

  const again = () => drawAll().catch(fail);
  document.documentElement.classList.add("drawn");
  document.getElementById("controls").hidden = false;
  document.getElementById("controls").addEventListener("click", ({ target }) => {
    const { x, themeIs, log } = target.dataset;
    if (x) chosen.x = x;
    else if (themeIs) chosen.theme = themeIs;
    else if (log) chosen.log = chosen.log ? "" : "1";
    else return;
    history.replaceState(null, "", `#${new URLSearchParams(chosen)}`);
    again();
  });
  document.addEventListener("input", ({ target }) => {
    for (const [name, kind] of [["slider", "load"], ["layer", "load_over_time"], ["metric", "layers_over_time"]]) {
      const run = target.dataset[name];
      if (run !== undefined) drawExperts(document.querySelector(`[data-experts="${kind}"][data-run="${run}"]`)).catch(fail);
    }
  });
  document.addEventListener("toggle", () => drawShown().catch(fail), true);
  prefersDark.addEventListener("change", again);
  again();
})();

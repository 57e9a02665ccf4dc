// Draws the charts of a report from the numbers in #payload, and redraws them when the reader changes the axis.
(() => {
  "use strict";
  const { payload, chosen, inTheme, draw, fail, start } = page;
  const axes = {
    b: { title: "step", format: ",.10~g" },
    tok: { title: "tokens, padding included", format: "~s" },
    h: { title: "hours", format: ",.6~g" },
  };
  if (!(chosen.x in axes)) chosen.x = "b";

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
  document.addEventListener("input", ({ target }) => {
    for (const [name, kind] of [["slider", "load"], ["layer", "load_over_time"], ["metric", "layers_over_time"]]) {
      const run = target.dataset[name];
      if (run !== undefined) drawExperts(document.querySelector(`[data-experts="${kind}"][data-run="${run}"]`)).catch(fail);
    }
  });
  start(kinds);
})();

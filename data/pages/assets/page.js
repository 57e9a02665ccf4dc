// The choices of the reader (such as the colours), and the drawing of charts. Each page adds its own charts and calls
// page.start.
const page = (() => {
  "use strict";
  const payload = JSON.parse(document.getElementById("payload").textContent);
  // The choices are stored in the address, so that a link to the page keeps them: #x=tok&theme=dark&log=1
  const chosen = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (!["light", "dark"].includes(chosen.theme)) chosen.theme = "auto";
  const views = new Map();
  const stale = new Set();
  let kinds = [];
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

  // Draw a specification. Its data is `rows` of the datasets.
  async function draw(element, spec, datasets) {
    const old = views.get(element);
    if (old) old.finalize();
    const config = theme();
    config.legend.columns = Math.max(1, Math.floor(element.clientWidth / 180));
    if (element.closest(".wide") && element.clientWidth > 760) config.axis.minExtent = 84;
    const options = { actions: false, logLevel: 1, patch: textsOfNearest, mode: "vega-lite", renderer: "svg", config, tooltip: { theme: isDark() ? "dark" : "light" } };
    views.set(element, await vegaEmbed(element, { data: { name: "rows" }, datasets, autosize: { type: "fit-x", contains: "padding" }, ...spec }, options));
  }

  const isShown = (element) => element.offsetParent !== null;

  async function drawAll() {
    document.documentElement.dataset.theme = chosen.theme;
    for (const button of document.querySelectorAll("button[data-choice]")) {
      button.setAttribute("aria-pressed", chosen[button.dataset.choice] === button.dataset.value);
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

  // Draw the charts of the page. kinds: for each kind of chart, the selector of its elements and the function that
  // draws one of them.
  function start(kindsOfPage) {
    kinds = kindsOfPage;
    document.documentElement.classList.add("drawn");
    document.getElementById("controls").hidden = false;
    document.getElementById("controls").addEventListener("click", ({ target }) => {
      const { choice, value, toggle } = target.dataset;
      if (!choice) return;
      chosen[choice] = toggle && chosen[choice] === value ? "" : value;
      history.replaceState(null, "", `#${new URLSearchParams(chosen)}`);
      again();
    });
    document.addEventListener("toggle", () => drawShown().catch(fail), true);
    prefersDark.addEventListener("change", again);
    again();
  }

  return { payload, chosen, inTheme, draw, fail, start };
})();

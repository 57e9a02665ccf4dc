// Draws the charts of the page. Their specifications contain their data.
(() => {
  "use strict";
  const { payload, chosen, inTheme, draw, start } = page;

  // Histograms on a logarithmic axis show bars behind each other, because stacked bars have no meaning there.
  function logarithmic(spec) {
    const { mark, encoding } = spec.layer[0];
    mark.opacity = 0.7;
    Object.assign(encoding.y, { stack: null, scale: { type: "symlog" }, axis: { ...encoding.y.axis, values: spec.usermeta.ticks, labelExpr: "format(datum.value, '~s')" } });
  }

  start([["[data-chart]", (element) => {
    const spec = inTheme(payload.charts[element.dataset.chart]);
    if (chosen.log && spec.usermeta) logarithmic(spec);
    return draw(element, spec, {});
  }]]);
})();

// Draws the charts of the page. Their specifications contain their data.
page.start([["[data-chart]", (element) => page.draw(element, page.inTheme(page.payload.charts[element.dataset.chart]), {})]]);

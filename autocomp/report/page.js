"use strict";
// Draws the charts, links them, and shows the layers of the point that is picked. Texts are set as text, never
// as HTML: names come from files.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const FRONT = 1, PICKED = 3;  // traces, in the order in which the page's figures hold them
  const charts = data.figures.map((_, index) => document.getElementById(`chart-${index}`));
  const byId = (id) => document.getElementById(id);
  let picked = null;

  function element(tag, text, className) {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  }

  function mark(name) {
    charts.forEach((chart) => {
      const front = chart.data[FRONT];
      const index = front.customdata.indexOf(name);
      const at = (values) => (index < 0 ? [] : [values[index]]);
      Plotly.restyle(chart, { x: [at(front.x)], y: [at(front.y)] }, [PICKED]);
    });
  }

  function bar(kind, fraction, text) {
    const cell = element("td");
    const outer = element("span", undefined, `bar ${kind}`);
    const inner = element("i");
    inner.style.width = `${Math.round(100 * Math.min(1, fraction))}%`;
    outer.append(inner);
    outer.setAttribute("aria-hidden", "true");
    cell.append(outer, document.createTextNode(text));
    return cell;
  }

  function layerRow([name, op, bits, clusters, activation, sparsity, pattern, kept, channels]) {
    const row = element("tr");
    const head = element("th", name);
    head.scope = "row";
    row.append(
      head,
      element("td", op),
      bar("bits", (clusters === null ? bits ?? 32 : Math.log2(clusters)) / 8,
        bits === null ? "float" : clusters === null ? String(bits) : `${bits}, ${clusters} levels`),
      element("td", activation),
      sparsity ? bar("sparsity", sparsity, `${Math.round(100 * sparsity)} %${pattern === "unstructured" ? "" : `, ${pattern}`}`) : element("td", "–"),
      channels === null ? element("td", "–") : bar("channels", kept / channels, `${kept} of ${channels}`),
    );
    return row;
  }

  function pick(name) {
    const point = data.points[name];
    if (!point) return;
    picked = name;
    byId("detail").hidden = false;
    byId("detail-name").textContent = name;
    byId("detail-summary").textContent = point.summary;
    byId("detail-file").textContent = point.file;
    byId("detail-figures").replaceChildren(...point.figures.map(([label, value]) => {
      const pair = element("div");
      pair.append(element("dt", label), element("dd", value));
      return pair;
    }));
    byId("detail-scroll").hidden = point.layers === null;
    byId("detail-layers").replaceChildren(...(point.layers ?? []).map(layerRow));
    document.querySelectorAll("tr[data-point]").forEach((row) => {
      row.classList.toggle("picked", row.dataset.point === name);
    });
    mark(name);
  }

  // On a phone the colour scale goes below the chart, and every other label of a crowded axis goes.
  function narrow(figure) {
    const { layout } = figure;
    const { colorbar } = figure.data[FRONT].marker;
    Object.assign(colorbar, { orientation: "h", x: 0.5, y: -0.22, yanchor: "top", len: 1, thickness: 10 });
    colorbar.title.side = "right";
    Object.assign(layout, { height: 470, showlegend: false });
    Object.assign(layout.margin, { t: 12, b: 120, r: 20 });
    for (const axis of [layout.xaxis, colorbar]) {
      if (axis.ticktext.length > 4) axis.ticktext = axis.ticktext.map((text, index) => (index % 2 ? "" : text));
    }
  }

  const touch = window.matchMedia("(pointer: coarse)").matches;
  data.figures.forEach((figure, index) => {
    // A finger that drags over a chart wants to scroll the page.
    if (charts[index].clientWidth < 440) narrow(figure);
    figure.layout.dragmode = touch ? false : "zoom";
    Plotly.newPlot(charts[index], figure.data, figure.layout, {
      responsive: true,
      displaylogo: false,
      displayModeBar: touch ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "sendChartToCloud", "sendDataToCloud", "editInChartStudio"],
      doubleClick: "reset+autosize",
    });
    const named = (event) => event.points.find((hit) => hit.curveNumber === FRONT)?.customdata;
    charts[index].on("plotly_hover", (event) => { const name = named(event); if (name) mark(name); });
    charts[index].on("plotly_unhover", () => mark(picked));
    charts[index].on("plotly_click", (event) => { const name = named(event); if (name) pick(name); });
  });
  document.querySelectorAll("tr[data-point]").forEach((row) => {
    row.addEventListener("click", () => pick(row.dataset.point));
  });
  window.addEventListener("beforeprint", () => charts.forEach((chart) => Plotly.Plots.resize(chart)));
  // report.html#17 opens with point 17 picked: a link that can be sent.
  const linked = () => {
    const name = decodeURIComponent(location.hash.slice(1));
    if (name in data.points) pick(name);
  };
  window.addEventListener("hashchange", linked);
  if (data.first !== null) pick(data.first);
  linked();
})();

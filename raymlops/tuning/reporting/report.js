"use strict";
(async () => {
  const read = (id) => document.getElementById(id)?.textContent;
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const figures = Object.entries(JSON.parse(read("figures")));
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = {
    responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
    modeBarButtonsToRemove: ["lasso2d", "select2d"],
  };

  // Plotly is packed; the page's policy knows the digest of its text.
  async function load() {
    window.PlotlyConfig = { MathJaxConfig: "local" }; // otherwise it looks for MathJax
    const packed = Uint8Array.from(atob(read("library")), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  // Add the color scheme to a figure's template.
  function scheme({ layout: { xaxis, yaxis, ...layout } }) {
    const axis = { gridcolor: style("--grid"), zerolinecolor: style("--rule"), linecolor: style("--rule") };
    const [card, text] = [style("--card"), style("--text")];
    return {
      layout: {
        ...layout,
        paper_bgcolor: card,
        plot_bgcolor: card,
        font: { color: text, family: getComputedStyle(document.body).fontFamily },
        modebar: { color: style("--soft"), activecolor: text, bgcolor: "rgba(0,0,0,0)" },
        hoverlabel: { bgcolor: style("--page"), bordercolor: style("--rule"), font: { color: text } },
        annotationdefaults: { bgcolor: style("--veil"), font: { color: text } },
        xaxis: { ...xaxis, ...axis },
        yaxis: { ...yaxis, ...axis },
        scene: { xaxis: axis, yaxis: axis, zaxis: axis },
      },
    };
  }

  async function draw() {
    for (const [id, { data, layout }] of figures) {
      const place = document.getElementById(id);
      const drag = touch ? { dragmode: false } : {}; // a finger on a figure scrolls the page
      try {
        await Plotly.react(place, data, { ...layout, ...drag, autosize: true, template: scheme(layout.template) }, config);
      } catch (error) {
        place.textContent = "This figure could not be drawn: " + error.message;
      }
      await new Promise((next) => setTimeout(next)); // the page stays responsive between figures
    }
  }

  function sortable(table) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        const rows = [...body.rows].map((row) => [value(row, column), row]);
        rows.sort(([a], [b]) => {
          if ((a === "") !== (b === "")) return a === "" ? 1 : -1; // a row without a value is last in both directions
          const difference = Number(a) - Number(b);
          return sign * (Number.isNaN(difference) ? a.localeCompare(b) : difference);
        });
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  document.querySelectorAll("table.sortable").forEach(sortable);
  if (!figures.length) return;
  await load();
  await draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("beforeprint", () => { document.documentElement.dataset.scheme = "light"; draw(); });
  addEventListener("afterprint", () => { delete document.documentElement.dataset.scheme; draw(); });
})();

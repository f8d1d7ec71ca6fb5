"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = { responsive: true, displaylogo: false, showSendToCloud: false, displayModeBar: touch ? false : "hover" };
  config.modeBarButtonsToRemove = ["lasso2d", "select2d"];
  const drawn = [];

  // What the scheme decides, as a change of a figure's layout.
  function scheme(layout) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const change = {
      paper_bgcolor: color("--card"),
      plot_bgcolor: color("--card"),
      "font.color": color("--text"),
      "font.family": getComputedStyle(document.body).fontFamily,
      "modebar.color": color("--soft"),
      "modebar.activecolor": color("--text"),
      "modebar.bgcolor": "rgba(0,0,0,0)",
      "hoverlabel.bgcolor": color("--page"),
      "hoverlabel.bordercolor": color("--rule"),
      "hoverlabel.font.color": color("--text"),
    };
    const axes = Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));
    if (layout.scene) axes.push("scene.xaxis", "scene.yaxis", "scene.zaxis");
    for (const axis of axes) {
      change[axis + ".gridcolor"] = color("--grid");
      change[axis + ".zerolinecolor"] = color("--rule");
      change[axis + ".linecolor"] = color("--rule");
    }
    (layout.annotations ?? []).forEach((_, index) => {
      change[`annotations[${index}].bgcolor`] = color("--veil");
      change[`annotations[${index}].font.color`] = color("--text");
    });
    return change;
  }

  function repaint() {
    for (const place of drawn) Plotly.relayout(place, scheme(place.layout));
  }

  async function draw() {
    for (const [id, figure] of Object.entries(figures)) {
      const place = document.getElementById(id);
      const layout = { ...figure.layout, autosize: true };
      if (touch) layout.dragmode = false; // a finger on a figure scrolls the page
      try {
        await Plotly.newPlot(place, figure.data, layout, config);
        await Plotly.relayout(place, scheme(layout));
        drawn.push(place);
      } catch (error) {
        place.textContent = "This figure could not be drawn: " + error.message;
      }
      await new Promise((next) => setTimeout(next)); // the page stays alive between figures
    }
  }

  function sortable(table) {
    const body = table.tBodies[0];
    const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        const rows = [...body.rows].map((row) => [value(row, column), row]);
        rows.sort(([a], [b]) => {
          const empty = (a === "" || a === "–") - (b === "" || b === "–");
          if (empty) return empty; // what has no value is last, whichever way
          const difference = Number(a) - Number(b);
          return sign * (Number.isNaN(difference) ? a.localeCompare(b) : difference);
        });
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  document.querySelectorAll("table.sortable").forEach(sortable);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  addEventListener("beforeprint", () => { document.documentElement.dataset.scheme = "light"; repaint(); });
  addEventListener("afterprint", () => { delete document.documentElement.dataset.scheme; repaint(); });
  draw();
})();

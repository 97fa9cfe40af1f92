"use strict";
// Draws the curves of the chosen runs, and names the one under the pointer.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  if (!data.runs.length) {
    byId("no-curves").hidden = false;
    return;
  }
  byId("curves").hidden = false;
  const plot = byId("plot");
  const front = byId("front");
  const reading = byId("reading");
  const margin = { top: 8, right: 12, bottom: 40, left: 52 };
  const hint = "Point at a curve to read it, or click it to open its folder.";
  const chosen = { arms: new Set(Object.keys(data.arms)), metric: 0 };
  let drawn = [];
  let near = null;
  let lit = null;

  const svg = (name, attributes, parent, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) {
      node.setAttribute(key, value);
    }
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };

  const addArm = (arm, look) => {
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = true;
    box.value = arm;
    box.addEventListener("change", () => {
      chosen.arms[box.checked ? "add" : "delete"](arm);
      draw();
    });
    const line = svg("svg", { viewBox: "0 0 24 12", "aria-hidden": "true" });
    svg("path", { d: "M0 6H24", stroke: look.color, "stroke-width": 3,
                  "stroke-dasharray": look.dash }, line);
    label.append(box, line, arm);
    byId("arms").append(label);
  };

  const addFilter = (name, options, change) => {
    const label = document.createElement("label");
    const select = document.createElement("select");
    for (const [text, value] of options) {
      select.add(new Option(text, value));
    }
    select.addEventListener("change", () => {
      change(select.value);
      draw();
    });
    select.name = name;
    label.append(`${name} `, select);
    byId("filters").append(label);
    change(select.value);
  };

  const matches = (run) =>
    chosen.arms.has(run.arm) && run.series[chosen.metric] &&
    data.fields.every((_, i) => {
      const want = chosen[`field ${i}`];
      if (want === "all") return true;
      return want === "best" ? run.best : run.values[i] === want.slice(1);
    });

  // Returns about n round numbers between two others.
  const ticks = (low, high, n) => {
    const rough = (high - low) / n || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((x) => x * power).find((x) => x >= rough);
    const found = [];
    for (let x = Math.ceil(low / step) * step; x <= high + 1e-9 * step;
         x += step) {
      found.push(Number(x.toPrecision(6)));
    }
    return found;
  };

  const draw = () => {
    const width = plot.clientWidth || 700;
    const height = Math.max(260, Math.min(440, 0.55 * width));
    for (const node of [plot, front]) {
      node.setAttribute("viewBox", `0 0 ${width} ${height}`);
      node.replaceChildren();
    }
    plot.style.height = `${height}px`;
    near = null;
    light();
    const runs = data.runs.filter(matches);
    reading.textContent = runs.length ? hint : "No run is left to show.";
    drawn = [];
    if (!runs.length) return;
    const all = runs.map((run) => run.series[chosen.metric]);
    let [least, most, last] = [Infinity, -Infinity, 1];
    for (const [steps, values] of all) {
      last = Math.max(last, ...data.steps[steps]);
      least = Math.min(least, ...values);
      most = Math.max(most, ...values);
    }
    const x = (step) => margin.left +
      (step / last) * (width - margin.left - margin.right);
    const y = (value) => height - margin.bottom -
      ((value - least) / (most - least || 1)) *
      (height - margin.top - margin.bottom);
    for (const tick of ticks(least, most, 5)) {
      svg("line", { class: "grid", x1: margin.left, x2: width - margin.right,
                    y1: y(tick), y2: y(tick) }, plot);
      svg("text", { x: margin.left - 6, y: y(tick) + 4,
                    "text-anchor": "end" }, plot, tick);
    }
    for (const tick of ticks(0, last, Math.max(2, width / 120))) {
      svg("text", { x: x(tick), y: height - margin.bottom + 18,
                    "text-anchor": "middle" }, plot, tick);
    }
    svg("text", { x: (margin.left + width) / 2, y: height - 4,
                  "text-anchor": "middle" }, plot, "optimizer step");
    const group = svg("g", { class: "runs" }, plot);
    drawn = runs.map((run) => {
      const [steps, values] = run.series[chosen.metric];
      const points = data.steps[steps].map((step, i) => [x(step), y(values[i])]);
      const look = data.arms[run.arm];
      const line = svg("polyline", {
        class: "run", points: points.map((p) => p.join()).join(" "),
        stroke: look.color, "stroke-dasharray": look.dash }, group);
      const end = points[points.length - 1];
      if (run.status === "diverged") {
        svg("path", { d: `M${end}m-5-5l10 10m0-10l-10 10`,
                      stroke: look.color, "stroke-width": 2 }, group);
      } else if (points.length === 1) {
        svg("circle", { cx: end[0], cy: end[1], r: 3, fill: look.color }, group);
      }
      return { run, points, line };
    });
  };

  // Draws a curve over the others, or none. Painting thousands of curves anew
  // at every move of the pointer would take longer than a frame.
  const light = (curve = null) => {
    if (curve === lit) return;
    lit = curve;
    plot.classList.toggle("faint", Boolean(curve) && drawn.length < 300);
    front.replaceChildren();
    if (!curve) return;
    const copy = curve.line.cloneNode();
    copy.setAttribute("class", "chosen");
    front.append(copy);
  };

  // Returns the point nearest to the pointer, within 40 pixels.
  const nearest = (event) => {
    const box = plot.getBoundingClientRect();
    const at = [event.clientX - box.left, event.clientY - box.top];
    let found = null;
    let least = 40;
    for (const curve of drawn) {
      curve.points.forEach((point, i) => {
        if (Math.abs(point[0] - at[0]) >= least) return;
        const away = Math.hypot(point[0] - at[0], point[1] - at[1]);
        if (away < least) {
          least = away;
          found = { curve, i };
        }
      });
    }
    return found;
  };

  const point = (event) => {
    near = nearest(event);
    light(near && near.curve);
    plot.style.cursor = near && near.curve.run.href ? "pointer" : "";
    if (!near) {
      reading.textContent = hint;
      return;
    }
    const { run } = near.curve;
    const [steps, values] = run.series[chosen.metric];
    const fields = data.fields.map((name, i) => `${name} ${run.values[i]}`);
    reading.textContent = `${[run.arm, ...fields].join(", ")} ` +
      `(${run.status}): ${data.metrics[chosen.metric]} ` +
      `${Number(values[near.i].toPrecision(4))} at step ` +
      `${data.steps[steps][near.i]} `;
    if (run.href) {
      const link = document.createElement("a");
      link.href = run.href;
      link.textContent = "folder";
      reading.append(link);
    }
  };

  for (const [arm, look] of Object.entries(data.arms)) addArm(arm, look);
  addFilter("metric", data.metrics.map((name, i) => [name, i]),
            (value) => { chosen.metric = Number(value); });
  data.fields.forEach((name, i) => {
    const values = [...new Set(data.runs.map((run) => run.values[i]))];
    if (values.length < 2) {
      chosen[`field ${i}`] = "all";
      return;
    }
    // Of a key that was searched, each value belongs to a run or two.
    const some = values.length > 60 ? [] : values;
    if (i > 0 && !some.length) {
      chosen[`field ${i}`] = "all";
      return;
    }
    const options = [["all", "all"], ...some.map((v) => [v, `=${v}`])];
    // Hundreds of curves show nothing, so the first view has the best rates.
    if (i === 0) options.unshift(["each arm's best", "best"]);
    addFilter(name, options, (value) => { chosen[`field ${i}`] = value; });
  });
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  // A finger cannot point without touching: it uses the link below the plot.
  plot.addEventListener("click", (event) => {
    const href = near && event.pointerType !== "touch" && near.curve.run.href;
    if (href) location.href = href;
  });
  addEventListener("resize", draw);
  draw();
})();

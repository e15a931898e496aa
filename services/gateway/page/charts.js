// The charts, by uPlot: the last five minutes on one fixed axis, so that what moves is the data and never the frame.

import { accuracy, clock, colour, element, percent, say, short, subnetColour, swatch } from "./format.js";
import { SPAN_S, WINDOW_S } from "./history.js";

const SECONDS = Array.from({ length: SPAN_S }, (_, i) => i - SPAN_S + 1);
const MINUTES = [-240, -180, -120, -60, 0],
  FEW = [-240, -120, 0];
const FONT = "11px system-ui, sans-serif";

// What each chart shows: `lines` of columns; `range` of its axis from the data's and the model's; `unit` for readers.
const CHARTS = {
  arrivals: {
    lines: [
      { column: "arrivals", stroke: "accent", fill: "accent-soft" },
      { column: "missed", fill: "bad", bars: true },
    ],
    range: upFromZero(5),
    unit: "queries per second",
    tell: (v) => `${short(v[0])}/s, ${short(v[1])}/s missed`,
  },
  attainment: {
    lines: [{ column: "attainment", stroke: "good", fill: "bad-soft", to: 100 }],
    range: (low) => [Math.min(90, Math.floor((low ?? 100) / 10) * 10), 100.5],
    unit: "percent answered in time",
    tell: (v) => `${percent(v[0])} %`,
  },
  accuracy: {
    lines: [{ column: "accuracy", stroke: "accent", fill: "warn-soft", to: "best" }],
    range: (low, high, model) => accuracyRange(low, high, model),
    unit: "percent",
    tell: (v) => `${accuracy(v[0])} %`,
  },
  queue: {
    lines: [{ column: "queue", stroke: "accent", fill: "accent-soft" }],
    range: upFromZero(5),
    unit: "queries waiting",
    tell: (v) => short(v[0]),
  },
  slack: {
    lines: [{ column: "slack", stroke: "accent", fill: "accent-soft" }],
    range: upFromZero(10),
    unit: "milliseconds left to the deadline",
    tell: (v) => `${short(v[0])} ms`,
  },
};

/** The values that no line reaches, for nothing is known before and after: they are drawn as points. */
function alone(plot, series) {
  const values = plot.data[series];
  const known = (i) => values[i] !== null && values[i] !== undefined;
  return [...SECONDS.keys()].filter((i) => known(i) && !known(i - 1) && !known(i + 1));
}

function sizeOf(place) {
  return { width: place.clientWidth, height: place.clientHeight };
}

function upFromZero(least) {
  return (low, high) => [Math.min(0, low ?? 0), Math.max(least, (high ?? 0) * 1.1)];
}

function accuracyRange(low, high, model) {
  const known = model.subnets.map((subnet) => subnet.accuracy);
  const bottom = Math.min(...known, low ?? 100),
    top = Math.max(...known, high ?? 0);
  const room = Math.max(0.5, (top - bottom) * 0.08);
  return [bottom - room, top + room];
}

/** All charts of the page. They are made anew when the model or its subnets change. */
export class Charts {
  constructor() {
    this.model = null;
    this.plots = [];
    this.resized = new ResizeObserver((entries) => {
      for (const { target } of entries) target.plot?.setSize(sizeOf(target));
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.plots.forEach((p) => p.redraw()));
  }

  /** Show a model's columns; `last`: the second that the last value is of. */
  show(model, columns, last) {
    const known = JSON.stringify([model.name, model.subnets]);
    if (known !== this.known) {
      this.known = known;
      this.plots.forEach((plot) => plot.end());
      this.plots = [
        ...Object.entries(CHARTS).map(([name, what]) => new Plot(name, what, model, this.resized)),
        new MixPlot(model, this.resized),
      ];
    }
    this.plots.forEach((plot) => plot.show(columns, last));
  }
}

class Plot {
  constructor(name, what, model, resized) {
    this.what = what;
    this.figure = document.getElementById(`chart-${name}`);
    this.place = this.figure.querySelector(".plot");
    this.output = this.figure.querySelector("output");
    this.resized = resized;
    this.data = [SECONDS];
    this.place.replaceChildren();
    const best = Math.max(0, ...model.subnets.map((subnet) => subnet.accuracy));
    const series = what.lines.map((line) => ({
      stroke: () => line.colour ?? colour(line.stroke ?? line.fill),
      fill: () => line.colour ?? colour(line.fill),
      fillTo: line.to === "best" ? best : (line.to ?? 0),
      width: line.stroke ? 1.75 : 0,
      paths: line.bars ? uPlot.paths.bars({ size: [1] }) : uPlot.paths.linear(),
      points: { show: Boolean(line.stroke), size: 5, filter: alone },
      spanGaps: false,
    }));
    const axis = { stroke: () => colour("muted"), font: FONT, ticks: { show: false } };
    const line = { stroke: () => colour("line"), width: 1 };
    this.plot = new uPlot(
      {
        ...sizeOf(this.place),
        padding: [8, 12, 0, 0],
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false }, sync: { key: "superserve" }, points: { size: 7 } },
        scales: {
          x: { time: false, range: [SECONDS[0], 0] },
          y: { range: (_, low, high) => what.range(low, high, model) },
        },
        axes: [
          {
            ...axis,
            grid: line,
            size: 24,
            splits: (plot) => (plot.width < 300 ? FEW : MINUTES),
            values: (_, s) => s.map((x) => (x ? `−${-x / 60} min` : "now")),
          },
          { ...axis, grid: line, size: 46, space: 32, values: (_, s) => s.map((y) => (y === null ? "" : short(y))) },
        ],
        series: [{}, ...series],
        hooks: { setCursor: [(plot) => this.point(plot.cursor.idx)] },
      },
      this.data,
      this.place,
    );
    this.place.plot = this.plot;
    resized.observe(this.place);
    this.empty = element("p", { className: "nothing", textContent: "nothing yet" });
    this.place.append(this.empty);
  }

  end() {
    this.resized.unobserve(this.place);
    this.plot.destroy();
  }

  redraw() {
    this.plot.redraw(false, true);
  }

  show(columns, last) {
    this.last = last;
    this.values = this.pick(columns);
    this.plot.setData([SECONDS, ...this.stack(this.values)]);
    this.empty.hidden = this.values.some((column) => column.some((value) => value !== null));
    this.point(this.plot.cursor.idx);
    const now = this.values.map((column) => column[SPAN_S - 1]);
    this.place.setAttribute(
      "aria-label",
      `${this.figure.querySelector("h2").textContent}, last five minutes, ${this.what.unit}; now ${this.what.tell(now)}`,
    );
  }

  pick(columns) {
    return this.what.lines.map((line) => columns[line.column]);
  }

  stack(values) {
    return values;
  }

  /** Tell the values under the pointer, and when they were. */
  point(index) {
    const there = index !== null && index !== undefined && this.values?.[0]?.[index] !== null;
    if (!there || !this.values) return say(this.output, "");
    const values = this.values.map((column) => column[index]);
    say(this.output, `${this.what.tell(values)} at ${clock(this.last + SECONDS[index])}`);
  }
}

/** Queries a second by subnet, the most accurate at the bottom: a burst piles the smaller ones on top. */
class MixPlot extends Plot {
  constructor(model, resized) {
    const total = model.subnets.length;
    const lines = model.subnets.map((_, i) => ({ colour: subnetColour(i, total) }));
    super(
      "mix",
      { lines, range: upFromZero(5), unit: "queries per second by subnet", tell: (v) => told(v, model) },
      model,
      resized,
    );
    this.shares = model.subnets.map(() => element("b"));
    const rows = model.subnets.map((subnet, i) =>
      element(
        "li",
        {},
        swatch(subnetColour(i, total)),
        element("span", { textContent: subnet.id, title: subnet.id }),
        element("i", { textContent: `${accuracy(subnet.accuracy)} %` }),
        this.shares[i],
      ),
    );
    document.getElementById("subnets").replaceChildren(...rows.reverse());
  }

  pick(columns) {
    return columns.mix;
  }

  /** Cumulative from the last one down; the tallest is drawn first and the others over it. */
  stack(values) {
    const heights = new Array(SPAN_S).fill(0);
    return values
      .toReversed()
      .map((column) =>
        column.map((value, i) => {
          heights[i] += value ?? 0;
          return value === null ? null : heights[i];
        }),
      )
      .reverse();
  }

  point(index) {
    super.point(index);
    const sum = (column) => column.slice(-WINDOW_S).reduce((total, value) => total + value, 0);
    const values =
      this.values?.map((column) => (index === null || index === undefined ? sum(column) : (column[index] ?? 0))) ?? [];
    const total = values.reduce((sum, value) => sum + value, 0);
    this.shares?.forEach((share, i) => say(share, total ? `${Math.round((100 * values[i]) / total)} %` : ""));
  }
}

function told(values, model) {
  const total = values.reduce((sum, value) => sum + value, 0);
  if (!total) return "none";
  const most = values.indexOf(Math.max(...values));
  return `${short(total)}/s, ${Math.round((100 * values[most]) / total)} % by ${model.subnets[most].id}`;
}

// The workers: a row each, with a lane of what it did in every second.

import { colour, element, milliseconds, say, short, subnetColour } from "./format.js";
import { SPAN_S, WINDOW_S } from "./history.js";

const LANE_HEIGHT = 20;
const STATES = ["busy", "idle", "draining", "lost"];

export class Workers {
  constructor() {
    this.rows = new Map();
    this.table = document.getElementById("workers");
    this.seen = new Map(); // finished queries by worker, at the latest seconds
  }

  /** Show a model's workers; `samples`: one a second, as History.of. */
  show(model, samples, nowS) {
    const workers = model.workers;
    const none = document.getElementById("no-worker");
    none.hidden = workers.length > 0;
    this.table.hidden = document.getElementById("states").hidden = !workers.length;
    if (!workers.length) say(none, `No worker yet. Launch one: superserve worker --model ${model.name} --redis URL`);
    this.problems(model.problems);
    for (const [name, row] of this.rows) {
      if (!workers.some((worker) => worker.name === name)) {
        row.line.remove();
        this.rows.delete(name);
        this.seen.delete(name);
      }
    }
    for (const worker of workers) this.row(worker, model, samples, nowS);
  }

  problems(problems) {
    const list = document.getElementById("problems");
    list.hidden = !problems.length;
    if (list.dataset.told !== problems.join("\n")) {
      list.dataset.told = problems.join("\n");
      list.replaceChildren(...problems.map((problem) => element("li", { textContent: problem })));
    }
  }

  row(worker, model, samples, nowS) {
    let row = this.rows.get(worker.name);
    if (!row) {
      row = makeRow(worker.name);
      this.rows.set(worker.name, row);
      const names = [...this.rows.keys()].sort();
      this.table.tBodies[0].append(...names.map((name) => this.rows.get(name).line));
    }
    const subnet = model.subnets.findIndex((one) => one.id === worker.subnet);
    row.line.dataset.state = row.state.dataset.state = worker.state;
    say(row.state, worker.state);
    say(row.subnet, worker.subnet ?? "none yet");
    say(row.rate, worker.state === "lost" ? "0" : short(this.rate(worker, nowS)));
    say(row.idle, worker.batches > 1 ? milliseconds(worker.idle_ms.p50) : "–");
    say(row.place, `${worker.executor} · ${worker.device}`);
    row.place.title = row.place.textContent;
    row.dot.style.background = subnetColour(subnet, model.subnets.length);
    row.dot.hidden = worker.subnet === null;
    draw(
      row.lane,
      samples.map((sample) => sample?.workers[worker.name]),
      model,
    );
    row.lane.setAttribute("aria-label", `${worker.name} over five minutes; now ${worker.state}`);
  }

  /** Queries a second over the latest seconds that this page has seen. */
  rate(worker, nowS) {
    const seen = this.seen.get(worker.name) ?? [];
    this.seen.set(worker.name, seen);
    if (seen.length && worker.queries < seen.at(-1)[1]) seen.length = 0;
    seen.push([nowS, worker.queries]);
    while (seen.length > 2 && seen[0][0] < nowS - WINDOW_S) seen.shift();
    const [[firstS, first]] = seen;
    return nowS > firstS ? (worker.queries - first) / (nowS - firstS) : null;
  }
}

function makeRow(name) {
  const cell = (className = "", ...children) => element("td", { className }, ...children);
  const state = element("span", { className: "badge" }),
    subnet = element("span");
  const dot = element("span", { className: "swatch", ariaHidden: "true", hidden: true });
  const rate = cell("number"),
    idle = cell("number wide"),
    place = cell("wide");
  const lane = element("canvas", { height: LANE_HEIGHT });
  lane.setAttribute("role", "img");
  const line = element(
    "tr",
    {},
    element("th", { scope: "row", textContent: name }),
    cell("", state),
    cell("subnet", dot, subnet),
    rate,
    idle,
    place,
    cell("lane", lane),
  );
  return { line, state, subnet, dot, rate, idle, place, lane };
}

/** Colour one second after the other: its subnet's while busy, lower what does no work, as page.css has it. */
function draw(lane, states, model) {
  const scale = devicePixelRatio || 1;
  const width = Math.round(lane.clientWidth * scale),
    height = Math.round(LANE_HEIGHT * scale);
  if (!width) return;
  if (lane.width !== width || lane.height !== height) Object.assign(lane, { width, height });
  const context = lane.getContext("2d");
  context.clearRect(0, 0, width, height);
  const fills = Object.fromEntries(STATES.map((state) => [state, colour(`state-${state}`)]));
  const ids = model.subnets.map((subnet) => subnet.id);
  states.forEach((known, second) => {
    if (!known) return;
    const [state, subnet] = known;
    const left = Math.floor((second * width) / SPAN_S),
      right = Math.floor(((second + 1) * width) / SPAN_S);
    const low = state === "idle" || state === "draining" ? 0.6 : 0;
    context.fillStyle = state === "busy" ? subnetColour(ids.indexOf(subnet), ids.length) : fills[state];
    context.fillRect(left, low * height, right - left, (1 - low) * height);
  });
}

/** How many workers are in which state, in words, the worst last. */
export function census(workers) {
  const told = STATES.map((state) => [workers.filter((worker) => worker.state === state).length, state]);
  return told
    .filter(([number]) => number)
    .map(([number, state]) => `${number} ${state}`)
    .join(", ");
}

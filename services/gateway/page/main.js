// The page's clock: once a second it asks the gateway what is new, and shows it.

import { Ask } from "./ask.js";
import { Charts } from "./charts.js";
import { element, say } from "./format.js";
import { headline, silent } from "./headline.js";
import { History, columns, recent } from "./history.js";
import { Workers } from "./workers.js";

const EVERY_MS = 1000;
const PATIENCE_MS = 5000;

const history = new History();
const charts = new Charts();
const workers = new Workers();
const ask = new Ask();
const select = document.getElementById("model");
let overview = null;
let goneSince = null;
let timer = null;

async function read(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(PATIENCE_MS), cache: "no-store" });
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

async function tick() {
  clearTimeout(timer);
  const started = performance.now();
  try {
    const [found, sampled] = await Promise.all([
      read("v2/overview"),
      read(`v2/overview/history?after=${history.last}`),
    ]);
    if (found.now_us / 1e6 < history.last - PATIENCE_MS / 1000) history.clear(); // another Redis, with another clock
    overview = found;
    history.add(sampled.samples);
    goneSince = null;
  } catch {
    goneSince ??= Date.now();
  }
  show();
  if (!document.hidden) timer = setTimeout(tick, Math.max(100, EVERY_MS - (performance.now() - started)));
}

function show() {
  link();
  document.body.classList.toggle("stale", goneSince !== null);
  if (overview) choices();
  const model = overview?.models.find((one) => one.name === select.value);
  ask.show(model ?? null);
  if (goneSince !== null) {
    silent("bad", "The gateway does not answer", "What is shown is the last that it said. Trying again every second.");
  } else if (!model) {
    silent(
      "idle",
      "No model yet",
      "Launch a scheduler and a worker: superserve scheduler --model NAME, superserve worker --model NAME",
    );
  }
  if (!model) return;
  const samples = history.of(model.name);
  charts.show(
    model,
    columns(
      samples,
      model.subnets.map((subnet) => subnet.id),
    ),
    history.last,
  );
  workers.show(model, samples, overview.now_us / 1e6);
  if (goneSince === null) headline(model, recent(samples));
  say(document.getElementById("policy"), model.policy ? `policy ${model.policy}` : "no scheduler");
}

function link() {
  const place = document.getElementById("link");
  const gone = goneSince === null ? 0 : Math.round((Date.now() - goneSince) / 1000);
  place.dataset.state = goneSince === null ? "live" : "gone";
  say(place.lastElementChild, goneSince === null ? "Live" : `Gateway gone for ${gone} s`);
}

function choices() {
  const names = overview.models.map((model) => model.name);
  const shown = [...select.options].map((option) => option.value);
  if (names.length && names.join("\n") === shown.join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(
    ...(names.length ? names : ["none yet"]).map((name) => element("option", { textContent: name })),
  );
  select.disabled = names.length < 2;
  if (names.includes(chosen)) select.value = chosen;
}

select.addEventListener("change", show);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) tick();
});
tick();

// One sentence that says how it goes, and the few big numbers behind it.

import { NONE, accuracy, count, percent, say, short } from "./format.js";
import { WINDOW_S } from "./history.js";
import { census } from "./workers.js";

const GOOD = 99,
  BAD = 95; // percent answered in time: below the one it is worth a look, below the other it is wrong
const FEW = 20; // queries of which a share says nothing
const BENT = 0.5; // points below the best subnet that are worth a word

/** Say that nothing can be said of a model, and why. */
export function silent(tone, title, words = "") {
  verdict(tone, title, words);
  for (const tile of document.querySelectorAll(".tile")) fill(tile.id, NONE, "", "idle");
}

/** Show a model; `now`: its latest seconds, as history.recent. */
export function headline(model, now) {
  const best = Math.max(0, ...model.subnets.map((subnet) => subnet.accuracy));
  const least = Math.min(best, ...model.subnets.map((subnet) => subnet.accuracy));
  const given = now.accuracy === null ? null : Math.max(0, best - now.accuracy);
  verdict(...judge(model, now, given));

  const tone = toneOf(now.attainment);
  fill(
    "tile-attainment",
    percent(now.attainment),
    now.slo ? `${short(now.missed)} missed in ${WINDOW_S} s` : "no query lately",
    tone,
  );
  fill(
    "tile-accuracy",
    accuracy(now.accuracy),
    best ? `${accuracy(least)} – ${accuracy(best)} % possible` : "no subnet known",
    given === null ? "idle" : given > BENT ? "warn" : "good",
  );
  fill("tile-arrivals", short(now.arrivals), `mean of ${WINDOW_S} s`, "plain");
  fill(
    "tile-queue",
    short(model.queue.queries),
    model.head_slack_ms === null ? "nobody waits" : `first has ${short(model.head_slack_ms)} ms left`,
    model.head_slack_ms !== null && model.head_slack_ms < 0 ? "bad" : "plain",
  );
  fill(
    "tile-slack",
    short(now.slackMs),
    now.slackMs === null ? "no batch lately" : "left to the deadline",
    now.slackMs === null ? "idle" : "plain",
  );
  const lost = model.workers.filter((worker) => worker.state === "lost").length;
  const alive = model.workers.length - lost;
  fill("tile-workers", short(alive), census(model.workers) || "none", !alive ? "bad" : lost ? "warn" : "good");
}

function judge(model, now, given) {
  const lost = model.workers.filter((worker) => worker.state === "lost").length;
  const also = lost ? ` ${count(lost, "worker")} lost.` : "";
  const alive = model.workers.filter((worker) => worker.state === "idle" || worker.state === "busy").length;
  if (!model.ready) {
    const hint = alive ? "" : ` Launch one: superserve worker --model ${model.name} --redis URL`;
    return [
      "bad",
      "Not serving",
      `${model.reason[0].toUpperCase()}${model.reason.slice(1)}.${model.scheduler ? hint : ""}${also}`,
    ];
  }
  if (!now.slo) return [lost ? "warn" : "idle", "Ready, no traffic", `${count(alive, "worker")} waiting.${also}`];
  if (now.slo < FEW && now.missed) {
    return [
      "warn",
      "Little traffic",
      `${now.missed} of ${count(now.slo, "query", "queries")} missed the deadline.${also}`,
    ];
  }
  const missed = `${percent(100 - now.attainment)} % of the queries miss their deadline`;
  if (now.attainment < BAD) return ["bad", "Overloaded", `${missed}: more workers would help.${also}`];
  if (now.attainment < GOOD) return ["warn", "Under pressure", `${missed}.${also}`];
  if (given !== null && given > BENT) {
    return [
      lost ? "warn" : "good",
      "Deadlines hold",
      `Accuracy bends by ${accuracy(given)} points to keep them.${also}`,
    ];
  }
  return [lost ? "warn" : "good", "All well", `Deadlines hold at full accuracy.${also}`];
}

function toneOf(attainment) {
  if (attainment === null) return "idle";
  return attainment >= GOOD ? "good" : attainment >= BAD ? "warn" : "bad";
}

function verdict(tone, title, words) {
  const place = document.getElementById("verdict");
  place.dataset.tone = tone;
  say(place.querySelector("strong"), title);
  say(place.querySelector("span"), words);
}

function fill(id, value, note, tone) {
  const tile = document.getElementById(id);
  tile.dataset.tone = tone;
  say(tile.querySelector("b"), value);
  say(tile.querySelector(".note"), note);
}

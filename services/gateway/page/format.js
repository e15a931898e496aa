// Numbers in words, colours by meaning, and elements by their content.

export const NONE = "–";

const ROUND = [0, 1, 2].map(
  (digits) =>
    new Intl.NumberFormat("en", {
      minimumFractionDigits: digits,
      maximumFractionDigits: digits,
    }),
);
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const CLOCK = new Intl.DateTimeFormat(undefined, { timeStyle: "medium", hourCycle: "h23" });

// From the least accurate subnet to the most accurate: lightness and hue both change, so that eyes of any kind tell
// neighbours apart, and none of them is the red that means bad.
const RAMP = [
  [222, 170, 22],
  [132, 178, 66],
  [40, 160, 140],
  [42, 132, 196],
  [98, 104, 226],
  [140, 82, 196],
];

/** A number with as many digits as matter: 0.42, 4.2, 42, 4,200, 42K. */
export function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 10_000) return COMPACT.format(value);
  return ROUND[size >= 100 || Number.isInteger(value) ? 0 : size >= 1 ? 1 : 2].format(value);
}

/** Percent, rounded down: 99.99 % is not all. */
export function percent(value) {
  if (value === null || value === undefined) return NONE;
  return value >= 100 ? "100" : ROUND[1].format(Math.floor(value * 10 + 1e-6) / 10);
}

export function accuracy(value) {
  return value === null || value === undefined ? NONE : ROUND[1].format(value);
}

export function milliseconds(value) {
  return `${short(value)} ms`;
}

export function clock(atS) {
  return CLOCK.format(new Date(atS * 1000));
}

export function count(number, one, many = `${one}s`) {
  return `${short(number)} ${number === 1 ? one : many}`;
}

/** The colour of the subnet at `index` of `total`, ascending by accuracy. */
export function subnetColour(index, total) {
  if (index < 0) return "#888888";
  const place = total < 2 ? RAMP.length - 1 : (index / (total - 1)) * (RAMP.length - 1);
  const below = Math.min(Math.floor(place), RAMP.length - 2);
  const mixed = RAMP[below].map((value, i) => Math.round(value + (RAMP[below + 1][i] - value) * (place - below)));
  return `rgb(${mixed.join(" ")})`;
}

/** A colour of page.css by its name, as the present scheme has it. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** A short square of colour before a legend's words; styles set by script are no inline styles. */
export function swatch(fill) {
  const made = element("span", { className: "swatch", ariaHidden: "true" });
  made.style.background = fill;
  return made;
}

/** Change a text only where it differs: readers are told of changes. */
export function say(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

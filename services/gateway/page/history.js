// What the gateway has sampled, by second, and what the page makes of it.

export const SPAN_S = 300;
export const WINDOW_S = 10; // headline figures: long enough to stand still, short enough to be now

const SUMS = ["span_s", "arrived", "answered", "slo", "accuracy_sum", "slack_us_sum", "slack_count"];

export class History {
  constructor() {
    this.samples = new Map();
    this.last = 0;
  }

  /** Take samples in; gateways that share an address sample the same seconds, so one replaces the other. */
  add(samples) {
    for (const sample of samples) {
      this.samples.set(sample.at_s, sample.models);
      this.last = Math.max(this.last, sample.at_s);
    }
    for (const second of this.samples.keys()) {
      if (second <= this.last - SPAN_S) this.samples.delete(second);
    }
  }

  clear() {
    this.samples.clear();
    this.last = 0;
  }

  /** The samples of a model, oldest first, SPAN_S of them; undefined where there is none. */
  of(model) {
    const first = this.last - SPAN_S + 1;
    return Array.from({ length: SPAN_S }, (_, i) => this.samples.get(first + i)?.[model]);
  }
}

/** Columns for the charts: one value a second, null where nothing is known. `subnets`: ids, ascending by accuracy. */
export function columns(samples, subnets) {
  const rate = (sample, count) => (sample?.span_s ? count / sample.span_s : null);
  const column = (read) => samples.map((sample) => (sample ? read(sample) : null));
  const ratio = (part, whole) => (whole ? part / whole : null);
  return {
    arrivals: column((s) => rate(s, s.arrived)),
    missed: column((s) => rate(s, s.slo - s.answered)),
    attainment: column((s) => ratio(100 * s.answered, s.slo)),
    accuracy: column((s) => ratio(s.accuracy_sum, s.answered)),
    queue: column((s) => s.queue),
    slack: column((s) => ratio(s.slack_us_sum / 1000, s.slack_count)),
    mix: subnets.map((id) => column((s) => rate(s, s.subnets?.[id] ?? 0))),
  };
}

/** The latest seconds added up. */
export function recent(samples) {
  const total = Object.fromEntries(SUMS.map((key) => [key, 0]));
  for (const sample of samples.slice(-WINDOW_S)) {
    if (!sample?.span_s) continue;
    for (const key of SUMS) total[key] += sample[key];
  }
  const ratio = (part, whole) => (whole ? part / whole : null);
  return {
    arrivals: ratio(total.arrived, total.span_s),
    slo: total.slo,
    missed: total.slo - total.answered,
    attainment: ratio(100 * total.answered, total.slo),
    accuracy: ratio(total.accuracy_sum, total.answered),
    slackMs: ratio(total.slack_us_sum / 1000, total.slack_count),
  };
}

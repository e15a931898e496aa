// One query by hand: a picture or a text goes out, and the answer says who made it, how well, and where the time went.

import { accuracy, element, milliseconds, say, subnetColour, swatch } from "./format.js";

const SAMPLES = ["t-shirt", "dress", "sandal", "sneaker", "bag", "boot"];
const KINDS = ["image/png", "image/jpeg"];
const STAGES = [
  ["queue", "queue_ms"],
  ["inference", "inference_ms"],
  ["reply", null],
];
// Why an answer is degraded, as the scheduler says it.
const REASONS = {
  slack: "no slack for a better subnet",
  floor: "only the accuracy asked for",
  policy: "the policy saved time for others",
  cap: "no better subnet to be had",
};

export class Ask {
  constructor() {
    this.model = null;
    this.form = document.getElementById("ask-form");
    this.none = document.getElementById("ask-none");
    this.error = document.getElementById("ask-error");
    this.answer = document.getElementById("answer");
    const file = document.getElementById("file"),
      drop = document.getElementById("drop");
    file.addEventListener("change", () => {
      if (file.files.length) this.picture(file.files[0]);
      file.value = ""; // the same file may be chosen again
    });
    for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
      document.addEventListener(kind, (event) => {
        event.preventDefault(); // a picture dropped beside the place would replace the page
        drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
      });
    }
    document.addEventListener("drop", (event) => {
      const [dropped] = event.dataTransfer.files;
      if (dropped && this.frame) this.picture(dropped);
    });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.takesText) this.send(document.getElementById("text").value, "text/plain", null);
    });
    document.getElementById("samples").append(...SAMPLES.map((name) => this.sample(name)));
  }

  /** Offer what a model takes; null: none is known. Its inputs are known with its subnets, from its first worker on. */
  async show(model) {
    this.model = model;
    if (!model?.subnets.length || model.name === this.asked) return;
    this.asked = model.name;
    this.answer.replaceChildren();
    const response = await fetch(`v2/models/${encodeURIComponent(model.name)}`).catch(() => null);
    if (!response?.ok) {
      this.asked = null;
      return;
    }
    const { inputs } = await response.json();
    const [input] = inputs;
    const row = input.shape.slice(1);
    this.offer(
      inputs.length === 1 && input.datatype === "UINT8" ? frameOf(row) : null,
      inputs.length === 1 && input.datatype === "BYTES",
      `This model takes tensors: ${inputs.map((one) => `${one.name} ${one.datatype}[${one.shape}]`).join(", ")}.`,
    );
  }

  offer(frame, text, otherwise) {
    this.frame = frame;
    this.takesText = text;
    this.form.hidden = !frame && !text;
    this.none.hidden = !this.form.hidden;
    say(this.none, otherwise);
    document.getElementById("ask-image").hidden = !frame;
    document.getElementById("ask-text").hidden = !text;
    if (frame) say(document.getElementById("frame"), `PNG or JPEG, resized to ${frame[0]} × ${frame[1]}`);
  }

  sample(name) {
    const url = `page/sample-${name}.png`;
    const picture = element("img", { src: url, alt: `Sample: ${name}`, width: 42, height: 42, loading: "lazy" });
    const button = element("button", { type: "button", title: `Send this ${name}` }, picture);
    button.addEventListener("click", async () => {
      const response = await fetch(url).catch(() => null);
      if (response?.ok) this.picture(await response.blob());
      else this.fail("The sample picture cannot be had: the gateway does not answer.");
    });
    return button;
  }

  picture(file) {
    if (!KINDS.includes(file.type))
      return this.fail(`${file.name || "This"} is ${file.type || "of no known type"}: PNG or JPEG, please.`);
    return this.send(file, file.type, file);
  }

  fail(message) {
    say(this.error, message);
    this.error.hidden = false;
    this.form.removeAttribute("aria-busy");
  }

  async send(body, kind, picture) {
    const slo = document.getElementById("slo");
    this.error.hidden = true;
    if (!slo.reportValidity()) return;
    const query = slo.value ? `?slo_ms=${encodeURIComponent(slo.value)}` : "";
    this.form.setAttribute("aria-busy", "true");
    const model = this.model;
    try {
      const path = `v2/models/${encodeURIComponent(model.name)}/infer${query}`;
      const response = await fetch(path, { method: "POST", headers: { "Content-Type": kind }, body });
      const answer = await response.json();
      if (!response.ok) return this.fail(`${response.status}: ${answer.error}`);
      this.answer.replaceChildren(told(answer, model, picture));
    } catch {
      return this.fail("The gateway does not answer.");
    }
    this.form.removeAttribute("aria-busy");
  }
}

/** Height and width of the picture that a row's shape is, or null. */
function frameOf(shape) {
  if (shape.length === 2) return shape;
  if (shape.length !== 3) return null;
  if (shape[0] === 1 || shape[0] === 3) return shape.slice(1);
  return shape[2] === 1 || shape[2] === 3 ? shape.slice(0, 2) : null;
}

function told(answer, model, picture) {
  const { parameters } = answer;
  const best = Math.max(0, ...model.subnets.map((subnet) => subnet.accuracy));
  const index = model.subnets.findIndex((subnet) => subnet.id === parameters.subnet);
  const degraded = parameters.degraded ?? parameters.accuracy < best;
  const why = parameters.degraded_reason
    ? `, ${REASONS[parameters.degraded_reason] ?? parameters.degraded_reason}`
    : "";
  const badge = (tone, textContent) => {
    const made = element("span", { className: "badge", textContent });
    made.dataset.tone = tone;
    return made;
  };
  const fact = (name, ...value) => [element("dt", { textContent: name }), element("dd", {}, ...value)];
  const label = parameters.label_name ?? JSON.stringify(answer.outputs[0]?.data?.slice(0, 4) ?? []);
  const head = element("div", { className: "said" }, element("strong", { textContent: label }));
  if (picture) {
    const src = URL.createObjectURL(picture);
    const onload = () => URL.revokeObjectURL(src); // shown is kept, the file behind it is not
    head.prepend(element("img", { src, onload, alt: "The picture sent", width: 64, height: 64 }));
  }
  return element(
    "div",
    { className: "answer" },
    head,
    element(
      "dl",
      {},
      ...fact(
        "Subnet",
        swatch(subnetColour(index, model.subnets.length)),
        element("span", { className: "subnet", textContent: parameters.subnet }),
      ),
      ...fact("Accuracy", `${accuracy(parameters.accuracy)} % by its profile; the best has ${accuracy(best)} %`),
      ...fact("Degraded", degraded ? badge("warn", `yes${why}`) : badge("good", "no")),
      ...fact("Deadline", parameters.deadline_met ? badge("good", "met") : badge("bad", "missed")),
      ...fact("Served by", `${parameters.worker}, batch of ${parameters.batch_size}`),
      ...fact("Query", element("code", { textContent: parameters.query_id })),
    ),
    stages(parameters),
    parameters.executor === "emulated"
      ? element("p", {
          className: "muted",
          textContent: "An emulated worker keeps time and computes nothing: its label means nothing.",
        })
      : "",
  );
}

/** A bar of the stages, as long as they took, and the same in words. */
function stages(parameters) {
  const reply = Math.max(0, parameters.total_ms - parameters.queue_ms - parameters.inference_ms);
  const times = STAGES.map(([name, key]) => [name, key ? parameters[key] : reply]);
  const bar = element(
    "div",
    { className: "bar", ariaHidden: "true" },
    ...times.map(([name, ms]) => {
      const part = element("span", { className: `stage-${name}` });
      part.style.flexGrow = ms / parameters.total_ms;
      return part;
    }),
  );
  const words = times.map(([name, ms]) =>
    element("li", { className: `key-${name}` }, `${name} `, element("b", { textContent: milliseconds(ms) })),
  );
  const total = element(
    "p",
    { className: "total" },
    "Answered in ",
    element("b", { textContent: milliseconds(parameters.total_ms) }),
  );
  return element("div", { className: "stages" }, total, bar, element("ul", { className: "legend" }, ...words));
}

// The page's program: it takes drawings, sends requests, and shows the answers. All results come from the server.

const $ = (selector, within = document) => within.querySelector(selector);
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

const NORMS = { inf: "L∞", 2: "L2", 1: "L1" };
const METHODS = { crown: "CROWN", ibp: "IBP" };
const FIRST = ["CNN-best", "CNN5_bn-mtl_ibp-inf-0.1-best"]; // networks chosen at first, if they are offered
const COMPILES = 700; // milliseconds until the status of a program's first run says "compiling"; compiled ones are faster
const BEYOND = 1.12; // length of the tracks that show distances, relative to the largest distance or radius

// The image to attack: as a request has it (pixels, or index in val), or null; and its 784 grey levels.
let image = null;
let pixels = null;

// ---- the drawing pad -----------------------------------------------------------------------------------------------

const pad = $("#pad");
const ink = pad.getContext("2d", { willReadFrequently: true });
let last = null; // position of the pen while it is down
let marks = 0; // counts changes of the pad: an answer about an earlier drawing is ignored

function clear() {
  marks += 1;
  ink.fillStyle = "black";
  ink.fillRect(0, 0, pad.width, pad.height);
}

function place(event) {
  const box = pad.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * pad.width, ((event.clientY - box.top) / box.height) * pad.height];
}

function stroke(event) {
  const now = place(event);
  ink.strokeStyle = "white";
  ink.lineWidth = 22; // as thick as the strokes of MNIST, if a digit fills the pad
  ink.lineCap = ink.lineJoin = "round";
  ink.beginPath();
  ink.moveTo(...last);
  ink.lineTo(now[0] + 0.01, now[1]); // draws a dot even if the pen did not move
  ink.stroke();
  last = now;
}

pad.addEventListener("pointerdown", (event) => {
  pad.setPointerCapture(event.pointerId);
  marks += 1;
  last = place(event);
  stroke(event);
});
pad.addEventListener("pointermove", (event) => last && stroke(event));
pad.addEventListener("pointerup", () => {
  if (!last) return;
  last = null;
  attempt(async () => {
    const drawn = ink.getImageData(0, 0, pad.width, pad.height).data.filter((_, at) => at % 4 === 0);
    const mark = marks;
    const answer = await ask("/digit", { body: drawn, type: "application/octet-stream" });
    if (mark === marks) change({ pixels: answer.pixels }, answer.pixels, "drawn; each network's own prediction is taken as the label");
  });
});
pad.addEventListener("pointercancel", () => (last = null));

function take(index) {
  return attempt(async () => {
    clear();
    const mark = marks;
    const answer = await ask(`/val/${index}`);
    if (mark !== marks) return;
    const small = document.createElement("canvas");
    small.width = small.height = 28;
    paint(small, bytes(answer.pixels), 1);
    ink.imageSmoothingEnabled = false;
    ink.drawImage(small, 0, 0, pad.width, pad.height);
    $("#index").value = index;
    change({ index }, answer.pixels, `image ${index} of val, labelled ${answer.label}`);
  });
}

function change(asked, grey, about) {
  $("#wrong").textContent = "";
  image = asked;
  pixels = bytes(grey);
  $("#about").textContent = about;
  $("#attack").disabled = false;
  panels.forEach((panel) => panel.look());
}

// ---- requests ------------------------------------------------------------------------------------------------------

async function ask(path, { body, type = "application/json", signal } = {}) {
  const how = body === undefined ? {} : { method: "POST", body, headers: { "Content-Type": type } };
  const response = await answered(path, { ...how, signal });
  return response.json();
}

async function answered(path, how) {
  const response = await fetch(path, how);
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  throw new Error(said.error ?? (response.status === 503 ? "too many requests at the same time: try again" : response.statusText));
}

// Runs the action, and shows an error as a line. A request that the page itself aborted is not an error.
async function attempt(action) {
  try {
    await action();
  } catch (error) {
    if (error.name === "AbortError") return;
    $("#wrong").textContent = error instanceof TypeError ? "the server does not answer: is it still running?" : error.message;
  }
}

// ---- the panel of a network ----------------------------------------------------------------------------------------

function paint(canvas, values, channels) {
  const context = canvas.getContext("2d");
  const picture = context.createImageData(canvas.width, canvas.height);
  for (let at = 0; at < canvas.width * canvas.height; at++) {
    for (let color = 0; color < 3; color++) picture.data[4 * at + color] = values[channels * at + (color % channels)];
    picture.data[4 * at + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
}

const chosen = (name) => $(`input[name=${name}]:checked`).value;
const percent = (share) => (share >= 0.9995 ? ">99.9 %" : share < 0.0005 ? "<0.1 %" : `${(100 * share).toFixed(1)} %`);
const digits = (value) => (value === 0 ? "0" : value.toPrecision(3));
const claim = (seen) => `${seen.class}, ${percent(seen.confidences[seen.class])}`;

class Panel {
  constructor(networks, first) {
    this.element = $("#panel").content.firstElementChild.cloneNode(true);
    this.networks = $(".network", this.element);
    const defended = (name) => name.split("-").length > 2;
    for (const [title, belongs] of [["plain", (name) => !defended(name)], ["defended", defended]]) {
      const names = networks.filter(belongs);
      if (!names.length) continue;
      const group = this.networks.appendChild(document.createElement("optgroup"));
      group.label = title;
      group.append(...names.map((name) => new Option(name)));
    }
    if (networks.includes(first)) this.networks.value = first;
    for (let label = 0; label < 10; label++) {
      const bar = document.createElement("div");
      bar.innerHTML = "<i></i><i></i><span></span>";
      $("span", bar).textContent = label;
      $(".bars", this.element).append(bar);
    }
    this.networks.addEventListener("change", () => this.look());
    this.look();
  }

  // Aborts the running request, and clears the panel.
  forget() {
    this.asking?.abort();
    this.asking = new AbortController();
    this.distance = this.radius = null;
    for (const name of ["image", "perturbation", "adversarial"]) {
      const canvas = this.part(name);
      canvas.getContext("2d").clearRect(0, 0, 28, 28);
      canvas.classList.add("none");
    }
    for (const name of ["before", "limit", "after", "status"]) this.say(name, "\u00a0");
    for (const name of ["radius", "distance"]) this.say(name, "–");
    for (const link of this.part("files").children) URL.revokeObjectURL(link.href);
    this.part("files").replaceChildren();
    this.bars(0, null);
    this.bars(1, null);
    this.progress(0);
    measure();
  }

  part(name) { return $(`.${name}`, this.element); }
  say(name, text) { this.part(name).textContent = text; }

  request() {
    const body = { image, network: this.networks.value, norm: chosen("norm"), effort: chosen("effort") };
    return { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal: this.asking.signal };
  }

  // Asks for the network's prediction of the image.
  look() {
    this.forget();
    this.say("norm", NORMS[chosen("norm")]);
    if (!image) return;
    paint(this.part("image"), pixels, 1);
    return attempt(async () => this.seen(await (await answered("/seen", this.request())).json()));
  }

  // Starts a search; each line of the answer is an event, handled by the method of that name.
  attack() {
    this.forget();
    paint(this.part("image"), pixels, 1);
    return attempt(async () => {
      try {
        const response = await answered("/search", this.request());
        const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
        let text = "";
        for (let part; !(part = await reader.read()).done; ) {
          const lines = (text + part.value).split("\n");
          text = lines.pop();
          for (const event of lines.map(JSON.parse)) this[event.event](event);
        }
      } catch (error) {
        this.progress(0);
        if (error.name !== "AbortError") this.say("status", "the search failed");
        throw error;
      }
    });
  }

  seen(event) {
    this.say("before", claim(event));
    this.bars(0, event.confidences);
  }

  working(event) {
    const what = { nearest: "searching for a nearer one", certificate: "certifying a radius", figure: "drawing the figure" }[event.on];
    this.say("status", `${what} …`);
    this.progress(event.share);
    if (event.new) this.waiting = setTimeout(() => {
      this.say("status", "compiling, as this is the first such search …");
      this.part("progress").classList.add("unknown");
    }, COMPILES);
  }

  found(event) {
    this.progress();
    this.distance = event.distance;
    paint(this.part("perturbation"), bytes(event.perturbation), 3);
    paint(this.part("adversarial"), bytes(event.image), 1);
    for (const name of ["perturbation", "adversarial"]) this.part(name).classList.remove("none");
    this.say("limit", event.distance ? `±${digits(event.limit)} at most` : "none needed");
    this.say("after", claim(event));
    this.say("distance", event.distance ? digits(event.distance) : "0, misclassified as it is");
    this.bars(1, event.confidences);
    measure();
  }

  certified(event) {
    this.progress();
    this.radius = event.radius;
    const note = document.createElement("small");
    note.textContent = event.reason ? " no bound is known" : ` by ${METHODS[event.method] ?? event.method}`;
    note.title = event.reason ?? "";
    this.say("radius", digits(event.radius));
    this.part("radius").append(note);
    measure();
  }

  done(event) {
    this.progress(1);
    this.say("status", `${this.distance === null ? "nothing found, " : ""}done in ${event.seconds.toFixed(1)} s`);
    for (const [name, content] of Object.entries(event.files)) {
      const link = document.createElement("a");
      const suffix = name.slice(name.lastIndexOf(".") + 1);
      link.textContent = suffix.toUpperCase();
      link.download = name;
      link.href = URL.createObjectURL(new Blob([bytes(content)], { type: suffix === "png" ? "image/png" : "application/octet-stream" }));
      this.part("files").append(link);
    }
  }

  bars(which, confidences) {
    this.element.querySelectorAll(".bars div").forEach((bar, label) => {
      bar.children[which].style.height = confidences ? `${100 * confidences[label]}%` : "0";
    });
  }

  // Shows which share of the search is done, if given; and stops showing that a program compiles.
  progress(share) {
    clearTimeout(this.waiting);
    this.part("progress").classList.remove("unknown");
    if (share !== undefined) this.part("progress").firstElementChild.style.width = `${100 * share}%`;
  }

  // Shows the certified radius and the distance found, on a scale from 0 to `limit` that both networks share.
  measure(limit) {
    const at = (value) => `${(100 * value) / limit}%`;
    const found = this.distance, radius = this.radius ?? 0;
    this.part("track").classList.toggle("empty", found === null);
    this.part("proved").style.width = limit ? at(radius) : "0";
    this.part("open").style.left = limit ? at(radius) : "0";
    this.part("open").style.width = limit && found !== null ? at(Math.max(found - radius, 0)) : "0";
    this.part("mark").style.left = limit && found !== null ? at(found) : "-10px";
  }
}

function measure() {
  const limit = BEYOND * Math.max(0, ...panels.flatMap((panel) => [panel.distance ?? 0, panel.radius ?? 0]));
  panels.forEach((panel) => panel.measure(limit));
}

// ---- the page ------------------------------------------------------------------------------------------------------

const panels = [];

function options(parent, name, values, titles, checked) {
  for (const value of values) {
    const label = parent.appendChild(document.createElement("label"));
    const input = label.appendChild(Object.assign(document.createElement("input"), { type: "radio", name, value }));
    input.checked = value === checked;
    input.addEventListener("change", () => panels.forEach((panel) => panel.look()));
    label.append(titles[value] ?? value);
  }
}

attempt(async () => {
  clear();
  const choices = await ask("/choices");
  options($("#norms"), "norm", choices.norms, NORMS, "inf");
  options($("#efforts"), "effort", choices.efforts, {}, "standard");
  for (const [place, name] of FIRST.entries()) {
    panels.push(new Panel(choices.networks, choices.networks.includes(name) ? name : choices.networks[place]));
  }
  $("#panels").append(...panels.map((panel) => panel.element));
  $("#index").max = choices.images - 1;
  $("#clear").addEventListener("click", () => {
    clear();
    image = pixels = null;
    $("#about").textContent = "";
    $("#attack").disabled = true;
    panels.forEach((panel) => panel.forget());
  });
  $("#take").addEventListener("click", () => take($("#index").valueAsNumber));
  $("#index").addEventListener("keydown", (event) => event.key === "Enter" && take($("#index").valueAsNumber));
  $("#another").addEventListener("click", () => take(Math.floor(Math.random() * choices.images)));
  $("#attack").addEventListener("click", () => {
    $("#wrong").textContent = "";
    panels.forEach((panel) => panel.attack());
    // On a phone the panels are below the screen.
    if (matchMedia("(max-width: 640px)").matches) $("#panels").scrollIntoView({ behavior: "smooth" });
  });
});

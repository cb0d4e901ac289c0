"use strict";
// Text of users (names, captions, reasons) reaches the page as text nodes only.
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const PAGE = 60; // clips of the list at a time

function make(tag, text = "", properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  element.textContent = text;
  return element;
}

function named(model) {
  const key = make("i", "", { className: `key ${data.models[model].style}` });
  const words = document.createDocumentFragment();
  words.append(key, data.models[model].name);
  return words;
}

// --- films: frames cut out of sheets ---------------------------------------------------------

const opened = new Map(); // the few that were looked at last

function openFilm(number) {
  if (!opened.has(number)) {
    opened.set(number, decode(number));
    if (opened.size > 6) opened.delete(opened.keys().next().value);
  }
  return opened.get(number);
}

// --- players: A, B and their difference, always of the same frame ------------------------------

const sides = ["a", "b"].map((side) => ({
  side, clip: null, film: null, pen: $(`canvas-${side}`).getContext("2d", { willReadFrequently: true }),
}));
const difference = $("difference").getContext("2d"), scratch = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const state = { frame: 0, playing: false, since: 0, from: 0, gain: 4, turn: 0 };

const films = () => sides.map((s) => s.film).filter(Boolean);
const length = () => Math.max(1, ...films().map((f) => f.frames));
const stride = () => Math.max(1, ...films().map((f) => f.step));
const rate = () => films()[0]?.fps || 16;

function draw() {
  for (const { pen, film } of sides) if (film) paint(pen, film, state.frame);
  drawDifference();
  $("scrub").value = state.frame;
  $("where").textContent = films().length ? `frame ${state.frame} of ${length()}, ${(state.frame / rate()).toFixed(2)} s` : "no frames";
}

function drawDifference() {
  const [a, b] = sides, ended = films().length === 2 && state.frame >= Math.min(a.film.frames, b.film.frames);
  $("why-difference").textContent = films().length < 2 ? "it needs the frames of both" : ended ? "one of them has ended" : "";
  $("apart").textContent = "";
  difference.clearRect(0, 0, difference.canvas.width, difference.canvas.height);
  if (films().length < 2 || ended) return;
  const { width, height } = a.pen.canvas;
  for (const canvas of [difference.canvas, scratch.canvas])
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  paint(scratch, b.film, state.frame);
  const one = a.pen.getImageData(0, 0, width, height), other = scratch.getImageData(0, 0, width, height).data;
  let sum = 0, most = 0;
  for (let i = 0; i < other.length; i++) {
    if (i % 4 === 3) continue;
    const apart = Math.abs(one.data[i] - other[i]);
    sum += apart;
    if (apart > most) most = apart;
    one.data[i] = apart * state.gain;
  }
  difference.putImageData(one, 0, 0);
  const mean = sum / (width * height * 3);
  Object.assign($("difference").dataset, { mean, most, frame: a.pen.canvas.dataset.frame });
  $("apart").textContent = most ? `mean ${mean.toFixed(2)}, most ${most} of 255` : "every pixel is the same";
}

function go(frame) {
  state.frame = Math.min(Math.max(0, frame), length() - 1);
  state.frame -= state.frame % stride();
  restart();
  draw();
}

function restart() { [state.since, state.from] = [performance.now(), state.frame]; }

function play(on) {
  state.playing = on && films().length > 0;
  $("play").textContent = state.playing ? "Pause" : "Play";
  restart();
  if (state.playing) requestAnimationFrame(tick);
}

function tick(now) {
  if (!state.playing) return;
  const passed = Math.max(0, (now - state.since) / 1000) * rate() * +$("speed").value;
  const frame = (state.from + Math.floor(passed)) % length(), shown = frame - (frame % stride());
  if (shown !== state.frame) {
    state.frame = shown;
    draw();
  }
  requestAnimationFrame(tick);
}

const step = (count) => { play(false); go(state.frame + count * stride()); };

// --- choosing a clip --------------------------------------------------------------------------

const key = (protocol, name, model) => JSON.stringify([protocol, name, model]);
const byKey = new Map(data.clips.map((clip) => [key(clip.protocol, clip.name, clip.model), clip]));
const view = { protocol: 0, name: "", a: 0, b: 0, listed: PAGE };

const modelsWith = (test) => data.models.map((_, model) => model).filter((model) => data.clips.some((c) => c.model === model && test(c)));

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => make("option", text, { value })));
  select.value = chosen;
}

async function load() {
  const turn = ++state.turn, wasPlaying = state.playing;
  play(false);
  const clips = [view.a, view.b].map((model) => byKey.get(key(view.protocol, view.name, model)) ?? null);
  const found = await Promise.all(clips.map((clip) => (clip?.film == null ? null : openFilm(clip.film).catch(() => null))));
  if (turn !== state.turn) return; // another clip was chosen meanwhile
  sides.forEach((s, i) => show(Object.assign(s, { clip: clips[i], film: found[i] }), [view.a, view.b][i]));
  const [a, b] = sides.map((s) => s.film);
  if (a && b) {
    const unlike = a.frames !== b.frames ? `A has ${a.frames} frames, B ${b.frames}. ` : "";
    $("note-b").textContent += (a.full !== b.full ? " For the difference B is resized." : "") + (unlike && ` ${unlike}`) +
      (a.fps !== b.fps ? ` A has ${+a.fps.toFixed(3)} frames a second, B ${+b.fps.toFixed(3)}: compared frame by frame.` : "");
  }
  for (const s of sides) if (!s.film) fit(s.pen.canvas, films()[0]);
  fit($("difference"), sides[0].film ?? sides[1].film);
  const words = [...new Set(clips.filter(Boolean).map((c) => c.caption).filter(Boolean))];
  $("caption").textContent = words.length ? `“${words.join("” / “")}”` : "";
  Object.assign($("scrub"), { max: length() - 1, step: stride(), disabled: !films().length });
  $("play").disabled = !films().length;
  showValues(clips);
  for (const button of $("worst").querySelectorAll("button"))
    button.setAttribute("aria-current", button.dataset.name === view.name && +button.dataset.protocol === view.protocol);
  go(state.frame < length() ? state.frame : 0);
  if (wasPlaying) play(true);
  document.body.dataset.loaded = turn;
}

function fit(canvas, film) {
  if (film) [canvas.width, canvas.height] = [film.width, film.height];
  canvas.style.aspectRatio = film ? film.width / film.height : 1;
  canvas.style.imageRendering = film && film.width >= 200 ? "auto" : "pixelated";
}

function show({ side, clip, film, pen }, model) {
  $(`name-${side}`).replaceChildren(make("b", `${side.toUpperCase()} `), named(model));
  fit(pen.canvas, film);
  if (!film) { pen.clearRect(0, 0, pen.canvas.width, pen.canvas.height); delete pen.canvas.dataset.frame; }
  const why = $(`why-${side}`);
  why.textContent = film ? "" : !clip ? "this model has no such clip" : clip.reason || "its frames cannot be decoded";
  if (!film && clip?.link) why.append(" ", make("a", "open the file", { href: clip.link, style: "margin-left:.5em" }));
  const facts = film ? [`${film.full}, ${film.frames} frames`] : [];
  if (film && film.full !== `${film.width}x${film.height}`) facts.push(`shown at ${film.width}x${film.height}`);
  if (film?.step > 1) facts.push(`one frame in ${film.step} is shown`);
  $(`note-${side}`).textContent = facts.join(", ");
}

function showValues(clips) {
  const head = make("tr"), body = make("tbody");
  head.append(make("th", "this clip"), make("th", "ideal"), ...[view.a, view.b].map((m) => { const th = make("th"); th.append(named(m)); return th; }));
  data.measures.forEach((measure, i) => {
    const values = clips.map((clip) => clip?.values[i] ?? null);
    if (values.every((value) => value === null)) return;
    const row = make("tr"), name = make("th", measure.label, { title: measure.legend });
    name.append(make("small", measure.legend));
    row.append(name, make("td", measure.ideal, { className: "ideal" }), ...values.map((v) => make("td", v ?? "N/A", { className: v === null ? "none" : "" })));
    body.append(row);
  });
  const table = make("table"), top = make("thead");
  top.append(head);
  table.append(top, body);
  $("values").replaceChildren(table);
}

function showChoices() {
  const here = data.clips.filter((c) => c.protocol === view.protocol);
  const names = new Map();
  for (const clip of here) names.set(clip.name, names.get(clip.name) || clip.film !== null);
  const options = [...names].sort((x, y) => y[1] - x[1]).map(([name, there]) => [name, there ? name : `${name} (no frames here)`]);
  fill($("clip"), options, view.name);
  const models = modelsWith((c) => c.protocol === view.protocol).map((m) => [m, data.models[m].name]);
  fill($("a"), models, view.a);
  fill($("b"), models, view.b);
}

// --- the worst --------------------------------------------------------------------------------

function showWorst() {
  const measure = +$("measure").value, model = +$("model").value, protocol = +$("protocol").value;
  const { label, ideal, legend } = data.measures[measure] ?? { label: "", ideal: "", legend: "" };
  $("meaning").textContent = label && `${label} (ideal ${ideal}): ${legend}`;
  const clips = data.clips.filter((c) => c.model === model && c.protocol === protocol).sort((x, y) => x.ranks[measure] - y.ranks[measure]);
  const known = clips.filter((c) => c.values[measure] != null), shown = clips.slice(0, view.listed);
  const lines = shown.map((clip) => worstLine(clip, measure));
  if (clips.length && !known.length) lines.unshift(make("li", `${label} is N/A for every clip of this row.`, { className: "rest" }));
  if (!clips.length) lines.push(make("li", "This row has no clips here.", { className: "rest" }));
  $("worst").replaceChildren(...lines);
  $("more").hidden = shown.length === clips.length;
  $("more").textContent = `Show more (${clips.length - shown.length} left)`;
}

function worstLine(clip, measure) {
  const line = make("li"), button = make("button", "", { type: "button", className: "clip" });
  Object.assign(button.dataset, { name: clip.name, protocol: clip.protocol });
  button.setAttribute("aria-current", clip.name === view.name && clip.protocol === view.protocol);
  const others = data.measures.map((m, i) => [m.label, clip.values[i], i]).filter(([, value, i]) => i !== measure && value !== null);
  button.append(make("span", clip.name), make("b", clip.values[measure] ?? "N/A"));
  if (clip.caption) button.append(make("small", `“${clip.caption}”`));
  button.append(make("small", others.slice(0, 5).map(([label, value]) => `${label} ${value}`).join(" · "), {
    title: others.map(([label, value]) => `${label} ${value}`).join("\n"),
  }));
  if (clip.film === null) button.append(make("small", clip.reason));
  button.onclick = () => {
    Object.assign(view, { protocol: clip.protocol, name: clip.name, a: clip.model });
    if (view.b === clip.model || !byKey.has(key(clip.protocol, clip.name, view.b))) view.b = partner(clip);
    showChoices();
    load();
    if (innerWidth <= 900) $("players").scrollIntoView({ behavior: "smooth" });
  };
  line.append(button);
  return line;
}

/** With whom to compare a clip: the truth if there is one, else the first other model that has it. */
function partner(clip) {
  const others = data.models.map((_, m) => m).filter((m) => m !== clip.model && byKey.has(key(clip.protocol, clip.name, m)));
  return others.find((m) => /(^|: )truth$/.test(data.models[m].name)) ?? others[0] ?? clip.model;
}

function begin() {
  const judged = modelsWith(() => true), first = judged.find((m) => !data.models[m].bound) ?? judged[0];
  fill($("measure"), data.measures.map((m, i) => [i, m.label]), data.primary);
  fill($("model"), judged.map((m) => [m, data.models[m].name]), first);
  fill($("protocol"), data.protocols.map((name, i) => [i, name]), data.clips.find((c) => c.model === first).protocol);
  showWorst();
  $("worst").querySelector("button").click();
}

// --- what people do ---------------------------------------------------------------------------

$("measure").onchange = () => { view.listed = PAGE; showWorst(); };
for (const id of ["model", "protocol"]) $(id).onchange = () => { view.listed = PAGE; showWorst(); $("worst").querySelector("button")?.click(); };
$("more").onclick = () => { view.listed += PAGE; showWorst(); };
$("clip").onchange = () => { view.name = $("clip").value; load(); };
for (const side of ["a", "b"]) $(side).onchange = () => { view[side] = +$(side).value; load(); };
$("play").onclick = () => play(!state.playing);
$("scrub").oninput = () => { const frame = +$("scrub").value; play(false); go(frame); };
$("speed").onchange = () => { restart(); };
$("gain").oninput = () => { state.gain = 2 ** $("gain").value; $("times").textContent = state.gain; draw(); };
document.addEventListener("keydown", (event) => {
  const target = event.target, clips = target.matches(".clip, #play, #scrub");
  if (event.ctrlKey || event.metaKey || event.altKey || !data.clips.length) return;
  if (!clips && target.matches("input, select, button, summary, a")) return;
  const far = event.shiftKey ? 10 : 1;
  const acts = { " ": () => play(!state.playing), ArrowLeft: () => step(-far), ArrowRight: () => step(far), Home: () => { play(false); go(0); }, End: () => { play(false); go(length() - 1); } };
  if (!acts[event.key]) return;
  event.preventDefault();
  acts[event.key]();
});
for (const button of document.querySelectorAll(".toggle"))
  button.onclick = () => {
    const on = button.getAttribute("aria-pressed") === "false";
    button.setAttribute("aria-pressed", on);
    for (const part of document.querySelectorAll(`.charts .k${button.dataset.model}`)) part.style.display = on ? "" : "none";
  };
if (data.clips.length) begin();

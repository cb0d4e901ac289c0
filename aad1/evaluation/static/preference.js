"use strict";
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const items = data.pairs.flatMap((pair, number) => data.questions.map((question, part) => ({ pair, number, question, part })));
const place = `preference-${data.study}`;
const video = $("video"), pens = ["left", "right"].map((side) => $(side).getContext("2d"));

// --- answers, kept over a reload --------------------------------------------------------------

const fresh = () => ({ rater: Array.from(crypto.getRandomValues(new Uint8Array(4)), (b) => b.toString(16).padStart(2, "0")).join(""), name: "", answers: [] });
let kept = recall(), since = performance.now(), loaded = -1;

function recall() {
  try {
    const held = JSON.parse(localStorage.getItem(place));
    const fits = held.answers.every((a, i) => i < items.length && a.pair === items[i].pair.id && a.question === items[i].question.id);
    if (fits && typeof held.rater === "string") return held;
  } catch { /* none yet, or of no use */ }
  return fresh();
}

function keep() {
  try {
    localStorage.setItem(place, JSON.stringify(kept));
  } catch {
    $("trouble").textContent = "This browser keeps no answers: download them before you close the page.";
  }
}

function answer(word) {
  if (kept.answers.length === items.length) return;
  const { pair, question } = items[kept.answers.length];
  const seconds = Math.round((performance.now() - since) / 100) / 10;
  kept.answers.push({ pair: pair.id, question: question.id, answer: word, seconds });
  keep();
  show();
}

function undo() {
  if (kept.answers.pop()) keep();
  show();
}

function table() {
  const name = kept.name.replace(/[^\p{L}\p{N} ._-]/gu, "").replace(/^[-.\s]+/, "").trim(); // no quoting, no formulas
  const rater = name ? `${name} ${kept.rater}` : kept.rater;
  const rows = kept.answers.map((a) => [data.study, rater, a.pair, a.question, a.answer, a.seconds].join(","));
  return ["study,rater,pair,question,answer,seconds", ...rows, ""].join("\r\n");
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
  link.download = "answers.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// --- what is asked ----------------------------------------------------------------------------

function show() {
  const done = kept.answers.length, over = done === items.length, item = items[Math.min(done, items.length - 1)];
  $("asking").hidden = !over && items.length ? false : true;
  $("finished").hidden = !over;
  $("progress").textContent = over ? `${data.pairs.length} of ${data.pairs.length} answered` : `${item.number + 1} of ${data.pairs.length}`;
  $("part").textContent = over || data.questions.length < 2 ? "" : `question ${item.part + 1} of ${data.questions.length}`;
  $("bar").style.width = `${(100 * done) / items.length}%`;
  $("undo").disabled = !done;
  $("download").disabled = !done;
  $("pause").disabled = over;
  document.body.dataset.answered = done;
  since = performance.now();
  if (over) return video.pause();
  $("question").textContent = item.question.text;
  $("caption").textContent = item.pair.caption && `“${item.pair.caption}”`;
  if (loaded !== item.number) open(item.number);
  else if (video.paused) video.play().catch(() => {});
}

function open(number) {
  loaded = number;
  if (video.src) URL.revokeObjectURL(video.src);
  const bytes = Uint8Array.from(atob($(`video-${number}`).textContent), (c) => c.charCodeAt(0));
  video.src = URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
  video.play().catch(() => {});
}

// Both sides are in one picture, so that both always show the same frame.
function draw() {
  const width = (video.videoWidth - data.gap) / 2, height = video.videoHeight;
  if (video.readyState < 2 || !(width > 0)) return;
  pens.forEach((pen, side) => {
    const { canvas } = pen;
    if (canvas.width !== width || canvas.height !== height) {
      Object.assign(canvas, { width, height });
      canvas.style.aspectRatio = width / height;
      canvas.parentElement.style.setProperty("--aspect", width / height);
    }
    pen.drawImage(video, side * (width + data.gap), 0, width, height, 0, 0, width, height);
    canvas.dataset.time = video.currentTime;
  });
}
function tick() { draw(); if (!video.paused) requestAnimationFrame(tick); }

// --- what people do ---------------------------------------------------------------------------

const pause = () => (video.paused ? video.play().catch(() => {}) : video.pause());
video.onplay = () => { $("pause").lastChild.textContent = " pause"; tick(); };
video.onpause = () => { $("pause").lastChild.textContent = " play"; draw(); };
video.onloadeddata = video.onseeked = draw;
video.onerror = () => { $("trouble").textContent = "This browser cannot show these videos (MP4, H.264): try another one."; };
for (const button of document.querySelectorAll("[data-answer]")) button.onclick = () => answer(button.dataset.answer);
$("undo").onclick = undo;
$("pause").onclick = pause;
$("download").onclick = download;
$("name").value = kept.name;
$("name").oninput = () => { kept.name = $("name").value; keep(); };
$("again").onclick = () => {
  if (kept.answers.length && !confirm("Have you downloaded your answers? They are removed from this browser.")) return;
  kept = fresh();
  $("name").value = "";
  keep();
  show();
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.matches("#name")) return;
  const acts = { ArrowLeft: () => answer("left"), ArrowRight: () => answer("right"), ArrowDown: () => answer("tie"), z: undo, Z: undo, " ": pause };
  if (!acts[event.key] || (event.key === " " && event.target.matches("button"))) return;
  event.preventDefault();
  acts[event.key]();
});
keep();
show();

// The page: its states, and what leads from one to the next.

import { Drawing } from "./drawing.js";
import { Figures } from "./figures.js";
import { PictureChoice } from "./picture.js";
import { canPlay, codec, Player } from "./player.js";
import { PromptField } from "./promptfield.js";
import { grouped, moving, speaksOfShapes } from "./prompts.js";
import { MOST, Recording } from "./recording.js";
import { apiKey, ask, LiveSession, rememberKey, Unauthorized } from "./server.js";
import { Switches } from "./switches.js";

const $ = (id) => document.getElementById(id);

const MOVES = {
  idle: ["connecting"],
  connecting: ["playing", "idle", "failed"],
  playing: ["stopping", "ended", "failed"],
  stopping: ["ended", "failed"],
  ended: ["connecting"],
  failed: ["connecting"],
};
const SAYS = {
  idle: "Choose a picture, write a prompt, press Start.",
  connecting: "Asking for the first pictures …",
  playing: "Playing. Change the prompt and press Enter to steer the video.",
  stopping: "Stopping …",
  ended: "Ended. Start makes another one.",
  failed: "",
};
const NO_PLAYER = "This browser has no Media Source Extensions, so it cannot play a video while it is made.";
const AFFORDABLE_DRAWING = 8; // times the world's 64 px, for a model that takes the picture's own size

let state = "idle";
let session = null;
let image = null; // data URL of the picture
let clicked = null; // when Start was pressed, until the first frame is seen
let fps = 16;
let recording = new Recording("nothing.mp4");

const prompt = new PromptField(
  { field: $("prompt"), marks: $("marks"), note: $("prompt-note"), chips: $("chips") },
  () => state === "playing" && change(),
);
const picture = new PictureChoice({ samples: $("samples"), file: $("file"), note: $("picture-note") }, usePicture);
const drawing = new Drawing(
  {
    ...{ canvas: $("canvas"), cross: $("cross"), news: $("canvas-news"), clear: $("clear") },
    ...{ shapes: $("shapes"), hues: $("hues"), sizes: $("sizes") },
  },
  useDrawing,
);
const figures = new Figures(
  { first: $("first"), fps: $("fps"), ahead: $("ahead"), played: $("played") }, $("spark"), $("chunk-note"),
);
const switches = new Switches($("prompts"), ({ prompt, after }) => {
  $("now").replaceChildren(Object.assign(document.createElement("span"), { textContent: prompt }));
  if (after) say(`The new prompt is seen, ${after.toFixed(1)} s after it was sent.`);
});
const player = new Player($("video"), {
  frame: frameSeen,
  blocked: () => say("The browser wants you to press play on the video."),
  failed: (message) => fail(`The video cannot be played: ${message}`, "Start again", start),
});

// --- states -----------------------------------------------------------------------------------

/** Move to another state, if one leads there. */
function go(next) {
  if (!MOVES[state].includes(next)) return false;
  state = document.body.dataset.state = next;
  const running = ["connecting", "playing", "stopping"].includes(state);
  $("start").textContent = state === "playing" ? "Change prompt" : "Start";
  $("choice").disabled = running;
  // Not `disabled`: that would take the focus from who has just pressed them.
  $("start").setAttribute("aria-disabled", String(state === "connecting" || state === "stopping"));
  $("stop").setAttribute("aria-disabled", String(state !== "connecting" && state !== "playing"));
  say(SAYS[state]);
  return true;
}

function say(message) {
  $("status").textContent = message;
}

/** Say what went wrong and offer the one thing that helps. */
function trouble(message, action = "", act = null) {
  const [text, button] = $("trouble").children;
  $("trouble").hidden = !message;
  text.textContent = message;
  button.hidden = !action;
  button.textContent = action;
  button.onclick = act;
}

function fail(message, action, act) {
  if (!MOVES[state].includes("failed")) return;
  session?.close();
  player.end();
  if (go("failed")) trouble(message, action, act);
}

// --- a video ----------------------------------------------------------------------------------

function start() {
  if (!canPlay()) return trouble(NO_PLAYER);
  if (!image) return picture.complain("Choose a picture first.");
  if (!prompt.ready() || !$("ask").reportValidity() || !go("connecting")) return;
  clicked = performance.now();
  trouble("");
  picture.complain("");
  figures.reset();
  switches.reset();
  player.clear();
  const seed = Number($("seed").value);
  recording = new Recording(`aad1-${seed}.mp4`);
  showDownload();
  session?.close();
  session = new LiveSession({ prompt: prompt.text, image, seed, codec: codec() }, hear);
}

function change() {
  if (!prompt.ready()) return;
  switches.ask(prompt.text);
  session.change(prompt.text);
}

function stop() {
  if (state === "connecting") {
    session.close();
    go("idle");
  } else if (go("stopping")) {
    player.halt();
    session.stop();
  }
}

let latest = null; // the chunk whose bytes come next

const hear = {
  started(event) {
    if (state !== "connecting") return;
    if (!canPlay(event.mime)) return fail(`This browser cannot play ${event.mime}.`);
    fps = event.fps;
    player.open(event.mime);
    switches.begin(event.prompt);
    go("playing");
  },
  chunk(event) {
    latest = event;
    figures.chunk(event, fps);
    switches.chunk(event.index, event.start_s);
  },
  piece(bytes) {
    recording.add(bytes, latest ? latest.frames / fps : 0);
    latest = null;
    player.add(bytes);
    showDownload();
  },
  applied(event) {
    switches.apply(event.from_chunk);
    say(`The new prompt applies from chunk ${event.from_chunk}.`);
  },
  done() {
    session.close();
    player.end();
    go("ended");
  },
  error(event) {
    if (state === "connecting") return refused(event);
    if (event.code !== "invalid_request") return fail(event.message, "Try again", start);
    switches.refuse();
    prompt.complain(event.message);
  },
  lost() {
    const rest = recording.bytes ? " What has arrived can be downloaded." : "";
    fail(`The connection to the server was lost.${rest}`, "Reconnect", start);
  },
};

/** An error before there is a video: say it where it belongs. */
function refused({ code, message }) {
  const [action, act] = code === "invalid_request" ? [] : ["Try again", start];
  const place =
    (code === "unauthorized" && askForKey) ||
    (code === "invalid_request" && /^(the )?prompt/.test(message) && ((text) => prompt.complain(text))) ||
    (code === "invalid_request" && /^(the )?image/.test(message) && ((text) => picture.complain(text)));
  fail(place ? "" : message, action, act);
  if (place) place(message);
}

function frameSeen(mediaTime, now) {
  if (clicked !== null) figures.firstFrame(now - clicked);
  clicked = null;
  document.body.classList.add("moving"); // the video replaces the picture when there is something to see
  switches.frame(mediaTime, now);
}

function showDownload() {
  $("download").setAttribute("aria-disabled", String(!recording.bytes));
  const minutes = (recording.seconds / 60).toFixed(1);
  const limit = `The download is full at ${MOST / 2 ** 20} MB: it has the first ${minutes} minutes.`;
  if (recording.full !== Boolean($("download-note").textContent)) $("download-note").textContent = recording.full ? limit : "";
}

// --- the picture ------------------------------------------------------------------------------

function usePicture({ url, small }, text) {
  image = url;
  if (state === "ended" || state === "failed") player.clear();
  document.body.classList.remove("moving");
  Object.assign($("picture"), { src: url, alt: text ?? "The picture that the video will begin with" });
  $("picture").classList.toggle("small", small);
  $("now").replaceChildren();
  if (text !== null) prompt.fill(text);
}

function useDrawing(drawn, shapes) {
  picture.use(drawn);
  if (speaksOfShapes(prompt.vocabulary) && shapes.length) prompt.fill(moving(shapes, 1), true);
}

// --- what the server has ----------------------------------------------------------------------

function askForKey() {
  $("key-form").hidden = false;
  $("key-note").textContent = apiKey() ? "This key is wrong." : "";
  $("key").focus();
}

async function load() {
  try {
    const [models, scenes] = await Promise.all([ask("/v1/models"), ask("/v1/samples")]);
    trouble(canPlay() ? "" : NO_PLAYER);
    describe(models.data[0]);
    await picture.offer(scenes, !image); // a picture that is chosen already stays
  } catch (error) {
    if (error instanceof Unauthorized) askForKey();
    else trouble(`The server cannot be reached (${error.message}).`, "Try again", load);
  }
}

function describe({ id, fps: rate, size, passes, vocabulary }) {
  const [height, width] = size ?? [];
  const pass = passes.length === 1 ? "one pass a chunk" : `${passes.length} passes a chunk`;
  $("model").textContent = `${id}: ${size ? `${width} × ${height}, ` : ""}${rate} frames a second, ${pass}`;
  $("stage").style.aspectRatio = size ? `${width} / ${height}` : "1";
  $("stage").classList.toggle("cropped", Boolean(size)); // the server cuts pictures to the model's size, and so do we
  if (!size) drawing.enlarge(AFFORDABLE_DRAWING);
  prompt.know(vocabulary);
  if (vocabulary) listWords(vocabulary);
}

function listWords(vocabulary) {
  const entry = ([name, words]) => [["dt", name], ["dd", words.join(" ")]];
  const element = ([tag, textContent]) => Object.assign(document.createElement(tag), { textContent });
  const shapes = "It moves coloured shapes: say what they are, and where each one moves and how fast, or only what they are.";
  $("knows").hidden = false;
  $("can").textContent = `${speaksOfShapes(vocabulary) ? shapes : ""} It knows ${vocabulary.length} words and signs:`.trim();
  $("words").replaceChildren(...grouped(vocabulary).flatMap(entry).map(element));
}

// --- wiring -----------------------------------------------------------------------------------

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  state === "playing" ? change() : start();
});
$("stop").addEventListener("click", stop);
$("download").addEventListener("click", () => recording.bytes && recording.save());
$("dice").addEventListener("click", () => ($("seed").value = Math.floor(Math.random() * 1e6)));
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  rememberKey($("key").value);
  $("key-form").hidden = true;
  load();
});
setInterval(() => player.opened && figures.time($("video").currentTime, player.ahead), 250);
load();

// The prompts of a video: asked for, applied from a chunk on, and seen.

const LISTED = 12;
const REMEMBERED = 64; // chunks whose beginnings are known, so that an endless video stays small

export class Switches {
  /** list: an ol; `seen(switch)` is called when a picture of its first chunk is shown. */
  constructor(list, seen) {
    this.list = list;
    this.seen = seen;
    this.reset();
  }

  reset() {
    this.all = [];
    this.begins = new Map();
    this.list.replaceChildren();
  }

  /** The first prompt, from the beginning. */
  begin(prompt) {
    this.all = [{ prompt, from: 0, at: 0 }];
    this.show();
  }

  ask(prompt) {
    this.all.push({ prompt, asked: performance.now() });
    this.show();
  }

  /** The server answers in the order in which it was asked. */
  waiting() {
    return this.all.find(({ from }) => from === undefined);
  }

  apply(from) {
    const change = this.waiting();
    if (!change) return;
    change.from = from;
    this.locate(change);
    this.show();
  }

  refuse() {
    const refused = this.waiting();
    this.all = this.all.filter((change) => change !== refused);
    this.show();
  }

  /** Note when a chunk begins in the video; it may come before or after the switch that it is the first of. */
  chunk(index, start) {
    this.begins.set(index, start);
    this.begins.delete(index - REMEMBERED);
    this.all.forEach((change) => this.locate(change));
  }

  locate(change) {
    if (change.at === undefined && this.begins.has(change.from)) change.at = this.begins.get(change.from);
  }

  frame(mediaTime, now) {
    const fresh = this.all.filter((change) => change.at <= mediaTime && !change.shown);
    if (!fresh.length) return;
    for (const change of fresh) Object.assign(change, { shown: true, after: change.asked && (now - change.asked) / 1000 });
    this.seen(fresh.at(-1)); // of two that begin at once the later one is what is seen
    this.show();
  }

  show() {
    this.all = this.all.slice(-LISTED);
    this.list.replaceChildren(...this.all.map(line));
  }
}

function line(change) {
  const item = document.createElement("li");
  const note = Object.assign(document.createElement("span"), { className: "soft", textContent: described(change) });
  item.className = change.shown ? "shown" : "";
  item.append(change.prompt, note);
  return item;
}

function described({ from, shown, after, asked }) {
  if (from === undefined) return "sent";
  if (!shown) return `applies from chunk ${from}`;
  return asked ? `from chunk ${from}, seen after ${after.toFixed(1)} s` : "from the first picture";
}

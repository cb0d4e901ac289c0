// The live figures: numbers, and a small picture of where each chunk's time went.

const SHOWN = 60; // chunks in the picture
const [WIDTH, HEIGHT] = [240, 48];
const ms = (seconds) => `${Math.round(seconds * 1000)} ms`;

export class Figures {
  /** numbers: the elements {first, fps, ahead, played}; spark: an svg; note: a line of text. */
  constructor(numbers, spark, note) {
    Object.assign(this, { numbers, spark, note });
    this.reset();
  }

  reset() {
    this.chunks = [];
    for (const name of Object.keys(this.numbers)) this.put(name, "–", "");
    this.draw();
  }

  /** Show a number; `value` is it for programs. */
  put(name, text, value) {
    const place = this.numbers[name];
    if (place.textContent !== text) place.textContent = text;
    place.dataset.value = value;
  }

  firstFrame(milliseconds) {
    this.put("first", ms(milliseconds / 1000), milliseconds);
  }

  time(played, ahead) {
    this.put("played", `${played.toFixed(1)} s`, played);
    this.put("ahead", `${ahead.toFixed(1)} s`, ahead);
  }

  chunk(event, fps) {
    this.chunks = [...this.chunks, event].slice(-SHOWN);
    if (event.fps) this.put("fps", `${event.fps.toFixed(event.fps < 10 ? 1 : 0)} fps (${fps} needed)`, event.fps);
    this.note.textContent = `Chunk ${event.index}: ${event.frames} frames in ${ms(event.chunk_s)}, of which denoising ` +
      `${ms(event.denoising_s)}, decoding ${ms(event.decoding_s)}. They play for ${ms(event.frames / fps)}.`;
    this.draw(event.frames / fps);
  }

  /** Bars of denoising with decoding on top; the dashed line is as long as a chunk plays. */
  draw(budget = 0) {
    const most = 1.1 * Math.max(budget, ...this.chunks.map((c) => c.denoising_s + c.decoding_s), 1e-3);
    const y = (seconds) => (HEIGHT * (1 - seconds / most)).toFixed(2);
    const width = WIDTH / SHOWN;
    const bar = (i, from, to) => `M${i * width} ${y(from)}V${y(to)}h${width - 1}V${y(from)}z`;
    const path = (name, d) => this.spark.querySelector(`.${name}`).setAttribute("d", d);
    path("denoising", this.chunks.map((c, i) => bar(i, 0, c.denoising_s)).join(""));
    path("decoding", this.chunks.map((c, i) => bar(i, c.denoising_s, c.denoising_s + c.decoding_s)).join(""));
    path("budget", budget ? `M0 ${y(budget)}H${WIDTH}` : "");
  }
}

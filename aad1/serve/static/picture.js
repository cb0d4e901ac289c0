// The picture that a video begins with: from the gallery, a file, the clipboard, or drawn.

const LONGEST = 1024; // px; larger ones are made smaller before they travel

/** A file or an image element, upright, as {url: a data URL, small: whether its pixels are to be seen}. */
export async function readPicture(source) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(source, { imageOrientation: "from-image" });
  } catch {
    throw new Error("This is no picture that the browser can read; a PNG or JPEG works.");
  }
  const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const small = Math.max(bitmap.width, bitmap.height) <= 128;
  bitmap.close();
  // Photographs stay JPEG, which is a tenth of the bytes; everything else keeps its exact pixels.
  const url = canvas.toDataURL(source.type === "image/jpeg" ? "image/jpeg" : "image/png", 0.95);
  return { url, small };
}

export class PictureChoice {
  /** parts: {samples, file, note}; `chosen({url, small}, prompt)` is called with each new picture. */
  constructor(parts, chosen) {
    Object.assign(this, parts);
    this.chosen = chosen;
    this.asked = 0;
    this.file.addEventListener("change", () => this.take(this.file.files[0]));
    document.addEventListener("paste", (event) => this.pasted(event));
    for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, (event) => this.dragged(event));
  }

  /** Show the gallery; `begin` with its first picture. */
  async offer(scenes, begin) {
    const buttons = scenes.map((scene) => this.thumbnail(scene));
    this.samples.replaceChildren(...buttons);
    if (scenes.length && begin) await this.pick(scenes[0], buttons[0]);
  }

  thumbnail(scene) {
    const button = Object.assign(document.createElement("button"), { type: "button", title: scene.prompt });
    button.append(Object.assign(document.createElement("img"), { src: scene.image, alt: scene.prompt }));
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => this.pick(scene, button));
    return button;
  }

  async pick(scene, button) {
    await button.firstChild.decode();
    await this.take(button.firstChild, scene.prompt, button);
  }

  pasted(event) {
    const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
    if (!file) return; // text goes where it was meant to go
    event.preventDefault();
    this.take(file);
  }

  dragged(event) {
    if (!event.dataTransfer.types.includes("Files")) return; // text may be dropped into the prompt
    event.preventDefault(); // or the browser would leave the page for the file
    document.body.classList.toggle("dragging", event.type === "dragover");
    if (event.type === "drop") this.take(event.dataTransfer.files[0]);
  }

  async take(source, prompt = null, button = null) {
    if (!source) return;
    if (this.samples.closest("fieldset").disabled) return this.complain("Stop the video first, then choose.");
    const turn = ++this.asked; // of two that are read at once the later choice wins
    try {
      const picture = await readPicture(source);
      if (turn === this.asked) this.use(picture, prompt, button);
    } catch (error) {
      this.complain(error.message);
    }
  }

  use(picture, prompt = null, button = null) {
    this.complain("");
    for (const each of this.samples.children) each.setAttribute("aria-pressed", String(each === button));
    this.file.value = ""; // the same file may be chosen again
    this.chosen(picture, prompt);
  }

  complain(message) {
    this.note.textContent = message;
  }
}

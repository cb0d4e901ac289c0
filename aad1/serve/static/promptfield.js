// The prompt: a text field that marks what the model does not know, and prompts to press.

import { examples, speaksOfShapes, unknownPieces } from "./prompts.js";

export class PromptField {
  /** parts: {field, marks, note, chips}; `chosen()` is called when an example was pressed. */
  constructor(parts, chosen) {
    Object.assign(this, parts);
    this.chosen = chosen;
    this.vocabulary = null;
    this.filled = "";
    this.field.addEventListener("input", () => this.changed());
    this.field.addEventListener("blur", () => this.changed());
    this.field.addEventListener("scroll", () => this.align());
    this.field.addEventListener("keydown", (event) => this.pressed(event));
  }

  get text() {
    return this.field.value.trim().replace(/\s+/g, " ");
  }

  /** Fill it in for the user; `politely` only where they wrote nothing themselves. */
  fill(text, politely = false) {
    if (politely && this.text && this.text !== this.filled) return;
    this.field.value = this.filled = text;
    this.offer(text);
    this.changed();
  }

  know(vocabulary) {
    this.vocabulary = vocabulary;
    this.offer(this.text);
    this.changed();
  }

  /** Whether it may be sent; if not, the field says why and takes the focus. */
  ready() {
    const unknown = this.unknown();
    this.judge(unknown);
    if (!this.text) this.complain("Say what happens.");
    const fine = Boolean(this.text) && !unknown.length;
    if (!fine) this.field.focus();
    return fine;
  }

  complain(message) {
    if (this.note.textContent !== message) this.note.textContent = message; // said once, not with every letter
    this.field.setAttribute("aria-invalid", String(Boolean(message)));
  }

  unknown() {
    return this.vocabulary ? unknownPieces(this.field.value, this.vocabulary) : [];
  }

  /** Look at it while it is written; a word that may still become a known one is let be. */
  changed() {
    const caret = document.activeElement === this.field ? this.field.selectionEnd : -1;
    const begun = ({ end, word }) => end === caret && this.vocabulary.some((known) => known.startsWith(word.toLowerCase()));
    this.judge(this.unknown().filter((piece) => !begun(piece)));
  }

  judge(unknown) {
    const words = [...new Set(unknown.map(({ word }) => `“${word}”`))].join(", ");
    this.mark(unknown);
    this.complain(words && `This model does not know ${words}. What it knows is listed on this page.`);
  }

  /** A copy of the text under the field carries the marks: a text field cannot. */
  mark(unknown) {
    const text = this.field.value;
    let from = 0;
    this.marks.replaceChildren();
    for (const { start, end, word } of unknown) {
      const mark = Object.assign(document.createElement("mark"), { textContent: word });
      this.marks.append(text.slice(from, start), mark);
      from = end;
    }
    this.marks.append(text.slice(from), "\u200b"); // so that a last empty line has its height
    this.align();
  }

  align() {
    this.marks.scrollTop = this.field.scrollTop;
  }

  offer(text) {
    const prompts = speaksOfShapes(this.vocabulary) ? examples(text) : [];
    this.chips.replaceChildren(...prompts.map((prompt) => this.chip(prompt)));
  }

  chip(prompt) {
    const chip = Object.assign(document.createElement("button"), { type: "button", className: "chip", textContent: prompt });
    chip.addEventListener("click", () => {
      this.field.value = this.filled = prompt; // the chips stay as they are, for the next press
      this.changed();
      this.chosen();
    });
    return chip;
  }

  pressed(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.field.form.requestSubmit();
  }
}

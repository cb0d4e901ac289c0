// A small easel: the world's shapes, placed and dragged on the world's background.

import { background, css, HUES, inside, paint, RADII, randomCorners, SHAPES, SIZE } from "./world.js";

const STEP = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const [FINE, COARSE] = [2, 8]; // units of the world that an arrow key moves

export class Drawing {
  /** parts: {canvas, cross, news, shapes, hues, sizes, clear}; `changed({url, small}, shapes)` follows each change. */
  constructor(parts, changed) {
    Object.assign(this, parts);
    this.changed = changed;
    this.side = SIZE;
    this.at = { x: SIZE / 2, y: SIZE / 2 };
    this.addTools();
    this.listen();
    this.begin();
  }

  addTools() {
    const figure = (value) => Object.assign(document.createElement("i"), { className: `figure ${value}` });
    const swatch = (hue) => {
      const patch = figure("patch");
      patch.style.background = css(hue);
      return patch;
    };
    this.shapes.append(...[...SHAPES, "eraser"].map((value, i) => radio("shape", value, figure(value), i === 0)));
    this.hues.append(...Object.keys(HUES).map((value, i) => radio("hue", value, swatch(value), i === 0)));
    this.sizes.append(...Object.keys(RADII).map((value, i) => radio("size", value, figure(`disc ${value}`), i === 1)));
  }

  listen() {
    this.canvas.addEventListener("pointerdown", (event) => this.press(event));
    this.canvas.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, () => this.release());
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("focus", () => this.aim(0, 0));
    this.canvas.addEventListener("blur", () => (this.cross.hidden = true));
    this.clear.addEventListener("click", () => {
      this.begin();
      this.tell();
    });
  }

  /** An empty picture before another background. */
  begin() {
    this.drawn = [];
    this.corners = randomCorners();
    this.prepare();
  }

  prepare() {
    this.ground = background(this.corners, this.side);
    this.canvas.width = this.canvas.height = this.side;
    this.show();
  }

  /** Draw for a model that has no size of its own: finer, the same scene. */
  enlarge(factor) {
    this.side = SIZE * factor;
    this.prepare();
  }

  show() {
    this.canvas.getContext("2d").putImageData(new ImageData(paint(this.drawn, this.ground), this.side), 0, 0);
  }

  tool(group) {
    return group.querySelector("input:checked").value;
  }

  // --- pointer --------------------------------------------------------------------------------

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    const [x, y] = this.place(event);
    if (this.tool(this.shapes) === "eraser") {
      this.erasing = true;
      this.erase(x, y);
    } else {
      this.held = this.found(x, y) ?? this.add(x, y);
    }
  }

  drag(event) {
    const [x, y] = this.place(event);
    if (this.erasing) this.erase(x, y);
    if (!this.held) return;
    Object.assign(this.held, inside(this.held, x, y));
    this.show();
  }

  release() {
    if (this.held || this.erasing) this.tell();
    this.held = null;
    this.erasing = false;
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * SIZE, ((event.clientY - box.top) / box.height) * SIZE];
  }

  // --- keyboard -------------------------------------------------------------------------------

  key(event) {
    const actions = { Enter: () => this.stamp(), " ": () => this.stamp(), Delete: () => this.rub(), Backspace: () => this.rub() };
    const [dx, dy] = STEP[event.key] ?? [];
    const action = actions[event.key] ?? (dx === undefined ? null : () => this.aim(dx, dy, event.shiftKey ? COARSE : FINE));
    if (!action) return;
    event.preventDefault();
    action();
  }

  aim(dx, dy, step = 0) {
    const held = (value) => Math.min(Math.max(value, 0), SIZE);
    this.at = { x: held(this.at.x + dx * step), y: held(this.at.y + dy * step) };
    this.cross.hidden = !this.canvas.matches(":focus-visible"); // a pointer needs no cross
    this.cross.style.left = `${(100 * this.at.x) / SIZE}%`;
    this.cross.style.top = `${(100 * this.at.y) / SIZE}%`;
  }

  stamp() {
    if (this.tool(this.shapes) === "eraser") return this.rub();
    this.add(this.at.x, this.at.y);
    this.tell();
  }

  rub() {
    this.erase(this.at.x, this.at.y);
    this.tell();
  }

  // --- shapes ---------------------------------------------------------------------------------

  add(x, y) {
    const look = { shape: this.tool(this.shapes), hue: this.tool(this.hues), radius: RADII[this.tool(this.sizes)] };
    const shape = { ...look, ...inside(look, x, y) };
    this.drawn.push(shape);
    this.show();
    return shape;
  }

  /** The topmost shape there. */
  found(x, y) {
    return this.drawn.findLast((shape) => Math.hypot(shape.x - x, shape.y - y) <= shape.radius);
  }

  erase(x, y) {
    const gone = this.found(x, y);
    this.drawn = this.drawn.filter((shape) => shape !== gone);
    this.show();
  }

  tell() {
    const names = this.drawn.map(({ hue, shape }) => `${hue} ${shape}`);
    this.news.textContent = names.length ? `In the picture: ${names.join(", ")}` : "The picture is empty";
    this.changed({ url: this.canvas.toDataURL(), small: this.side === SIZE }, this.drawn);
  }
}

function radio(name, value, face, checked) {
  const label = Object.assign(document.createElement("label"), { title: value });
  const input = Object.assign(document.createElement("input"), { type: "radio", name, value, checked, className: "unseen" });
  input.setAttribute("aria-label", value);
  label.append(input, face);
  return label;
}

// The embedded world as aad1/data/world.py has it: its words, its colours, its shapes, to the pixel.

export const SIZE = 64;
export const SHAPES = ["disc", "square", "triangle"];
export const HUES = { red: [1, 0, 0], yellow: [1, 1, 0], green: [0, 1, 0], cyan: [0, 1, 1], blue: [0, 0, 1], pink: [1, 0, 1] };
export const RADII = { small: 4.5, medium: 5.5, large: 6.5 };
export const HEADINGS = ["right", "down and right", "down", "down and left", "left", "up and left", "up", "up and right"];
export const SPEEDS = ["slowly", "steadily", "fast"];
const WALL_MARGIN = { disc: 1, square: 0.85, triangle: 1.25 }; // farthest point from the centre, in radii
const [LOW, HIGH] = [0.135, 0.9]; // a hue's weak and strong parts

export const css = (hue) => `rgb(${HUES[hue].map((on) => Math.round((on ? HIGH : LOW) * 255)).join(" ")})`;

/** Four corner colours of low chroma around one brightness. */
export function randomCorners() {
  const spread = (by) => (Math.random() * 2 - 1) * by;
  const value = 0.45 + spread(0.2);
  return Array.from({ length: 4 }, () => {
    const corner = value + spread(0.12);
    return [0, 1, 2].map(() => corner + spread(0.03));
  });
}

/** A place inside the walls for a shape. */
export function inside({ shape, radius }, x, y) {
  const margin = WALL_MARGIN[shape] * radius;
  const held = (value) => Math.min(Math.max(value, margin + 1), SIZE - margin - 1);
  return { x: held(x), y: held(y) };
}

/** Distance to a shape's outline, negative inside; dx and dy count from its centre of mass. */
function signedDistance(shape, radius, dx, dy) {
  if (shape === "disc") return Math.hypot(dx, dy) - radius;
  if (shape === "square") return Math.max(Math.abs(dx), Math.abs(dy)) - WALL_MARGIN.square * radius;
  return Math.max(dy, (Math.sqrt(3) / 2) * Math.abs(dx) - dy / 2) - (WALL_MARGIN.triangle * radius) / 2;
}

/** The gradient behind the shapes: RGB in [0, 1], `side` pixels square. */
export function background([tl, tr, bl, br], side = SIZE) {
  const ground = new Float64Array(side * side * 3);
  for (let i = 0; i < ground.length; i++) {
    const c = i % 3;
    const [u, v] = [((Math.floor(i / 3) % side) + 0.5) / side, (Math.floor(i / 3 / side) + 0.5) / side];
    ground[i] = (tl[c] * (1 - u) + tr[c] * u) * (1 - v) + (bl[c] * (1 - u) + br[c] * u) * v;
  }
  return ground;
}

/** Lay one shape over a picture, with edges one pixel wide; only the pixels around it are looked at. */
function lay({ hue, shape, radius, x, y }, picture, side) {
  const scale = side / SIZE;
  const colour = HUES[hue].map((on) => (on ? HIGH : LOW));
  const first = (centre) => Math.max(0, Math.floor((centre - 1.5 * radius - 1) * scale));
  const last = (centre) => Math.min(side, Math.ceil((centre + 1.5 * radius + 1) * scale));
  for (let row = first(y); row < last(y); row++) {
    for (let column = first(x); column < last(x); column++) {
      const distance = scale * signedDistance(shape, radius, (column + 0.5) / scale - x, (row + 0.5) / scale - y);
      const alpha = Math.min(Math.max(0.5 - distance, 0), 1);
      const at = 3 * (row * side + column);
      for (let c = 0; c < 3; c++) picture[at + c] += (colour[c] - picture[at + c]) * alpha;
    }
  }
}

/** The pixels, RGBA, of shapes [{hue, shape, radius, x, y}] before a background. */
export function paint(shapes, ground) {
  const side = Math.sqrt(ground.length / 3);
  const picture = ground.slice();
  for (const shape of shapes) lay(shape, picture, side);
  const pixels = new Uint8ClampedArray(side * side * 4).fill(255);
  picture.forEach((part, i) => (pixels[4 * Math.floor(i / 3) + (i % 3)] = part * 255));
  return pixels;
}

// What a model with a closed vocabulary knows, and prompts made of it.

import { HEADINGS, HUES, SHAPES, SPEEDS } from "./world.js";

// As the embedded tokenizer cuts: at white space, and every sign is a piece of its own.
const SIGN = "\\p{P}$+<=>^`|~";
const PIECE = new RegExp(`[${SIGN}]|[^\\s${SIGN}]+`, "gu");

/** The pieces of a text that a vocabulary lacks, as [{start, end, word}]. */
export function unknownPieces(text, vocabulary) {
  const known = new Set(vocabulary);
  const pieces = [...text.matchAll(PIECE)].map((m) => ({ start: m.index, end: m.index + m[0].length, word: m[0] }));
  return pieces.filter(({ word }) => !known.has(word.toLowerCase()));
}

const GROUPS = {
  Colours: Object.keys(HUES),
  Shapes: SHAPES,
  Directions: ["up", "down", "left", "right"],
  Speeds: SPEEDS,
};

/** A vocabulary as [[name of a group, its words]]; what belongs to none comes last. */
export function grouped(vocabulary) {
  const groups = Object.entries(GROUPS).map(([name, words]) => [name, words.filter((word) => vocabulary.includes(word))]);
  const named = new Set(Object.values(GROUPS).flat());
  return [...groups, ["Others", vocabulary.filter((word) => !named.has(word)).reverse()]].filter(([, words]) => words.length);
}

/** Whether a model speaks of the embedded world. */
export const speaksOfShapes = (vocabulary) => Object.values(GROUPS).flat().every((word) => vocabulary?.includes(word));

const OBJECT = new RegExp(`\\b(${Object.keys(HUES).join("|")}) (${SHAPES.join("|")})\\b`, "gi");

/** The shapes that a prompt names, as [{hue, shape}]. */
export const objectsIn = (text) => [...text.matchAll(OBJECT)].map(([, hue, shape]) => ({ hue, shape }));

/** A prompt that moves these shapes; `turn` picks one of several. */
export function moving(objects, turn) {
  const clause = ({ hue, shape }, i) =>
    `a ${hue} ${shape} moves ${HEADINGS[(3 * turn + 5 * i + 6) % 8]} ${SPEEDS[(turn + i) % 3]}`;
  return objects.map(clause).join(", ");
}

const SOMETHING = [{ hue: "red", shape: "disc" }, { hue: "cyan", shape: "triangle" }];
const EXAMPLES = 3;

/** Prompts to try with what a prompt names, or with something. */
export function examples(text) {
  const objects = objectsIn(text);
  return Array.from({ length: EXAMPLES }, (_, turn) => moving(objects.length ? objects : SOMETHING, turn));
}

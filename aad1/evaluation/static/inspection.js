"use strict";
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const canvases = [...document.querySelectorAll("canvas[data-film]")];
const players = [];
let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Films begin when they come into view: pages of many clips would decode for long. */
const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) if (isIntersecting) open(target);
}, { rootMargin: "200px" });

async function open(canvas) {
  seen.unobserve(canvas);
  const film = await decode(+canvas.dataset.film), pen = canvas.getContext("2d");
  players.push({ film, pen });
  paint(pen, film, 0);
}

function tick(now) {
  if (!playing) return;
  for (const { film, pen } of players) paint(pen, film, Math.floor((now / 1000) * film.fps) % film.frames);
  requestAnimationFrame(tick);
}

function play(on) {
  playing = on;
  $("play").textContent = on ? "Pause" : "Play";
  if (on) requestAnimationFrame(tick);
}

$("play").addEventListener("click", () => play(!playing));
canvases.forEach((canvas) => seen.observe(canvas));
play(playing);

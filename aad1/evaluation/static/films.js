// Films are WebP sheets of frames side by side; the page has their numbers in data.films and the sheets as elements.

async function decode(number) {
  const film = data.films[number], bitmaps = [];
  for (let sheet = 0; sheet < film.sheets; sheet++) {
    const text = atob($(`film-${number}-${sheet}`).textContent);
    const blob = new Blob([Uint8Array.from(text, (c) => c.charCodeAt(0))], { type: "image/webp" });
    bitmaps.push(await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" }));
  }
  return { ...film, bitmaps };
}

/** Draw the picture that stands for a frame, over the whole of the pen's canvas; a film that has ended keeps its last. */
function paint(pen, film, frame) {
  const picture = Math.floor(Math.min(frame, film.frames - 1) / film.step), each = film.across * film.down;
  const place = picture % each, left = (place % film.across) * film.width, top = Math.floor(place / film.across) * film.height;
  const { width, height } = pen.canvas;
  pen.drawImage(film.bitmaps[Math.floor(picture / each)], left, top, film.width, film.height, 0, 0, width, height);
  pen.canvas.dataset.frame = picture * film.step;
}

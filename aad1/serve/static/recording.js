// Keeps what was received, for the download: the fragments one after the other are a whole MP4 file.

export const MOST = 200 * 2 ** 20; // bytes

export class Recording {
  constructor(name, most = MOST) {
    Object.assign(this, { name, most });
    this.parts = [];
    this.bytes = this.seconds = 0;
    this.full = false;
  }

  /** Keep a piece; once one does not fit none after it is kept, since a film with a gap is no film. */
  add(piece, seconds) {
    this.full ||= this.bytes + piece.byteLength > this.most;
    if (this.full) return;
    this.parts.push(new Blob([piece])); // a Blob may leave memory for the disk, an ArrayBuffer may not
    this.bytes += piece.byteLength;
    this.seconds += seconds;
  }

  save() {
    const url = URL.createObjectURL(new Blob(this.parts, { type: "video/mp4" }));
    Object.assign(document.createElement("a"), { href: url, download: this.name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000); // a browser may begin to read it late
  }
}

// Plays fragmented MP4 while it arrives, at constant memory.

const BEHIND = 30; // seconds that stay in the buffer after they were seen
const SLACK = 5; // more of them before it is worth a removal
const FURTHEST = 4; // seconds behind the newest picture before we jump
const MOST_WAITING = 256; // pieces that wait for room in a buffer whose video stands still
const LAG = 2; // seconds behind it after a jump: what the server keeps ahead

const Source = self.ManagedMediaSource ?? self.MediaSource; // iPhones only have the former

/** Whether this browser can play what arrives; with a MIME type, whether it can play that. */
export const canPlay = (mime) => Boolean(Source) && (!mime || Source.isTypeSupported(mime));

/** What the server is asked to code with: everyone plays H.264, but for a few free builds of browsers. */
export const codec = () => (canPlay('video/mp4; codecs="avc1.42C01E"') ? "h264" : "vp9");

/** Calls `seen(mediaTime, now)` for each picture that is shown; both in seconds and milliseconds, as browsers have them. */
function watchFrames(video, seen) {
  const presented = (_, frame) => {
    seen(frame.mediaTime, frame.presentationTime);
    video.requestVideoFrameCallback(presented);
  };
  const polled = (now) => {
    if (video.currentTime > 0) seen(video.currentTime, now);
    requestAnimationFrame(polled);
  };
  video.requestVideoFrameCallback ? video.requestVideoFrameCallback(presented) : requestAnimationFrame(polled);
}

export class Player {
  /** tell: `frame(mediaTime, now)`, `blocked()` when the browser wants a press to play, `failed(message)`. */
  constructor(video, tell) {
    this.video = video;
    this.tell = tell;
    this.queue = [];
    watchFrames(video, (mediaTime, now) => this.opened && tell.frame(mediaTime, now));
    video.addEventListener("timeupdate", () => this.pump()); // what was seen makes room
    video.addEventListener("playing", () => (video.controls = Boolean(this.ending || this.halted)));
    video.addEventListener("pause", () => this.paused());
    document.addEventListener("visibilitychange", () => !document.hidden && this.hidden && this.resume());
    video.addEventListener("error", () => this.opened && tell.failed(video.error?.message || "the video cannot be played"));
  }

  open(mime) {
    this.clear();
    const source = (this.source = new Source());
    this.opened = true;
    this.video.disableRemotePlayback = true; // a managed source asks for it
    this.video.src = this.url = URL.createObjectURL(source);
    source.addEventListener("sourceopen", () => this.begin(source, mime), { once: true });
  }

  begin(source, mime) {
    if (source !== this.source) return; // another video was begun meanwhile
    this.buffer = source.addSourceBuffer(mime);
    this.buffer.mode = "segments";
    this.buffer.addEventListener("updateend", () => source === this.source && this.updated());
    this.pump();
  }

  add(bytes) {
    this.queue.push(bytes);
    if (this.queue.length > MOST_WAITING) this.breakOff("it stands still and the browser's memory for it is full");
    this.pump();
  }

  breakOff(message) {
    this.queue = []; // or what cannot be taken would be tried again for ever
    this.tell.failed(message);
  }

  /** A video that somebody, or the browser, pauses can be played on; what a hidden page paused goes on by itself. */
  paused() {
    if (!this.opened || this.halted) return;
    this.hidden = document.hidden;
    this.video.controls = true;
  }

  resume() {
    this.hidden = false;
    this.video.play().catch(() => {}); // the controls are there
  }

  /** No more will come: what is there plays to its end. */
  end() {
    this.ending = true;
    this.pump();
  }

  /** Stop the picture where it is, and let people look around in what is still buffered. */
  halt() {
    this.video.pause();
    this.halted = true;
  }

  clear() {
    this.source = this.buffer = null;
    this.opened = this.started = this.ending = this.halted = this.hidden = false;
    this.queue = [];
    this.video.controls = false;
    this.video.removeAttribute("src");
    this.video.load(); // lets go of what it held
    if (this.url) URL.revokeObjectURL(this.url);
  }

  /** Seconds that are there but not yet seen. */
  get ahead() {
    const { buffered, currentTime } = this.video;
    return buffered.length ? Math.max(0, buffered.end(buffered.length - 1) - currentTime) : 0;
  }

  // A buffer does one thing at a time, so each step here begins at most one and `updateend` begins the next.
  pump() {
    if (!this.buffer || this.buffer.updating || this.source.readyState !== "open") return;
    if (this.forget(BEHIND, SLACK)) return;
    if (this.queue.length) this.append(this.queue[0]);
    else if (this.ending) this.finish();
  }

  append(bytes) {
    try {
      this.buffer.appendBuffer(bytes);
      this.queue.shift();
    } catch (error) {
      // A full buffer gives up what was seen and takes the piece after that, or later; anything else is a fault.
      if (error.name !== "QuotaExceededError") this.breakOff(error.message);
      else this.forget(1, 0);
    }
  }

  forget(behind, slack) {
    const { buffered, currentTime } = this.video;
    if (!buffered.length || currentTime - buffered.start(0) <= behind + slack) return false;
    this.buffer.remove(0, currentTime - behind);
    return true;
  }

  finish() {
    this.source.endOfStream();
    this.video.controls = true;
  }

  updated() {
    this.play();
    this.follow();
    this.pump();
  }

  /** Once, with the first pictures: a later pause is somebody's wish. */
  play() {
    if (this.started || this.halted || !this.video.buffered.length) return;
    this.started = true;
    this.video.play().catch((error) => error.name === "NotAllowedError" && this.block());
  }

  block() {
    this.video.controls = true;
    this.tell.blocked();
  }

  follow() {
    if (!this.video.paused && this.ahead > FURTHEST) this.video.currentTime += this.ahead - LAG;
  }
}

// Everything that is asked of the server: JSON over HTTP, and one live video over a WebSocket.

const KEY = "aad1-api-key";

export const apiKey = () => sessionStorage.getItem(KEY);
export const rememberKey = (key) => sessionStorage.setItem(KEY, key);

export class Unauthorized extends Error {}

/** The JSON at a path. Raises Unauthorized where an API key is missing or wrong. */
export async function ask(path) {
  const key = apiKey();
  const answer = await fetch(path, { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  if (answer.status === 401) throw new Unauthorized();
  if (!answer.ok) throw new Error(`${path}: the server answers ${answer.status}`);
  return answer.json();
}

const CALLS = {
  "session.started": "started",
  "video.chunk_metadata": "chunk",
  "session.interaction.applied": "applied",
  "session.done": "done",
  error: "error",
};

/** One live video. `hear` has a function for each of CALLS, and `piece(bytes)` and `lost()`. */
export class LiveSession {
  constructor(start, hear) {
    this.hear = hear;
    const key = apiKey();
    const begin = { type: "session.start", ...start, ...(key && { api_key: key }) };
    this.socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/realtime/video`);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => this.say(begin);
    this.socket.onmessage = ({ data }) => this.heard(data);
    this.socket.onclose = () => this.hear?.lost();
  }

  change(prompt) {
    this.say({ type: "session.interaction", prompt });
  }

  stop() {
    this.say({ type: "session.stop" });
  }

  /** Hang up; nothing more is heard of this session, so that an old one cannot disturb its successor. */
  close() {
    this.hear = null;
    this.socket.close();
  }

  say(event) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(event));
  }

  heard(data) {
    if (data instanceof ArrayBuffer) return this.hear?.piece(data);
    const event = JSON.parse(data);
    this.hear?.[CALLS[event.type]]?.(event);
  }
}

"""The page in a real browser, before a real server: what people do with it, and what must not happen."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import Visitor
from PIL import Image
from serving import CLIP, RunningServer, decode, png, running

from aad1.data.world import make_clip, render, sample_scene
from aad1.errors import UserError
from aad1.models.text import check_words
from aad1.serve.fragments import FragmentedMp4
from aad1.serve.server import SAMPLES
from aad1.streaming import Student, load_student

FIRST, OTHER = (make_clip("test", index, 1).caption for index in (0, 1))
# Playwright's own waiting compiles text in the page, which the page's policy forbids; so we ask again and again.
PICTURE_IS_THERE = "document.querySelector('#picture').naturalWidth && document.querySelector('#prompt').value"
NAMELESS = """[...document.querySelectorAll("button, input, textarea, canvas")].filter((e) => e.checkVisibility() &&
    !(e.ariaLabel || e.labels?.length || e.innerText || e.querySelector("[alt]"))).map((e) => e.outerHTML)"""


@pytest.fixture(scope="module")
def student() -> Student:
    student = load_student("tiny", device="cpu")
    student.warm_up()
    return student


@pytest.fixture(scope="module")
def server(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(student, tmp_path_factory.mktemp("page")) as started:
        yield started


class Guest(Visitor):
    """Somebody at the server's page."""

    def state(self, name: str) -> None:
        self.until(f"document.body.dataset.state === '{name}'")

    def plays(self, seconds: float) -> None:
        self.until(f"document.querySelector('video').currentTime > {seconds}")

    def stop(self) -> None:
        self.page.click("#stop")
        self.state("ended")


@contextmanager
def visiting(browser: Any, server: RunningServer, ready: str = PICTURE_IS_THERE, **options: Any) -> Iterator[Guest]:
    """A fresh visit to the page."""
    context = browser.new_context(**options)
    try:
        visitor = Guest(context.new_page())
        visitor.page.goto(server.url)
        visitor.until(ready)
        yield visitor
    finally:
        context.close()


def test_a_sample_plays_is_steered_stopped_and_downloaded(browser: Any, server: RunningServer) -> None:
    with visiting(browser, server) as visitor:
        page = visitor.page
        page.click(f"#samples button[title='{OTHER}']")
        visitor.until(f"document.querySelector('#prompt').value === '{OTHER}'")
        page.click("#start")
        visitor.plays(1)
        assert float(page.get_attribute("#first", "data-value")) > 0
        assert float(page.get_attribute("#fps", "data-value")) > 0
        page.fill("#prompt", "a yellow square moves left fast, a red square moves down slowly")
        page.press("#prompt", "Enter")
        steered = "document.querySelector('#prompts li:nth-child(2)').innerText"
        visitor.until(rf"/from chunk \d/.test({steered})")
        visitor.until(rf"/seen after [\d.]+ s/.test({steered})")
        assert visitor.text("#now").startswith("a yellow square moves left fast")
        early = decode(visitor.download())
        visitor.stop()
        where = page.evaluate("document.querySelector('video').currentTime")
        video = decode(visitor.download())
        assert video.shape[1:] == (384, 384, 3)
        assert len(video) >= max(len(early), int(16 * where))
        assert "denoising" in visitor.text("#chunk-note")
        assert visitor.complaints == []
        assert visitor.hosts == {f"127.0.0.1:{server.port}"}


def test_the_keyboard_is_enough(browser: Any, server: RunningServer) -> None:
    with visiting(browser, server) as visitor:
        page, press = visitor.page, visitor.page.keyboard.press

        def tab_to(selector: str) -> None:
            for _ in range(60):
                press("Tab")
                if page.evaluate(f"document.activeElement.matches(`{selector}`)"):
                    return
            raise AssertionError(f"the Tab key does not lead to {selector}")

        tab_to(f"#samples [title='{OTHER}']")
        press("Enter")
        visitor.until(f"document.querySelector('#prompt').value === '{OTHER}'")
        tab_to("#draw summary")
        press("Enter")
        tab_to("#canvas")
        assert page.is_visible("#cross")
        press("Shift+ArrowLeft")
        press("Enter")
        assert visitor.text("#canvas-news") == "In the picture: red disc"
        page.keyboard.press("Delete")
        assert visitor.text("#canvas-news") == "The picture is empty"
        page.reload()
        visitor.until(PICTURE_IS_THERE)
        tab_to("#prompt")
        press("Enter")
        visitor.plays(0.2)
        tab_to("#stop")
        press("Enter")
        visitor.state("ended")
        assert page.evaluate("document.activeElement.id") == "stop"  # where it was, not lost
        assert visitor.complaints == []


def test_a_word_the_model_does_not_know_is_marked_and_not_sent(browser: Any, server: RunningServer) -> None:
    with visiting(browser, server) as visitor:
        page = visitor.page
        page.fill("#prompt", "")
        page.type("#prompt", "a red elephant sl")
        assert page.eval_on_selector_all("#marks mark", "marks => marks.map(m => m.textContent)") == ["elephant"]
        assert "“elephant”" in visitor.text("#prompt-note")
        assert page.get_attribute("#prompt", "aria-invalid") == "true"
        page.click("#start")
        assert page.evaluate("document.body.dataset.state") == "idle"
        assert "“sl”" in visitor.text("#prompt-note")  # it could have become "slowly" while it was written
        page.click("#chips button")
        assert visitor.text("#prompt-note") == ""
        assert "elephant" not in visitor.text("#words")
        assert all(word in visitor.text("#words").split() for word in FIRST.replace(",", " ").split())


def test_page_and_tokenizer_agree_on_what_is_unknown(browser: Any, server: RunningServer, student: Student) -> None:
    texts = [FIRST, "A RED	disc,a  blue square", "a red disc.", "a d'isc", "red-disc", "a $ red", "größe", "a_red"]

    def unknown(text: str) -> bool:
        try:
            check_words(student.text.tokenizer, [text])
        except UserError:
            return True
        return False

    with visiting(browser, server) as visitor:
        script = """async (texts) => {
            const { unknownPieces } = await import("/static/prompts.js");
            const { ask } = await import("/static/server.js");
            const { vocabulary } = (await ask("/v1/models")).data[0];
            return texts.map((text) => unknownPieces(text, vocabulary).length > 0);
        }"""
        assert visitor.page.evaluate(script, texts) == [unknown(text) for text in texts]


def test_a_drawing_is_a_picture_of_the_world_to_the_pixel(browser: Any, server: RunningServer) -> None:
    scene = sample_scene("test", 2)
    shapes = [vars(shape) | dict(zip("xy", shape.position, strict=True)) for shape in scene.shapes]
    script = """async ([shapes, corners]) => {
        const { background, paint } = await import("/static/world.js");
        return Array.from(paint(shapes, background(corners)));
    }"""
    with visiting(browser, server) as visitor:
        pixels = np.array(visitor.page.evaluate(script, [shapes, scene.background]), np.uint8).reshape(64, 64, 4)
    truth = render(scene, np.array([[s.position] for s in scene.shapes]))[0]
    assert np.abs(pixels[..., :3].astype(int) - truth).max() <= 1  # browsers round halves up, NumPy to even


def test_a_drawing_becomes_a_video(browser: Any, server: RunningServer) -> None:
    with visiting(browser, server) as visitor:
        page = visitor.page
        page.click("#draw summary")
        page.check("#hues [value=yellow]", force=True)
        page.check("#shapes [value=square]", force=True)
        page.locator("#canvas").scroll_into_view_if_needed()
        box = page.locator("#canvas").bounding_box()
        page.mouse.move(box["x"] + 40, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
        page.mouse.up()
        page.fill("#prompt", "a yellow square moves right slowly")
        page.click("#start")
        visitor.plays(0.2)
        visitor.stop()
        first = decode(visitor.download())[0].astype(int)
    centre, corner = first[184:200, 184:200].mean((0, 1)), first[:60, :60].mean((0, 1))
    assert centre[:2].min() - centre[2] > 60  # yellow where it was dragged to
    assert np.ptp(corner) < 60


def test_files_are_picked_dropped_and_pasted(browser: Any, server: RunningServer, tmp_path: Path) -> None:
    photo, exif = tmp_path / "photo.jpg", Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (1600, 1200), "teal").save(photo, exif=exif)
    shape = "[document.querySelector('#picture').naturalWidth, document.querySelector('#picture').naturalHeight].join()"
    give = """([data, kind]) => {
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        const files = new DataTransfer();
        files.items.add(new File([bytes], "still.png", { type: "image/png" }));
        const init = kind === "drop" ? { dataTransfer: files } : { clipboardData: files };
        const Kind = kind === "drop" ? DragEvent : ClipboardEvent;
        document.body.dispatchEvent(new Kind(kind, { ...init, bubbles: true, cancelable: true }));
    }"""
    with visiting(browser, server) as visitor:
        page = visitor.page
        page.set_input_files("#file", photo)
        visitor.until(f"{shape} === '768,1024'")
        for kind, size in (("drop", (30, 20)), ("paste", (20, 30))):
            data = base64.b64encode(png(np.zeros((*size, 3), np.uint8))).decode()
            page.evaluate(give, [data, kind])
            visitor.until(f"{shape} === '{size[1]},{size[0]}'")
        (tmp_path / "text.png").write_text("no picture")
        page.set_input_files("#file", tmp_path / "text.png")
        visitor.until("/no picture/.test(document.querySelector('#picture-note').innerText)")
        page.set_input_files("#file", photo)
        visitor.until(f"{shape} === '768,1024'")
        assert visitor.text("#picture-note") == ""
        page.click("#start")
        visitor.plays(0.2)
        visitor.stop()
        first = decode(visitor.download())[0]
    assert first[..., 0].mean() + 10 < first[..., 1].mean()  # teal, as far as the world's autoencoder knows it


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(browser: Any, server: RunningServer, scheme: str) -> None:
    with visiting(browser, server, viewport={"width": 375, "height": 700}, color_scheme=scheme) as visitor:
        visitor.page.click("#draw summary")
        visitor.page.fill("#prompt", "w" * 300)
        assert visitor.page.evaluate("document.documentElement.scrollWidth") == 375
        ground = visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(251, 251, 249)") == (scheme == "light")
        assert visitor.page.evaluate(NAMELESS) == []


def test_a_busy_server_is_said_and_can_be_tried_again(browser: Any, student: Student, tmp_path: Path) -> None:
    with running(student, tmp_path, live=1) as full, visiting(browser, full) as visitor:
        full.parts.live.playing.limit = 0
        visitor.page.click("#start")
        visitor.state("failed")
        assert "try again later" in visitor.text("#trouble p")
        full.parts.live.playing.limit = 1
        visitor.page.click("#trouble button")
        visitor.plays(0.1)
        assert not visitor.page.is_visible("#trouble")


def test_a_key_is_asked_for_and_used(browser: Any, student: Student, tmp_path: Path) -> None:
    asked = "document.querySelector('#key-form').checkVisibility()"
    with running(student, tmp_path, api_key="sesame") as guarded, visiting(browser, guarded, asked) as visitor:
        visitor.page.fill("#key", "wrong")
        visitor.page.press("#key", "Enter")
        visitor.until("document.querySelector('#key-note').innerText === 'This key is wrong.'")
        visitor.page.fill("#key", "sesame")
        visitor.page.press("#key", "Enter")
        visitor.until(PICTURE_IS_THERE)
        visitor.page.click("#start")
        visitor.plays(0.1)
        assert not visitor.page.is_visible("#key-form")


def test_a_lost_connection_is_said_and_can_be_made_again(browser: Any, server: RunningServer) -> None:
    with visiting(browser, server) as visitor:
        lines: list[Any] = []
        visitor.page.route_web_socket("**/*", lambda line: lines.append(line) or line.connect_to_server())
        visitor.page.reload()
        visitor.until(PICTURE_IS_THERE)
        visitor.page.click("#start")
        visitor.plays(0.1)
        lines[0].close(code=4000)
        visitor.state("failed")
        assert "lost" in visitor.text("#trouble p")
        assert len(decode(visitor.download())) >= 16  # what had come is a film
        visitor.page.click("#trouble button")
        visitor.state("playing")
        visitor.plays(0.1)
        visitor.stop()


def test_the_player_keeps_up_and_forgets_and_the_recording_is_bounded(browser: Any, server: RunningServer) -> None:
    encoder = FragmentedMp4((64, 64), 4.0)
    chunk = np.repeat(CLIP.frames, 4, axis=0)
    pieces = [base64.b64encode(encoder.add(chunk)).decode() for _ in range(100)]
    script = """async ([mime, pieces]) => {
        const { Player } = await import("/static/player.js");
        const { Recording } = await import("/static/recording.js");
        const video = Object.assign(document.createElement("video"), { muted: true });
        const faults = [];
        const player = new Player(video, { frame() {}, blocked() {}, failed: (fault) => faults.push(fault) });
        const recording = new Recording("a.mp4", 20_000);
        player.open(mime);
        for (const piece of pieces) {
            const bytes = Uint8Array.from(atob(piece), (c) => c.charCodeAt(0)).buffer;
            player.add(bytes);
            recording.add(bytes, 1);
            await new Promise((done) => setTimeout(done, 5));
        }
        while (player.queue.length || player.buffer.updating) await new Promise((done) => setTimeout(done, 5));
        const kept = recording.parts.reduce((sum, part) => sum + part.size, 0);
        const { buffered, currentTime } = video;
        return { from: buffered.start(0), to: buffered.end(0), pieces: buffered.length, currentTime, faults, kept,
            full: recording.full, said: recording.bytes };
    }"""
    with visiting(browser, server) as visitor:
        found = visitor.page.evaluate(script, [encoder.mime, pieces])
    assert found["faults"] == []
    assert found["pieces"] == 1
    assert 99 < found["to"] <= 100
    assert found["to"] - found["currentTime"] < 5
    assert 50 < found["from"] < found["currentTime"]
    assert found["full"]
    assert found["kept"] == found["said"] <= 20_000


def test_a_piece_that_cannot_be_taken_ends_the_video_once(browser: Any, server: RunningServer) -> None:
    with visiting(browser, server) as visitor:
        visitor.page.evaluate("""() => {
            const append = SourceBuffer.prototype.appendBuffer;
            SourceBuffer.prototype.appendBuffer = function (bytes) {
                if (this.taken) throw new DOMException("broken", "InvalidStateError");
                this.taken = true;
                append.call(this, bytes);
            };
        }""")
        visitor.page.click("#start")
        visitor.state("failed")
        assert "The video cannot be played: broken" in visitor.text("#trouble p")


def test_a_full_buffer_waits_until_something_was_seen(browser: Any, server: RunningServer) -> None:
    with visiting(browser, server) as visitor:
        visitor.page.evaluate("""() => {
            const append = SourceBuffer.prototype.appendBuffer;
            let calls = 0;
            SourceBuffer.prototype.appendBuffer = function (bytes) {
                if (++calls === 3) throw new DOMException("full", "QuotaExceededError");
                append.call(this, bytes);
            };
        }""")
        visitor.page.click("#start")
        visitor.plays(4)
        visitor.stop()


def test_a_paused_video_can_be_played_on(browser: Any, server: RunningServer) -> None:
    with visiting(browser, server) as visitor:
        visitor.page.click("#start")
        visitor.plays(0.5)
        assert not visitor.page.evaluate("document.querySelector('video').controls")
        visitor.page.evaluate("document.querySelector('video').pause()")
        visitor.until("document.querySelector('video').controls")
        visitor.page.evaluate("document.querySelector('video').play()")
        visitor.until("!document.querySelector('video').controls")
        visitor.stop()


def test_a_model_that_fails_is_not_the_prompts_fault(
    browser: Any, server: RunningServer, student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    with visiting(browser, server) as visitor:
        visitor.page.click("#start")
        visitor.plays(0.5)

        def fails(*arguments: Any) -> Any:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(student.generator, "advance", fails)
        visitor.state("failed")
        assert "out of memory" in visitor.text("#trouble p")
        assert visitor.text("#prompt-note") == ""


def test_the_gallery_is_the_servers(browser: Any, server: RunningServer) -> None:
    with visiting(browser, server) as visitor:
        assert visitor.page.locator("#samples button").count() == SAMPLES
        assert visitor.page.locator("#samples [aria-pressed=true]").count() == 1
        data = visitor.page.get_attribute("#picture", "src").partition(",")[2]
    sent = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    np.testing.assert_array_equal(sent, make_clip("test", 0, 1).frames[0])


def test_a_model_that_takes_any_word_and_any_size_is_not_told_about_shapes(browser: Any, server: RunningServer) -> None:
    model = {"id": "large", "fps": 16, "size": None, "passes": [1.0], "vocabulary": None}
    with visiting(browser, server) as visitor:
        page = visitor.page
        page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": [model]}))
        page.reload()
        visitor.until(PICTURE_IS_THERE)
        page.fill("#prompt", "an elephant, running")
        assert visitor.text("#prompt-note") == ""
        assert page.locator("#chips button").count() == 0
        assert not page.is_visible("#knows")
        page.click("#draw summary")
        page.click("#canvas")
        visitor.until("document.querySelector('#picture').naturalWidth === 512")
        assert page.input_value("#prompt") == "an elephant, running"


def test_a_browser_without_h264_gets_vp9(browser: Any, server: RunningServer) -> None:
    with visiting(browser, server) as visitor:
        visitor.page.add_init_script("""
            const can = MediaSource.isTypeSupported;
            MediaSource.isTypeSupported = (mime) => !mime.includes("avc1") && can.call(MediaSource, mime);
        """)
        visitor.page.reload()
        visitor.until(PICTURE_IS_THERE)
        visitor.page.click("#start")
        visitor.plays(1.5)
        visitor.stop()
        film = visitor.download()
    assert b"vpcC" in film
    assert len(decode(film)) >= 17


def test_a_browser_that_cannot_play_is_told_so(browser: Any, server: RunningServer) -> None:
    with visiting(browser, server) as visitor:
        visitor.page.add_init_script("delete self.MediaSource; delete self.ManagedMediaSource")
        visitor.page.reload()
        visitor.until(PICTURE_IS_THERE)
        assert visitor.page.is_visible("#trouble")
        visitor.page.click("#start")
        assert "Media Source Extensions" in visitor.text("#trouble p")
        assert visitor.page.evaluate("document.body.dataset.state") == "idle"

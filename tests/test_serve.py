"""The server: OpenAI's client, a stock WebSocket client, limits, mistakes, faults, and random clients."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import websockets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from serving import CLIP, PICTURE, Client, RunningServer, decode, running, start, talk

from aad1.cli import main
from aad1.cli.serving import Serve
from aad1.data.media import read_metadata
from aad1.errors import UserError
from aad1.serve.codecs import CODECS
from aad1.serve.connection import MOST_MISTAKES
from aad1.serve.engine import enlarged, enlarged_size
from aad1.serve.fragments import FragmentedMp4
from aad1.serve.live import Pace
from aad1.serve.run import listen
from aad1.serve.settings import Settings
from aad1.serve.store import Job, VideoStore
from aad1.streaming import Student, load_student

pytestmark = pytest.mark.filterwarnings("ignore:.*Sora API.*")


@pytest.fixture(scope="module")
def student() -> Student:
    return load_student("tiny", device="cpu")


@pytest.fixture(scope="module")
def server(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("serve")
    limits = {"upload": 200_000, "pixels": 500_000, "prompt": 400, "patience": 20.0}
    with running(student, folder, **limits) as started:
        yield started


def alone(student: Student, seed: int, chunks: int, prompt: str = CLIP.caption) -> bytes:
    """The bytes of the first chunks of a video that nothing else disturbs."""
    session = student.session(CLIP.frames[0], prompt, seed=seed)
    encoder = FragmentedMp4(enlarged_size(session.size), 16.0)
    parts = [encoder.add(enlarged(frames)) for frames, _ in zip(session.chunks(), range(chunks), strict=False)]
    return b"".join(parts)


def ask(server: RunningServer, *, picture: bytes = PICTURE, **fields: Any) -> httpx.Response:
    files = {"input_reference": ("still.png", picture, "image/png")}
    return httpx.post(f"{server.url}/v1/videos", data={"prompt": CLIP.caption, **fields}, files=files)


# --- fragments --------------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "box"), [("h264", b"avcC"), ("vp9", b"vpcC")])
def test_pieces_are_a_file_and_the_same_frames_are_the_same_bytes(codec: str, box: bytes) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 64, 64, 3), dtype=np.uint8).repeat(2, axis=1)
    files = []
    for _ in range(2):
        encoder = FragmentedMp4((64, 64), 16.0, codec)
        pieces = [encoder.add(part) for part in frames]
        assert pieces[0].count(b"moov") == 1
        assert all(piece.count(b"moof") >= 7 and b"moov" not in piece for piece in pieces[1:])
        files.append(b"".join([*pieces, encoder.close()]))
    assert files[0] == files[1]
    assert decode(files[0]).shape == (24, 64, 64, 3)
    written = files[0][files[0].index(box) + 4 :]
    if codec == "h264":
        assert encoder.mime == f'video/mp4; codecs="avc1.{written[1:4].hex().upper()}"'
    else:  # after the box's version: profile and level, which may be less than what is told
        told = re.search(r"vp09\.(\d+)\.(\d+)", encoder.mime)
        assert told is not None
        assert int(told[1]) == written[4]
        assert int(told[2]) >= written[5] > 0


def test_the_level_is_the_least_that_holds_the_video() -> None:
    h264, vp9 = CODECS["h264"], CODECS["vp9"]
    assert [h264.level(size, 16) for size in ((384, 384), (480, 832), (1080, 1920))] == [30, 30, 40]
    assert h264.level((480, 832), 30) == 31
    assert vp9.mime((480, 832), 16) == 'video/mp4; codecs="vp09.00.31.08"'
    with pytest.raises(UserError, match="8192x8192 at 16"):
        h264.level((8192, 8192), 16)


def test_enlarged_pictures_have_even_sides() -> None:
    assert enlarged_size((64, 64)) == (384, 384)
    assert enlarged_size((401, 399)) == (402, 400)
    frames = np.arange(2 * 3 * 2 * 3, dtype=np.uint8).reshape(2, 3, 2, 3)
    np.testing.assert_array_equal(enlarged(frames)[:, ::128, ::128], frames)


# --- jobs -------------------------------------------------------------------------------------


def test_the_official_client_creates_polls_downloads_lists_and_deletes(server: RunningServer, tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(api_key="none", base_url=f"{server.url}/v1")
    picture = ("still.png", PICTURE, "image/png")
    video = client.videos.create_and_poll(
        prompt=CLIP.caption, input_reference=picture, seconds="2", extra_body={"seed": 3}, poll_interval_ms=100
    )
    assert (video.status, video.progress, video.seconds, video.size) == ("completed", 100, "2", "64x64")
    (tmp_path / "a.mp4").write_bytes(client.videos.download_content(video.id).read())
    assert decode((tmp_path / "a.mp4").read_bytes()).shape == (32, 384, 384, 3)
    note = read_metadata(tmp_path / "a.mp4")
    assert (note["prompt"], note["seed"]) == (CLIP.caption, 3)
    assert video.id in [each.id for each in client.videos.list()]
    assert client.videos.retrieve(video.id).completed_at >= video.created_at
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    assert not list(server.parts.settings.folder.glob(f"{video.id}*"))


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"prompt": "a red elephant"}, 400, "elephant"),
        ({"prompt": "a " * 300}, 400, "at most 400"),
        ({"seconds": "0"}, 400, "above 0"),
        ({"seconds": "soon"}, 400, "seconds 'soon'"),
        ({"seconds": "1e9"}, 400, "up to 600"),
        ({"size": "60x64"}, 400, "multiple of 16"),
        ({"size": "64"}, 400, "WIDTHxHEIGHT"),
        ({"size": "8192x8192"}, 400, "at most 4096 are allowed"),
        ({"seconds": "1_0"}, 400, "seconds '1_0'"),
        ({"seed": "-1"}, 422, "seed"),
        ({"model": "sora-2"}, 400, "not served here"),
        ({"picture": b"not a picture"}, 400, "cannot be read"),
        ({"picture": b"%PDF-1.4"}, 400, "cannot be read"),
        ({"colour": "red"}, 400, "unknown fields: colour"),
        ({"picture": bytes(300_000)}, 413, "200000 bytes"),
    ],
)
def test_a_mistake_is_one_clear_message(
    server: RunningServer, fields: dict[str, Any], status: int, message: str
) -> None:
    answer = ask(server, **fields)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]
    assert not server.parts.store.unfinished()


def test_a_picture_of_many_pixels_is_refused_before_it_is_decoded(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = BytesIO()
    Image.new("1", (4000, 4000)).save(bomb, "PNG")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it was decoded"))
    answer = ask(server, picture=bomb.getvalue())
    assert answer.status_code == 400
    assert "at most 500000 are allowed" in answer.json()["error"]["message"]


def test_a_body_without_a_length_is_stopped_when_it_is_too_long(server: RunningServer) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="input_reference"; filename="x"\r\n\r\n'
        for _ in range(40):
            yield bytes(10_000)

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert httpx.post(f"{server.url}/v1/videos", content=endless(), headers=headers).status_code == 413


def test_nothing_a_client_sends_becomes_a_path(server: RunningServer) -> None:
    for name in ("..%2F..%2Fetc%2Fpasswd", "..", "video_x/../../..", "job.json"):
        assert httpx.get(f"{server.url}/v1/videos/{name}/content").status_code in (404, 405)
        assert httpx.delete(f"{server.url}/v1/videos/{name}").status_code in (404, 405)
    assert httpx.get(f"{server.url}/static/..%2Fapp.py").status_code == 404
    answer = httpx.post(
        f"{server.url}/v1/videos",
        data={"prompt": CLIP.caption, "seconds": "0.5"},
        files={"input_reference": ("../../evil.png", PICTURE, "image/png")},
    )
    assert answer.status_code == 200
    assert not list(server.parts.settings.folder.parent.rglob("evil*"))


def test_other_sites_and_other_names_are_refused(server: RunningServer) -> None:
    wrong = {"Origin": "https://elsewhere.example"}
    for origin in (wrong["Origin"], "http://[", "null", "http://"):
        assert httpx.delete(f"{server.url}/v1/videos/x", headers={"Origin": origin}).status_code == 403
    assert httpx.get(f"{server.url}/healthz", headers={"Host": "elsewhere.example"}).status_code == 400
    own = {"Origin": server.url}
    assert httpx.delete(f"{server.url}/v1/videos/x", headers=own).status_code == 404
    for origin in (wrong["Origin"], "http://["):
        with pytest.raises(websockets.InvalidStatus, match="403"):
            talk(server, Client.hear, origin=origin)
    event = talk(server, _says("nonsense"), origin=server.url)
    assert event["code"] == "invalid_event"


def test_a_key_is_asked_for_where_there_is_one(student: Student, tmp_path: Path) -> None:
    with running(student, tmp_path, api_key="secret") as locked:
        assert httpx.get(f"{locked.url}/healthz").json()["api_key_required"]
        for path in ("/v1/videos", "/v1/models", "/v1/samples", "/v1/videos/x", "/v1/videos/x/content"):
            assert httpx.get(locked.url + path).status_code == 401
            assert httpx.get(locked.url + path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert ask(locked).status_code == 401
        assert httpx.get(f"{locked.url}/v1/videos", headers={"Authorization": "secret"}).status_code == 401
        assert httpx.get(f"{locked.url}/v1/videos", headers={"Authorization": "bearer secret"}).status_code == 200
        assert httpx.post(f"{locked.url}/v1/videos", content=b"not a form").status_code == 401
        right = {"Authorization": "Bearer secret"}
        assert httpx.get(f"{locked.url}/v1/videos", headers=right).status_code == 200
        assert talk(locked, _says(start()))["code"] == "unauthorized"
        assert talk(locked, _says(start(api_key="secret")))["type"] == "session.started"
        assert talk(locked, _says(start()), additional_headers=right)["type"] == "session.started"


def _says(event: Any) -> Any:
    async def conversation(client: Client) -> dict[str, Any]:
        await client.say(event)
        return await client.hear()

    return conversation


def test_finished_jobs_survive_a_restart_and_unfinished_ones_go_on(student: Student, tmp_path: Path) -> None:
    with running(student, tmp_path) as first:
        done = ask(first, seconds="1").json()["id"]
        _wait(lambda: httpx.get(f"{first.url}/v1/videos/{done}").json()["status"] == "completed")
        long = ask(first, seconds="500").json()["id"]
        waiting = ask(first, seconds="1").json()["id"]
        _wait(lambda: httpx.get(f"{first.url}/v1/videos/{long}").json()["status"] == "in_progress")
        assert httpx.get(f"{first.url}/v1/videos/{long}/content").status_code == 409
    assert not list(tmp_path.rglob("*.tmp"))
    (tmp_path / "video_torn").mkdir()
    (tmp_path / "video_torn" / "job.json").write_text('{"id": "video_t')
    with running(student, tmp_path) as second:
        assert httpx.get(f"{second.url}/v1/videos/{done}/content").status_code == 200
        assert httpx.delete(f"{second.url}/v1/videos/{long}").status_code == 200
        _wait(lambda: httpx.get(f"{second.url}/v1/videos/{waiting}").json()["status"] == "completed")
        assert {job["id"] for job in httpx.get(f"{second.url}/v1/videos").json()["data"]} == {done, waiting}
    assert not (tmp_path / long).exists()


def _wait(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_the_queue_and_the_quota_are_bounded(student: Student, tmp_path: Path) -> None:
    with running(student, tmp_path / "a", queue=2) as server:
        answers = [ask(server, seconds="600") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[2].headers["Retry-After"]
        for answer in answers[:2]:
            httpx.delete(f"{server.url}/v1/videos/{answer.json()['id']}")
        assert ask(server, seconds="0.5").status_code == 200
    with running(student, tmp_path / "b", quota_gb=1e-7) as server:
        answer = ask(server)
        assert answer.status_code == 400
        assert "of the 107 bytes they may" in answer.json()["error"]["message"]
        assert not list((tmp_path / "b").iterdir())
    with running(student, tmp_path / "c", quota_gb=1e-4) as server:
        jobs = [ask(server, seconds="60").json()["id"] for _ in range(2)]
        _wait(lambda: all(_job(server, job)["status"] == "failed" for job in jobs))
        assert "they may" in _job(server, jobs[0])["error"]["message"]
        assert server.parts.store.used() <= server.parts.settings.quota


def _job(server: RunningServer, id: str) -> dict[str, Any]:
    return httpx.get(f"{server.url}/v1/videos/{id}").json()  # type: ignore[no-any-return]


def test_a_video_whose_file_is_gone_is_not_there(student: Student, tmp_path: Path) -> None:
    with running(student, tmp_path) as server:
        job = ask(server, seconds="0.5").json()["id"]
        _wait(lambda: _job(server, job)["status"] == "completed")
        server.parts.store.video(server.parts.job(job)).unlink()
        assert httpx.get(f"{server.url}/v1/videos/{job}/content").status_code == 404
    assert VideoStore(tmp_path, 10**9).jobs[job].error == "its file is gone"


def test_jobs_that_come_and_go_disturb_no_other(student: Student, tmp_path: Path) -> None:
    with running(student, tmp_path) as server:
        long = ask(server, seconds="20").json()["id"]

        def come_and_go() -> set[int]:
            codes = set()
            while _job(server, long)["status"] in ("queued", "in_progress"):
                answer = ask(server, seconds="1")
                deleted = httpx.delete(f"{server.url}/v1/videos/{answer.json()['id']}")
                codes |= {answer.status_code, deleted.status_code}
            return codes

        with ThreadPoolExecutor(3) as pool:
            found = [pool.submit(come_and_go) for _ in range(3)]
            assert {code for codes in found for code in codes.result()} == {200}
        assert _job(server, long)["status"] == "completed"
        httpx.delete(f"{server.url}/v1/videos/{long}")
        _wait(lambda: not list(tmp_path.iterdir()))


def test_a_job_that_is_deleted_while_it_is_finished_stays_deleted(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = VideoStore.finish
    with running(student, tmp_path) as server:

        def slowly(store: VideoStore, job: Job) -> None:
            assert httpx.delete(f"{server.url}/v1/videos/{job.id}").status_code == 200
            finish(store, job)

        monkeypatch.setattr(VideoStore, "finish", slowly)
        job = ask(server, seconds="0.5").json()["id"]
        _wait(lambda: httpx.get(f"{server.url}/v1/videos/{job}").status_code == 404)
        _wait(lambda: not list(tmp_path.iterdir()))


def test_pages_of_the_list(tmp_path: Path, student: Student) -> None:
    store = VideoStore(tmp_path, 10**9)
    for number in range(5):
        job = Job("x", "m", 1.0, id=f"video_{number}", created_at=number, status="completed")
        store.create(job, b"")
        store.video(job).write_bytes(b"a video")
    with running(student, tmp_path) as server:

        def page(**query: Any) -> tuple[list[str], bool]:
            found = httpx.get(f"{server.url}/v1/videos", params=query).json()
            return [job["id"][-1] for job in found["data"]], found["has_more"]

        assert page() == (["4", "3", "2", "1", "0"], False)
        assert page(limit=2) == (["4", "3"], True)
        assert page(limit=2, after="video_3") == (["2", "1"], True)
        assert page(order="asc", limit=3) == (["0", "1", "2"], True)
        assert httpx.get(f"{server.url}/v1/videos", params={"after": "nothing"}).status_code == 404
        assert httpx.get(f"{server.url}/v1/videos", params={"limit": 0}).status_code == 422


# --- live -------------------------------------------------------------------------------------


def test_a_live_video_is_the_video_its_seed_makes_alone(server: RunningServer, student: Student) -> None:
    async def conversation(client: Client) -> dict[str, Any]:
        await client.say(start(seed=5, max_seconds=49 / 16))
        return await client.until("session.done")

    held: list[Client] = []

    async def kept(client: Client) -> dict[str, Any]:
        held.append(client)
        return await conversation(client)

    done = talk(server, kept)
    [client] = held
    assert client.video.startswith(alone(student, 5, 3))
    assert len(decode(client.video)) == 49
    kinds = [event["type"] for event in client.events]
    assert kinds == ["session.started", *["video.chunk_metadata"] * 3, "session.done"]
    assert [event["index"] for event in client.events[1:4]] == [0, 1, 2]
    assert [event["start_s"] for event in client.events[1:4]] == [0, 17 / 16, 33 / 16]
    assert client.events[1]["first_frame_s"] > 0
    assert done["reason"] == "finished"
    assert done["report"]["chunks"] == 3


def test_the_prompt_changes_where_it_is_said_to(server: RunningServer, student: Student) -> None:
    other = "a blue square moves left fast"

    async def conversation(client: Client) -> Client:
        await client.say(start(seed=2))
        await client.until("video.chunk_metadata", index=1)
        await client.say({"type": "session.interaction", "prompt": "a red elephant"})
        assert "elephant" in (await client.until("error"))["message"]
        await client.say({"type": "session.interaction", "prompt": other})
        applied = await client.until("session.interaction.applied")
        await client.until("video.chunk_metadata", index=applied["from_chunk"] + 1)
        await client.say({"type": "session.stop"})
        assert (await client.until("session.done"))["reason"] == "stopped"
        return client

    client = talk(server, conversation)
    chunks = [event for event in client.events if event["type"] == "video.chunk_metadata"]
    first = next(event["from_chunk"] for event in client.events if event["type"] == "session.interaction.applied")
    assert [event["prompt"] == other for event in chunks] == [event["index"] >= first for event in chunks]
    assert client.video.startswith(alone(student, 2, first))
    assert not client.video.startswith(alone(student, 2, first + 1))


@pytest.mark.parametrize("fault", [RuntimeError, ValueError])
def test_a_model_that_fails_ends_one_video_and_says_so(
    server: RunningServer, student: Student, monkeypatch: pytest.MonkeyPatch, fault: type[Exception]
) -> None:
    advance = student.generator.advance

    def fails(*arguments: Any) -> Any:
        raise fault("out of memory")

    monkeypatch.setattr(student.generator, "advance", fails)

    async def conversation(client: Client) -> tuple[dict[str, Any], int]:
        await client.say(start())
        return await client.until("error"), await closed(client)

    event, code = talk(server, conversation)
    assert (event["code"], code) == ("failed", 1011)
    assert "out of memory" in event["message"]
    job = ask(server, seconds="0.5").json()["id"]
    _wait(lambda: httpx.get(f"{server.url}/v1/videos/{job}").json()["status"] == "failed")
    assert "out of memory" in httpx.get(f"{server.url}/v1/videos/{job}").json()["error"]["message"]
    monkeypatch.setattr(student.generator, "advance", advance)

    async def another(client: Client) -> dict[str, Any]:
        await client.say(start(max_seconds=0.5))
        return await client.until("session.done")

    assert talk(server, another)["reason"] == "finished"
    job = ask(server, seconds="0.5").json()["id"]
    _wait(lambda: _job(server, job)["status"] == "completed")  # the queue goes on


def test_eight_clients_at_once_are_served_alike_and_each_gets_its_own_video(
    server: RunningServer, student: Student
) -> None:
    async def one(seed: int) -> tuple[Client, float]:
        async with websockets.connect(server.socket, max_size=None) as connection:
            client = Client(connection)
            await client.say(start(seed=seed, max_seconds=65 / 16))
            began = time.monotonic()
            await client.until("session.done")
            return client, time.monotonic() - began

    async def all_of_them() -> list[tuple[Client, float]]:
        return await asyncio.gather(*(one(seed) for seed in range(8)))

    found = asyncio.run(all_of_them())
    assert all(client.video.startswith(alone(student, seed, 4)) for seed, (client, _) in enumerate(found))
    spent = [seconds for _, seconds in found]
    assert max(spent) <= 2 * min(spent)


def test_a_ninth_client_is_told_that_the_server_is_busy(student: Student, tmp_path: Path) -> None:
    with running(student, tmp_path, live=1) as server:

        async def conversation(client: Client) -> None:
            await client.say(start())
            await client.until("session.started")
            async with websockets.connect(server.socket) as second:
                await Client(second).say(start())
                assert (await Client(second).hear())["code"] == "busy"
                with pytest.raises(websockets.ConnectionClosedError) as closed:
                    await second.recv()
                assert closed.value.rcvd.code == 1013  # type: ignore[union-attr]

        talk(server, conversation)
        _wait(lambda: httpx.get(f"{server.url}/healthz").json()["live"] == 0)
        assert talk(server, _says(start()))["type"] == "session.started"


def test_who_has_begun_nothing_takes_no_place_from_who_plays(student: Student, tmp_path: Path) -> None:
    with running(student, tmp_path, live=1, sockets=3, api_key="secret", patience=3.0) as server:

        async def conversation(client: Client) -> None:
            silent = [await websockets.connect(server.socket) for _ in range(2)]
            await client.say(start(api_key="secret", max_seconds=1))
            assert (await client.until("session.done"))["reason"] == "finished"
            silent += [await websockets.connect(server.socket) for _ in range(2)]
            assert (await Client(silent[-1]).hear())["code"] == "busy"  # too many that only look
            began = time.monotonic()
            talker = Client(silent[0])
            for _ in range(4):
                await asyncio.sleep(0.5)
                await talker.say({"type": "session.stop"})  # no mistake wins time
            assert (await talker.until("error", code="timeout"))["type"] == "error"
            assert time.monotonic() - began < 4

        talk(server, conversation)


def test_a_reader_that_has_stopped_is_sent_away(student: Student, tmp_path: Path) -> None:
    with running(student, tmp_path, live=1, patience=1.0) as server:

        async def conversation(client: Client) -> None:
            await client.say(start())
            await client.until("session.started")
            client.connection.transport.pause_reading()
            await asyncio.to_thread(_wait, lambda: httpx.get(f"{server.url}/healthz").json()["live"] == 0)
            client.connection.transport.abort()

        talk(server, conversation)


def test_the_shortest_video_has_a_frame(server: RunningServer) -> None:
    async def conversation(client: Client) -> bytes:
        await client.say(start(max_seconds=1e-9))
        await client.until("session.done")
        return client.video

    assert len(decode(talk(server, conversation))) == 1


def test_a_slow_reader_makes_generation_wait_and_the_others_play_on(student: Student, tmp_path: Path) -> None:
    with running(student, tmp_path) as server:

        async def conversation(client: Client) -> None:
            slow = await websockets.connect(server.socket, max_size=None, max_queue=1)
            await Client(slow).say(start(seed=1))
            await client.say(start(seed=2, max_seconds=20))
            assert (await client.until("session.done"))["reason"] == "finished"
            made = [-1.0, 0.0]
            while made[-1] != made[-2]:  # until the system's own buffers are full
                await asyncio.sleep(1.5)
                made.append(_counted(server, "aad1_frames_total"))
            assert _counted(server, "aad1_live_sessions") == 1
            others = 17 + 16 * 19 + 16  # of the one that read: 20 seconds, and what its last chunk had beyond
            assert made[-1] - others < 16 * 60  # what buffers hold is bounded, whatever the machine
            slow.transport.abort()

        talk(server, conversation)


def _counted(server: RunningServer, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])  # type: ignore[index]


def test_a_live_video_keeps_the_pace_it_is_watched_at() -> None:
    pace = Pace(16.0, lead=2.0)
    assert pace.ahead() < 0
    pace.sent(64)
    assert pace.ahead() == pytest.approx(2.0, abs=0.2)


def test_a_client_that_vanishes_frees_its_place(server: RunningServer) -> None:
    async def conversation(client: Client) -> None:
        await client.say(start())
        await client.until("video.chunk_metadata")
        client.connection.transport.abort()

    talk(server, conversation)
    _wait(lambda: httpx.get(f"{server.url}/healthz").json()["live"] == 0)


def test_a_session_that_has_ended_is_let_go_of_at_once(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    opened, make = list[Any](), Student.session

    def noted(*arguments: Any, **options: Any) -> Any:
        session = make(*arguments, **options)
        opened.append(weakref.ref(session))
        return session

    async def dropped(client: Client) -> None:
        await client.say(start())
        await client.until("video.chunk_metadata")
        client.connection.transport.abort()

    async def stopped(client: Client) -> None:
        await client.say(start())
        await client.until("video.chunk_metadata")
        await client.say({"type": "session.stop"})
        await client.until("session.done")

    monkeypatch.setattr(Student, "session", noted)
    request.addfinalizer(gc.enable)
    with running(student, tmp_path) as server:
        gc.disable()  # cycles would keep a session's memory until the collector comes
        for conversation in (dropped, stopped, dropped):
            talk(server, conversation)
        _wait(lambda: len(opened) == 3 and not any(session() for session in opened))


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ("{", "invalid_event"),
        ("[]", "invalid_event"),
        ("{}", "invalid_event"),
        (b"\x00\xff", "invalid_event"),
        ({"type": "session.begin"}, "invalid_event"),
        ({"type": "session.stop"}, "not_started"),
        ({"type": "session.interaction", "prompt": "a red disc"}, "not_started"),
        (start(prompt="a red elephant"), "invalid_request"),
        (start(image="%%%"), "invalid_request"),
        (start(image="aGVsbG8="), "invalid_request"),
        (start(size=[60, 64]), "invalid_request"),
        (start(size=[512, 512]), "invalid_request"),
        (start(max_seconds=1e308), "invalid_request"),
        (start(max_seconds=float("inf")), "invalid_event"),
        (start(max_seconds=float("nan")), "invalid_event"),
        (start(passes=[0.5]), "invalid_request"),
        (start(seed=-1), "invalid_event"),
        (start(seed="1"), "invalid_event"),
        (start(pace="slow"), "invalid_event"),
        (start(colour="red"), "invalid_event"),
        (start(max_seconds=0), "invalid_event"),
    ],
    ids=str,
)
def test_a_wrong_event_is_answered_and_may_be_put_right(server: RunningServer, event: Any, code: str) -> None:
    async def conversation(client: Client) -> None:
        await client.say(event)
        answer = await client.hear()
        assert (answer["type"], answer["code"]) == ("error", code)
        assert answer["message"]
        await client.say(start())
        await client.until("video.chunk_metadata")
        await client.say(event)
        assert (await client.until("error") if code != "not_started" else {"type": "error"})["type"] == "error"

    talk(server, conversation)


async def closed(client: Client) -> int:
    """The code that the server closes with, after whatever it still has to say."""
    with suppress(websockets.ConnectionClosed):
        while True:
            await client.hear()
    return int(client.connection.close_code)


@pytest.mark.parametrize("started", [False, True])
def test_a_client_that_sends_nothing_but_garbage_is_sent_away(server: RunningServer, started: bool) -> None:
    async def conversation(client: Client) -> int:
        if started:
            await client.say(start())
            await client.until("session.started")
        for _ in range(MOST_MISTAKES):
            await client.say(b"garbage")
        return await closed(client)

    assert talk(server, conversation) == 1008


def test_who_says_nothing_is_sent_away(student: Student, tmp_path: Path) -> None:
    with running(student, tmp_path, patience=0.2) as server:

        async def conversation(client: Client) -> dict[str, Any]:
            return await client.hear()

        assert talk(server, conversation)["code"] == "timeout"


def test_stopping_the_server_ends_live_videos(student: Student, tmp_path: Path) -> None:
    async def conversation(client: Client) -> None:
        await client.say(start(pace="realtime"))
        await client.until("video.chunk_metadata")
        stopping.server.should_exit = True
        assert await closed(client) in (1001, 1012)

    with running(student, tmp_path) as stopping:
        talk(stopping, conversation)


@pytest.mark.parametrize("word", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_told_to_stop_stops_in_good_order(
    request: pytest.FixtureRequest, tmp_path: Path, word: int
) -> None:
    command = [sys.executable, "-m", "aad1", "serve", "--port", "0", "--device", "cpu", "-o", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    request.addfinalizer(process.kill)
    assert process.stdout is not None
    [port] = re.findall(r"open http://127.0.0.1:(\d+)", process.stdout.readline())
    there: Any = SimpleNamespace(url=f"http://127.0.0.1:{port}", socket=f"ws://127.0.0.1:{port}/v1/realtime/video")
    job = ask(there, seconds="300").json()["id"]

    async def conversation(client: Client) -> None:
        await client.say(start())
        await client.until("video.chunk_metadata", index=3)
        process.send_signal(word)
        assert await closed(client) in (1001, 1012)

    talk(there, conversation)
    assert (process.wait(60), process.communicate()) == (0, ("", ""))
    assert not list(tmp_path.rglob("*.mp4*"))
    assert [each.id for each in VideoStore(tmp_path, 10**9).unfinished()] == [job]


# --- what goes on -----------------------------------------------------------------------------


def test_health_models_samples_metrics_and_docs(server: RunningServer) -> None:
    health = httpx.get(f"{server.url}/healthz").json()
    assert (health["status"], health["live_limit"], health["api_key_required"]) == ("ok", 8, False)
    [model] = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert (model["id"], model["size"], model["passes"]) == ("tiny/student", [64, 64], [1.0])
    assert {"red", "disc", "moves"} <= set(model["vocabulary"])
    scenes = httpx.get(f"{server.url}/v1/samples").json()
    assert all(httpx.get(server.url + scene["image"]).content.startswith(b"\x89PNG") for scene in scenes)
    assert httpx.get(f"{server.url}/samples/99.png").status_code == 404
    for name in ("aad1_live_sessions", "aad1_jobs_total", "aad1_first_frame_seconds_bucket", "aad1_peak_memory_bytes"):
        assert name in httpx.get(f"{server.url}/metrics").text
    docs = httpx.get(f"{server.url}/docs")
    assert docs.status_code == 200
    assert not re.search(r"(src|href)=\"https?://", docs.text)
    page = httpx.get(server.url)
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("host", "names", "known", "unknown"),
    [
        ("127.0.0.1", (), ["localhost", "127.0.0.1", "[::1]"], ["elsewhere.example"]),
        ("fd00::7", ("*.example.org",), ["localhost", "[fd00::7]", "*.example.org"], []),
        ("0.0.0.0", ("here.example",), ["localhost", "here.example"], ["*"]),
        ("0.0.0.0", (), ["*"], []),
    ],
)
def test_the_names_a_server_goes_by(host: str, names: tuple[str, ...], known: list[str], unknown: list[str]) -> None:
    found = Serve(host=host, names=names)._names(host == "0.0.0.0", Settings.hosts)
    assert set(known) <= set(found)
    assert not set(unknown) & set(found)


def test_an_address_that_is_taken_is_said(student: Student) -> None:
    held = listen("127.0.0.1", 0)
    held.listen()
    with pytest.raises(UserError, match="cannot listen on 127"):
        listen("127.0.0.1", held.getsockname()[1])
    held.close()
    assert main(["serve", "--model", "nowhere"]) == 2
    assert main(["serve", "--port", "99999999"]) == 2


@pytest.mark.parametrize(
    ("option", "given", "reason"),
    [
        ("live", "0", "greater than or equal to 1"),
        ("queue", "-1", "greater than or equal to 0"),
        ("quota_gb", "nan", "finite"),
        ("fps", "1e9", "less than or equal to 240"),
        ("api_key", "", "empty"),
        ("names", "a*b", "--names a*b"),
        ("out", __file__, "it is a file"),
        ("out", "/proc/nowhere", "cannot write /proc/nowhere"),
    ],
)
def test_a_limit_that_is_none_is_one_line(
    option: str, given: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", "0", f"--{option}", given]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1


# --- random clients ---------------------------------------------------------------------------

EVENTS = st.one_of(
    st.builds(start, max_seconds=st.floats(allow_nan=True) | st.just(2)),
    st.builds(start, size=st.lists(st.integers(), max_size=3), max_seconds=st.just(1)),
    st.builds(start, passes=st.lists(st.floats(), max_size=3), max_seconds=st.just(1)),
    st.just({"type": "session.stop"}),
    st.builds(
        lambda prompt: {"type": "session.interaction", "prompt": prompt}, st.sampled_from([CLIP.caption, "x", ""])
    ),
    st.builds(lambda text: {"type": text}, st.text(max_size=8)),
    st.dictionaries(st.text(max_size=6), st.integers() | st.none() | st.text(max_size=5), max_size=3),
    st.text(max_size=20),
    st.binary(max_size=20),
)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(events=st.lists(EVENTS, max_size=6))
def test_no_order_of_events_breaks_the_server(
    server: RunningServer, caplog: pytest.LogCaptureFixture, events: list[Any]
) -> None:
    async def conversation(client: Client) -> None:
        for event in [*events, start(max_seconds=1)]:  # a last start, so that there is an end
            await client.say(event)
        await client.say({"type": "session.stop"})
        assert await closed(client) in (1000, 1008)
        assert all(event["type"] in KNOWN and event.get("code") != "failed" for event in client.events)

    talk(server, conversation)
    _wait(lambda: httpx.get(f"{server.url}/healthz").json()["live"] == 0)
    assert not caplog.records


KNOWN = {"error", "session.started", "video.chunk_metadata", "session.interaction.applied", "session.done"}


def test_the_api_keeps_what_its_description_says(server: RunningServer) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def fuzz(case: Any) -> None:
            answer = case.call(timeout=30)
            assert answer.status_code < 500, answer.text
            case.validate_response(answer, excluded_checks=[positive_data_acceptance])  # a prompt has words to keep to

        fuzz()
        tried += 1
    assert tried >= 8
    for job in json.loads(httpx.get(f"{server.url}/v1/videos", params={"limit": 100}).text)["data"]:
        httpx.delete(f"{server.url}/v1/videos/{job['id']}")

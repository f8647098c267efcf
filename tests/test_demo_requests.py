"""Requests to the web page over HTTP, valid and invalid."""

import io
import json
import math
import random
import re
import time
from itertools import pairwise

import numpy as np
import pytest
from demo_server import DRAWING, FILLING, VALID, ask, changed, events, progress, send
from demo_server import server as server
from PIL import Image

from ddpm.demo.inputs import BRUSH, DEFAULT, SAMPLE, TEST, UPLOAD

pytestmark = pytest.mark.slow
JOBS = {**VALID, "show": FILLING[:4]}
JSON = {"content-type": "application/json"}


@pytest.fixture
def web(server):
    httpx = pytest.importorskip("httpx")
    with httpx.Client(timeout=60, trust_env=False) as client:
        yield client


def files(found):
    """Addresses of the files among the values of a job."""
    return [value["url"] for value in found if isinstance(value, dict) and "url" in value]


def test_page_lists_endpoints_and_links_nothing_elsewhere(server, web):
    assert set(web.get(f"{server.url}/gradio_api/info").json()["named_endpoints"]) == {f"/{name}" for name in JOBS}
    page = web.get(server.url).text
    linked = re.findall(r"<(?:script|link)[^>]+(?:src|href)=[\"'](https?://[^\"']+)", page)
    assert [address for address in linked if not address.startswith(server.url)] == []


@pytest.mark.parametrize("name", JOBS)
def test_endpoint_runs_its_job(server, web, name):
    kind, found = ask(web, server, name, list(JOBS[name]))
    assert kind == "complete", found
    for address in files(found):
        assert web.get(address).status_code == 200
    assert len(files(found)) == {"draw": 4, "inpaint": 1, "interpolate": 2, "compare": 2, "show": 0}[name]


def test_downloads_are_the_generated_images(server, web):
    _, found = ask(web, server, "draw", list(DRAWING))
    picture, png, npz, gif = (web.get(address).content for address in files(found))
    with np.load(io.BytesIO(npz)) as arrays:
        assert arrays["arr_0"].shape == (4, 8, 8, 1)
        assert arrays["arr_1"].tolist() == [0, 1, 2, 3]
    assert picture == png
    assert Image.open(io.BytesIO(png)).format == "PNG"
    assert Image.open(io.BytesIO(gif)).format == "GIF"


def test_progress_is_sent_while_a_job_runs(server, web):
    number = send(web, server, "draw", list(changed(DRAWING, _1=16, _3=600)))
    sent = [found[0] for kind, found in events(web, server, "draw", number) if kind == "generating" and found[0]]
    shown = [status for status in sent if " of " in status]
    counts = [progress(status)[0] for status in shown]
    assert len(counts) >= 3
    assert all(before < after for before, after in pairwise(counts))
    pictures = [re.findall(r"base64,([^\"]+)", status) for status in shown]
    assert all(len(pair) == 2 for pair in pictures)
    assert len({pair[0] for pair in pictures}) >= 3


@pytest.mark.parametrize("path", ["/etc/passwd", "params.yaml", "models/ddpm/config.json", "../../../etc/passwd", "log"])
def test_files_of_the_server_cannot_be_read(server, web, path):
    for address in (path, str(server.log.parent / path)):
        assert web.get(f"{server.url}/gradio_api/file={address}").status_code in (403, 404)
    for upload in ({"path": path}, {"path": str(server.log.parent / path), "meta": {"_type": "gradio.FileData"}}):
        kind, message = ask(web, server, "show", [UPLOAD, 0, upload, DEFAULT])
        assert kind == "error"
        assert message.startswith(("request: ", "upload: "))


def test_uploads_are_used_up_to_a_limit(server, web):
    picture = io.BytesIO()
    Image.new("L", (16, 16), 255).save(picture, "PNG")
    path = web.post(f"{server.url}/gradio_api/upload", files={"files": ("a.png", picture.getvalue())}).json()[0]
    upload = {"path": path, "meta": {"_type": "gradio.FileData"}}
    kind, found = ask(web, server, "inpaint", list(changed(FILLING, _0=UPLOAD, _2=upload)))
    assert kind == "complete", found
    answer = web.post(f"{server.url}/gradio_api/upload", files={"files": ("b.png", b"0" * (9 << 20))})
    assert answer.status_code == 413


def random_value(rng):
    """Returns a value that the page does not send."""
    path = rng.choice(["/etc/passwd", "params.yaml", "http://127.0.0.1:1/a.png", "", "\0", "models/ddpm/final.safetensors"])
    return rng.choice(
        [
            None, True, False, -1, 0, 0.5, -0.0, 1e30, -1e308, 10**400, math.nan, math.inf, -math.inf, "", " ", "none", "0", "7",
            "x" * 100_000, "1" * 64, "<script>alert(1)</script>", "é漢字🎲\u202e", "\ud800", "\0", "../../etc/passwd", "seed:1",
            [], [[]], [[[[["deep"]]]]], [1] * 1000, {}, {"path": path}, {"path": path, "meta": {"_type": "gradio.FileData"}},
            {"path": [1], "meta": {"_type": "gradio.FileData"}}, {"value": 3}, {"__type__": "update", "value": 1}, path,
            "ddpm", "heun", DEFAULT, BRUSH, TEST, SAMPLE, UPLOAD, "left", rng.random() * 100, rng.randint(-5, 70),
        ]
    )  # fmt: skip


def random_requests(seed, count):
    rng = random.Random(seed)
    for _ in range(count):
        name = rng.choice(list(JOBS))
        values = list(JOBS[name])
        for _ in range(rng.randint(1, 3)):
            values[rng.randrange(len(values))] = random_value(rng)
        if rng.random() < 0.05:
            values = values[: rng.randrange(len(values))]
        yield name, values


def test_random_requests_end_with_a_result_or_one_line(server, web):
    log = len(server.log.read_text())
    ends = {"complete": 0, "error": 0}
    for name, values in random_requests(0, 200):
        kind, found = ask(web, server, name, values)
        ends[kind] += 1
        if kind == "error":
            assert re.match(r"[\w:.]+: .", found), (name, values, found)
            assert "\n" not in found
            assert len(found) < 1000
            assert "Traceback" not in found
    assert ends["error"] > 60
    assert ends["complete"] > 5
    assert "Traceback" not in server.log.read_text()[log:]
    assert ask(web, server, "draw", list(DRAWING))[0] == "complete"


def test_unknown_endpoints_are_refused_without_a_traceback(server, web):
    api = f"{server.url}/gradio_api"
    for path, body in [
        ("call/nothing", {"data": []}), ("call/v2/nothing", {}), ("call/draw", {"data": "x"}), ("run/draw", {"data": [1]}),
        ("queue/join", {"data": [], "fn_index": 9999, "session_hash": "a"}),
        ("component_server", {"data": [1], "component_id": 9999, "fn_name": "__init__", "session_hash": "a"}),
    ]:  # fmt: skip
        answer = web.post(f"{api}/{path}", content=json.dumps(body), headers=JSON)
        assert 400 <= answer.status_code < 500, (path, answer.text)
    assert "Traceback" not in server.log.read_text()


def test_unnamed_handlers_accept_random_values(server, web):
    """Handlers without a name are reached by their number."""
    config, rng = web.get(f"{server.url}/config").json(), random.Random(1)
    unnamed = [d for d in config["dependencies"] if d["backend_fn"] and d["api_name"] not in JOBS]
    assert len(unnamed) >= 4
    for dependency in unnamed:
        for k in range(3):
            session = f"session{dependency['id']}_{k}"
            body = {
                "data": [random_value(rng) for _ in dependency["inputs"]],
                "fn_index": dependency["id"],
                "session_hash": session,
            }
            answer = web.post(f"{server.url}/gradio_api/queue/join", content=json.dumps(body), headers=JSON)
            assert answer.status_code == 200, answer.text
            with web.stream("GET", f"{server.url}/gradio_api/queue/data?session_hash={session}") as stream:
                assert any("process_completed" in line for line in stream.iter_lines())
    assert "Traceback" not in server.log.read_text()


def test_abandoned_job_frees_the_queue(server, web):
    long = list(changed(FILLING, _6=16, _7=1000, _8=20))
    stream = events(web, server, "inpaint", send(web, server, "inpaint", long))
    for kind, found in stream:
        done, total, seconds = progress(found[0]) if kind == "generating" and found[0] else (0, 0, 0)
        if done > 50:
            break
    stream.close()
    start = time.monotonic()
    assert ask(web, server, "draw", list(DRAWING))[0] == "complete"
    assert time.monotonic() - start < 0.3 * seconds / done * (total - done)

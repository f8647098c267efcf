"""The jobs of the web page, and the validation of their values."""

import json
import math
import shutil
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import input_error
from demo_server import COMPARISON, DRAWING, FILLING, MISSING, VALID, WAY, changed, environment, untrained_model
from PIL import Image
from test_params import unbounded

import ddpm
from ddpm.core.files import InputError
from ddpm.data.prepared import open_test
from ddpm.demo import jobs
from ddpm.demo.inputs import BRUSH, DEFAULT, SAMPLE, TEST, UPLOAD, has_test_images, painted_mask
from ddpm.demo.jobs import WithReturnValue, compare, draw, inpaint, interpolate, show
from ddpm.editing.inputs import open_mask
from ddpm.plots.image_grid import FONT_SIZE, GAP, MARGIN, TINT

ARRAY, ALLOCATOR = ValueError("array is too big"), RuntimeError("DefaultCPUAllocator: can't allocate memory")
JOBS = {"draw": draw, "inpaint": inpaint, "interpolate": interpolate, "compare": compare}


@pytest.fixture
def loaded(workspace):
    """loaded(conditioning): an untrained model of T = 50."""

    def make(conditioning="class"):
        untrained_model(conditioning, 50)
        return ddpm.load("models/ddpm", device="cpu", threads=1)

    return make


def run(job, model, folder, values):
    """Returns (all ProgressUpdates, the result of the job)."""
    kept = WithReturnValue(job(model, folder, *values))
    return list(kept), kept.value


def drawn(model, labels, count, seed, **options):
    return model.sample(count, labels, seed=seed, **options)


def gray_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L"))


def shown_image(model, *choice):
    """The image that `show` returns, and its updates."""
    shown = WithReturnValue(show(model, *choice))
    return list(shown), shown.value


def known_pixels(model):
    return open_mask("left", model.shape)[0, 0].bool().numpy()


def test_draw_writes_picture_arrays_and_film(loaded, tmp_path):
    model = loaded()
    updates, made = run(draw, model, tmp_path, DRAWING)
    arrays = np.load(made.files["arrays"])
    assert np.array_equal(arrays["arr_0"], drawn(model, [], 4, 5, sampler="ddim", steps=3))
    assert arrays["arr_1"].tolist() == [0, 1, 2, 3]
    with Image.open(made.files["film"]) as film:
        assert film.n_frames > 1
    with Image.open(made.files["picture"]) as picture:
        assert picture.width >= 4 * 64
    assert [update.done for update in updates][-1] == updates[-1].total == 3
    assert np.array_equal(updates[-1].shown[0][1], arrays["arr_0"])
    assert "4 images by DDIM, 3 network evaluations each" in made.note


@pytest.mark.parametrize(("content", "labels"), [("7", [7, 7, 7, 7]), ("none", None)])
def test_draw_uses_the_requested_class(loaded, tmp_path, content, labels):
    model = loaded()
    _, made = run(draw, model, tmp_path, changed(DRAWING, _0=content))
    arrays = dict(np.load(made.files["arrays"]))
    assert arrays.get("arr_1", np.array(None)).tolist() == labels
    names = ["none"] if labels is None else [str(k) for k in labels]
    assert np.array_equal(arrays["arr_0"], drawn(model, names, 4, 5, sampler="ddim", steps=3))
    if labels is None:
        assert not np.array_equal(arrays["arr_0"], drawn(model, [], 4, 5, sampler="ddim", steps=3))


def test_draw_and_compare_without_guidance_are_unconditional(loaded, tmp_path):
    model = loaded()
    _, made = run(draw, model, tmp_path, changed(DRAWING, _5=0.0))
    arrays = dict(np.load(made.files["arrays"]))
    assert set(arrays) == {"arr_0", "sampler"}
    assert np.array_equal(arrays["arr_0"], drawn(model, ["none"], 4, 5, sampler="ddim", steps=3))
    with Image.open(made.files["picture"]) as picture:
        assert picture.height == 2 * MARGIN + 64 + GAP
    updates, _ = run(compare, model, tmp_path, changed(COMPARISON, _3=0.0))
    assert np.array_equal(updates[-1].shown[0][1], drawn(model, ["none"], 4, 5, sampler="ddim", steps=2))


def test_inpaint_starts_from_the_shown_sample_with_and_without_guidance(loaded, tmp_path):
    model = loaded()
    updates, shown = shown_image(model, SAMPLE, 3, None, DEFAULT)
    assert len(updates) >= 1
    assert np.array_equal(shown, drawn(model, ["3"], 1, 3)[0])
    known, fills = known_pixels(model), {}
    for guidance in (0.0, 1.0):
        updates, _ = run(inpaint, model, tmp_path, changed(FILLING, _0=SAMPLE, _9=guidance))
        fills[guidance] = updates[-1].shown[0][1]
        assert (fills[guidance][:, known] == shown[known]).all()
        options = {"number": 3, "seed": 7, "steps": 4, "eta": 1.0, "resamples": 2, "guidance": guidance}
        assert np.array_equal(fills[guidance], model.inpaint("seed:3", "left", **options))
    assert not np.array_equal(fills[0.0], fills[1.0])


@pytest.mark.parametrize(
    ("lines", "of_columns"), [(["seven", "seven", "two"], [[0, 1, 3, 4], [2, 5]]), (["two", "seven"], [[0, 2, 4], [1, 3, 5]])]
)
def test_draw_groups_repeated_texts_in_columns(loaded, tmp_path, lines, of_columns):
    _, made = run(draw, loaded("text"), tmp_path, changed(DRAWING, _0="\n".join(lines), _1=6))
    arrays, pixels = np.load(made.files["arrays"]), gray_of(made.files["picture"])
    for column, group in enumerate(of_columns):
        assert len({arrays["captions"][k] for k in group}) == 1
        for row, k in enumerate(group):
            y, x = 2 * MARGIN + FONT_SIZE + row * (64 + GAP), MARGIN + column * (64 + GAP)
            assert np.array_equal(pixels[y : y + 64 : 8, x : x + 64 : 8], arrays["arr_0"][k, ..., 0])


def test_draw_puts_long_texts_before_rows(loaded, tmp_path):
    lines = ["a handwritten seven", "a handwritten two", "a handwritten seven"]
    _, made = run(draw, loaded("text"), tmp_path, changed(DRAWING, _0="\n".join(lines), _1=6))
    images, pixels = np.load(made.files["arrays"])["arr_0"][..., 0], gray_of(made.files["picture"])
    left = pixels.shape[1] - MARGIN - 4 * (64 + GAP)
    for row, group in enumerate(([0, 2, 3, 5], [1, 4])):
        for column, k in enumerate(group):
            y, x = MARGIN + row * (64 + GAP), left + column * (64 + GAP)
            assert np.array_equal(pixels[y : y + 64 : 8, x : x + 64 : 8], images[k])


@pytest.mark.parametrize("conditioning", ["none", "text", "text+mask"])
def test_jobs_run_with_every_conditioning(loaded, tmp_path, conditioning):
    model = loaded(conditioning)
    text = "text" in conditioning
    every, own = ("a seven\nthe digit two" if text else "", "handwritten six" if text else "")
    _, made = run(draw, model, tmp_path, changed(DRAWING, _0=every))
    captions = dict(np.load(made.files["arrays"])).get("captions", np.array([])).tolist()
    assert captions == (["a seven", "the digit two"] * 2 if text else [])
    updates, _ = run(inpaint, model, tmp_path, changed(FILLING, _3=own))
    assert updates[-1].done == updates[-1].total
    _, between = run(interpolate, model, tmp_path, changed(WAY, _3=own, _4=""))
    assert between.files["picture"].is_file()
    _, compared = run(compare, model, tmp_path, changed(COMPARISON, _0=every))
    assert compared.files["first"].read_bytes() != compared.files["second"].read_bytes()


def test_inpaint_keeps_known_pixels(loaded, tmp_path):
    model = loaded()
    updates, made = run(inpaint, model, tmp_path, FILLING)
    fills, original, known = updates[-1].shown[0][1], open_test()[1].images[3], known_pixels(model)
    assert fills.shape == (3, 8, 8, 1)
    assert (fills[:, known] == original[known]).all()
    assert len({fill.tobytes() for fill in fills}) == 3
    # In the picture, the pixels to fill are tinted, each enlarged to a tile of 8 x 8.
    with Image.open(made.files["picture"]) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels == TINT).all(-1).sum() == (~known).sum() * 8 * 8


@pytest.mark.parametrize("name", ["left", "border"])
def test_painted_mask_equals_the_named_one(loaded, tmp_path, name):
    model = loaded()
    painted = painted_mask(model.shape, name)
    assert len(painted) == 64
    _, by_name = run(inpaint, model, tmp_path, changed(FILLING, _4=name, _6=1))
    expected = by_name.files["picture"].read_bytes()
    _, by_brush = run(inpaint, model, tmp_path, changed(FILLING, _4=BRUSH, _5=painted, _6=1))
    assert by_brush.files["picture"].read_bytes() == expected


def test_show_resizes_uploads(loaded, tmp_path):
    Image.new("RGB", (40, 30), (200, 200, 200)).save(tmp_path / "a.png")
    _, shown = shown_image(loaded(), UPLOAD, 0, {"path": str(tmp_path / "a.png")}, DEFAULT)
    assert shown.shape == (8, 8, 1)
    assert (shown == 200).all()


def refuses_upload(model, path, match):
    with pytest.raises(InputError, match=match) as refused:
        list(show(model, UPLOAD, 0, {"path": str(path)}, DEFAULT))
    assert str(path.parent) not in str(refused.value)


def test_show_refuses_uploads_without_naming_paths(loaded, tmp_path):
    model = loaded()
    bad, half, large = (tmp_path / f"{name}.png" for name in ("bad", "half", "large"))
    for content in (b"no picture at all", b""):
        bad.write_bytes(content)
        refuses_upload(model, bad, r"^upload: bad.png: cannot be read as a picture")
    Image.effect_noise((64, 64), 50).save(half)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    refuses_upload(model, half, r"half\.png")
    Image.new("1", (5001, 5000)).save(large)
    refuses_upload(model, large, r"^upload: has 25,005,000 pixels")


def test_interpolate_ends_at_both_samples_or_test_images(loaded, tmp_path):
    model = loaded()
    updates, made = run(interpolate, model, tmp_path, WAY)
    images = updates[-1].shown[0][1]
    assert np.array_equal(images, model.interpolate("seed:2", model.open("seed:7", "4"), 5, steps=3))
    assert np.array_equal(images[0], drawn(model, ["2"], 1, 2, sampler="ddim", steps=3)[0])
    assert np.array_equal(images[-1], drawn(model, ["4"], 1, 7, sampler="ddim", steps=3)[0])
    with Image.open(made.files["film"]) as film:
        assert film.n_frames == 2 * len(images) - 2
        assert film.info["loop"] == 0
    updates, made = run(interpolate, model, tmp_path, changed(WAY, _0=TEST, _4=DEFAULT))
    assert made.note.startswith("5 images by DDIM, 3 steps, ")
    assert np.array_equal(updates[-1].shown[0][1][[0, -1]], open_test()[1].images[[2, 7]])


def test_compare_generates_one_seed_by_both_samplers(loaded, tmp_path, monkeypatch):
    model = loaded()
    monkeypatch.setattr(jobs, "REFRESH_SECONDS", math.inf)  # the first and last step of each alone
    updates, made = run(compare, model, tmp_path, COMPARISON)
    (first, left), (second, right) = updates[-1].shown
    assert (first, second) == ("DDIM, 2 steps", "DDPM, 3 steps")
    assert np.array_equal(left, drawn(model, [], 4, 5, sampler="ddim", steps=2))
    assert np.array_equal(right, drawn(model, [], 4, 5, sampler="ddpm", steps=3))
    assert [update.done for update in updates] == [1, 2, 3, 5]
    assert {update.total for update in updates} == {5}
    assert "DDIM, 2 network evaluations each" in made.note.splitlines()[0]
    assert "DDPM, 3 network evaluations each" in made.note.splitlines()[1]


@pytest.mark.parametrize(
    ("job", "places", "key"),
    [
        ("draw", {"_1": 65}, "number"),
        ("draw", {"_1": 2.5}, "number"),
        ("draw", {"_3": 51}, "steps"),
        ("draw", {"_2": "dddim"}, "sampler"),
        ("draw", {"_4": math.nan}, "eta"),
        ("draw", {"_6": True}, "seed"),
        ("draw", {"_0": "eleven"}, "label"),
        ("draw", {"_0": "x" * 1001}, "content"),
        ("draw", {"_0": "7", "_5": 0.0}, "guidance"),
        ("inpaint", {"_0": UPLOAD, "_2": "/etc/passwd"}, "upload"),
        ("inpaint", {"_1": 100_000}, "test:100000"),
        ("inpaint", {"_4": "params.yaml"}, "mask"),
        ("inpaint", {"_4": BRUSH, "_5": "0" * 64}, "mask"),
        ("inpaint", {"_4": BRUSH, "_5": "12" * 32}, "mask"),
        ("interpolate", {"_0": UPLOAD}, "ends"),
        ("interpolate", {"_0": TEST, "_6": "heun"}, "sampler"),
        ("compare", {"_7": -3}, "second_steps"),
    ],
)
def test_bad_value_is_refused_by_its_key_before_sampling(loaded, tmp_path, job, places, key):
    model = loaded()
    model.diffusion.network.register_forward_hook(lambda *_: pytest.fail("the network was evaluated"))
    with pytest.raises(InputError) as refused:
        list(JOBS[job](model, tmp_path, *changed(VALID[job], **places)))
    assert str(refused.value).startswith(f"{key}: ")
    assert "\n" not in str(refused.value)
    assert list(tmp_path.glob("*.png")) == []


def test_every_number_has_bounds():
    assert [path for job in (*JOBS.values(), show) for path in unbounded(job.kind.model_json_schema(), {}, job.__name__)] == []


def test_numbers_may_be_floats(loaded, tmp_path):
    _, made = run(draw, loaded(), tmp_path, (DEFAULT, 4.0, "ddim", 3.0, 0, 1, 5.0))
    assert "3 network evaluations" in made.note


def test_closed_job_stops_evaluating_the_network(loaded, tmp_path, monkeypatch):
    model, evaluations = loaded(), []
    model.diffusion.network.register_forward_hook(lambda *_: evaluations.append(1))
    monkeypatch.setattr(jobs, "REFRESH_SECONDS", 0.0)
    job = draw(model, tmp_path, *changed(DRAWING, _3=50))
    assert [next(job).done, next(job).done] == [1, 2]
    job.close()
    assert len(evaluations) <= 3
    assert list(tmp_path.glob("sample*")) == []


def test_job_ends_after_its_time_limit(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "MAX_SECONDS", -1)
    with pytest.raises(InputError, match=r"^steps: the job took more than "):
        list(draw(loaded(), tmp_path, *DRAWING))


def page_module(name):
    pytest.importorskip("gradio", reason=f"Gradio is not installed: {MISSING}")
    return import_module(f"ddpm.demo.{name}")


def test_message_of_is_short_without_markup():
    message = page_module("widgets").message_of(InputError("label: '" + "<img src=x>" * 1000 + "\ud800'\nsecond; valid: a <= b"))
    assert len(message) < 2000
    assert "<img" not in message
    assert "\n" not in message
    assert message.endswith("valid: a <= b")
    message.encode()


def test_refuse_addresses_refuses_urls_and_accepts_values_of_the_page():
    refuse = page_module("widgets").refuse_addresses
    for path in ("http://127.0.0.1/a.png", " HTTPS://x/y", "file:///etc/passwd", "ftp://x"):
        with pytest.raises(InputError, match="a URL is not downloaded"):
            refuse([1, [{"a": {"path": path}}]])
    for value in (None, "http://a", {"path": "a.png", "url": "http://localhost/a.png"}, {"path": None}, [[]]):
        refuse(value)


# Gradio leaves an event loop open.
OFFERS = """
import ddpm, json, shutil
from ddpm.demo.app import build
model = ddpm.load("models/ddpm", device="cpu")
for prepare in (lambda: None, lambda: shutil.rmtree("data")):
    prepare()
    components = build(model, "").config["components"]
    props = [component["props"] for component in components if component["type"] == "radio"]
    print(json.dumps({found["label"]: [name for name, _ in found["choices"]] for found in props}))
"""


@pytest.mark.slow
def test_page_offers_test_images_if_present(loaded):
    page_module("app")
    loaded()
    command = [sys.executable, "-c", OFFERS]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=True)
    there, gone = map(json.loads, ended.stdout.splitlines())
    assert there == {"Image": [TEST, SAMPLE, UPLOAD], "Between": [SAMPLE, TEST]}
    assert gone == {"Image": [SAMPLE, UPLOAD], "Between": [SAMPLE]}


def test_has_test_images_compares_the_data(loaded):
    model = loaded()
    assert has_test_images(model)
    shutil.move("data", "away")
    assert not has_test_images(model)
    shutil.move("away", "data")
    model.diffusion.data["sha256"] = "of other data"
    assert not has_test_images(model)


def test_interpolate_tab_allows_ddim_only_for_test_images():
    _sampler_of = page_module("tabs")._sampler_of
    assert (_sampler_of(TEST)["value"], _sampler_of(TEST)["interactive"]) == ("ddim", False)
    assert _sampler_of(SAMPLE)["interactive"]
    assert "value" not in _sampler_of(["nonsense"])


@pytest.mark.parametrize(("name", "rest"), [("a", [("no class", "none")]), ("none", [])])
def test_page_offers_classes_as_text_and_no_class_unless_one_is_called_so(loaded, name, rest):
    model = loaded()
    model.class_names[:] = [name, "\x1b[2Jb"]
    choices = page_module("tabs")._content(model, "its own").choices
    assert choices == [("its own", DEFAULT), (name, name), ("\\x1b[2Jb", "\x1b[2Jb"), *rest]


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", None), ("no such host", 7860), ("127.0.0.1", 70_000), ("a" * 99, 1)])
def test_launch_refuses_unusable_addresses(host, port):
    launch = page_module("app").launch
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = port or taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"^{host}:{port}: cannot serve there .*; choose another --host or --port$"):
            launch(None, "models/ddpm", host, port)


def test_page_draws_with_the_steps_of_a_distilled_model(loaded, tmp_path):
    loaded()
    path = Path("models/ddpm/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"distillation": {"steps": 1, "guidance": 1.0}}))
    model = ddpm.load("models/ddpm", device="cpu", threads=1)
    assert page_module("tabs")._steps(model).value == 1
    made = run(draw, model, tmp_path, changed(DRAWING, _3=1))[1]
    assert "DDIM, 1 network evaluation" in made.note
    with input_error("steps", "for which this model was distilled"):
        list(draw(model, tmp_path, *DRAWING))


def test_page_describes_its_model(loaded):
    page = page_module("app").about(loaded(), "models/<b>, checkpoint final")
    assert "<dt>model</dt><dd>models/&lt;b&gt;, checkpoint final</dd>" in page
    assert "<dt>schedule</dt><dd>linear, T = 50</dd>" in page


def test_job_without_memory_is_one_line(loaded, tmp_path, monkeypatch):
    for job, failure in zip(VALID, (MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), ARRAY, ALLOCATOR), strict=True):
        monkeypatch.setattr(jobs, "_track", lambda *_, failure=failure: (_ for _ in ()).throw(failure))
        with input_error("number of images", match="the memory does not suffice"):
            list(JOBS[job](loaded(), tmp_path, *VALID[job]))

"""Animations: decoding a file returns its frames and durations; the layout of the frames."""

import math
import resource
from contextlib import contextmanager
from itertools import chain, pairwise
from types import SimpleNamespace

import av
import numpy as np
import pytest
from conftest import input_error
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from ddpm.core.files import InputError
from ddpm.plots import image_grid, video
from ddpm.plots.video import FILMS, ping_pong, write_film
from ddpm.sampling.trajectory import choose_frames

RED, BLUE = (200, 40, 30), (30, 60, 190)


def plain(*colours, size=(48, 32)):
    """A frame of one colour each."""
    return [Image.new("RGB", size, colour) for colour in colours]


def grays(count, size=(48, 32)):
    return plain(*((value, value, value) for value in np.linspace(20, 230, count).astype(int).tolist()), size=size)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@contextmanager
def files_end_at(size):
    """Limits files of this process to `size` bytes: writing fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def read_gif(path):
    """Frames (F, H, W, 3), and the milliseconds that each is shown."""
    with Image.open(path) as gif:
        assert gif.info["loop"] == 0, "repeats for ever"
        frames, milliseconds = [], []
        for i in range(gif.n_frames):
            gif.seek(i)
            milliseconds.append(gif.info["duration"])
            frames.append(np.asarray(gif.convert("RGB")))
    return np.stack(frames), milliseconds


def read_mp4(path):
    """Frames (F, H, W, 3), and the milliseconds that each is shown."""
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        seconds = float(stream.duration * stream.time_base)
        decoded = list(film.decode(stream))
    starts = [frame.time for frame in decoded] + [seconds]
    milliseconds = [1000 * (after - before) for before, after in pairwise(starts)]
    return np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]), milliseconds


READERS = {".gif": read_gif, ".mp4": read_mp4}

assert READERS.keys() == FILMS.keys()


@pytest.fixture
def decoded(tmp_path):
    """decoded(suffix, frames, fps, hold): (frames, milliseconds) of the film that `write_film` writes."""

    def film(suffix, frames, fps=5, hold=0):
        path = tmp_path / f"film{suffix}"
        write_film(path, frames, fps=fps, hold=hold)
        assert list(tmp_path.iterdir()) == [path]
        return READERS[suffix](path)

    return film


@pytest.mark.parametrize("suffix", FILMS)
class TestFilms:
    @pytest.mark.parametrize(
        ("size", "colours"),
        [((48, 32), (RED, BLUE, (90, 140, 60))), ((47, 33), ((10,) * 3, (130,) * 3, (250,) * 3))],
        ids=["colour", "gray, odd sides"],
    )
    def test_write_film_keeps_frames_in_order(self, decoded, suffix, size, colours):
        frames, milliseconds = decoded(suffix, plain(*colours, size=size), fps=10)
        assert len(frames) == 3
        assert milliseconds == pytest.approx([100] * 3)
        for frame, colour in zip(frames, colours, strict=True):
            # A line of paper beside the last pixels of odd sides shares its colour with them.
            assert np.abs(frame[:32, :46].astype(int) - colour).max() <= 4

    def test_write_film_holds_the_last_frame(self, decoded, suffix):
        frames, milliseconds = decoded(suffix, grays(4), fps=20, hold=1.5)
        assert milliseconds[:3] == pytest.approx([50] * 3)
        assert sum(milliseconds[3:]) == pytest.approx(1500)
        assert np.abs(frames[3:].astype(int) - 230).max() <= 3

    @pytest.mark.parametrize("fps", [0.5, 1000 / 120, 60])
    def test_write_film_has_the_right_mean_speed(self, decoded, suffix, fps):
        milliseconds = decoded(suffix, grays(40), fps)[1]
        assert sum(milliseconds) == pytest.approx(40_000 / fps, abs=10)
        assert max(milliseconds) - min(milliseconds) <= 10.01
        assert min(milliseconds) > 16, "browsers show shorter frames of a GIF for 100 ms"

    def test_write_film_keeps_gray_noise_sharp(self, decoded, suffix):
        (frame,) = video.strip_film(noise(1, 1, 8, 8, 1), 1, 40)
        first = decoded(suffix, [frame, plain((9, 9, 9), size=frame.size)[0]])[0][0, : frame.height, : frame.width]
        assert np.abs(first.astype(int) - np.asarray(frame)).mean() < 1

    def test_write_film_repeats_its_bytes(self, tmp_path, suffix):
        frames = video.strip_film(noise(4, 3, 8, 8, 3), 3, 24)
        paths = [tmp_path / f"a{suffix}", tmp_path / f"b{suffix.upper()}"]
        for path in paths:
            write_film(path, frames, fps=5)
        assert paths[0].read_bytes() == paths[1].read_bytes()

    def test_write_film_converts_any_mode(self, decoded, suffix):
        """Also writes a single frame."""
        (frame,) = video.strip_film(noise(1, 1, 8, 8, 3), 1, 64)
        for mode in ("L", "P", "RGBA"):
            converted = frame.convert(mode)
            (found,), _ = decoded(suffix, [converted])
            expected = np.asarray(converted.convert("RGB")).astype(int)
            assert np.median(np.abs(found[: frame.height, : frame.width] - expected)) <= 2

    def test_write_film_keeps_the_old_file_on_failure(self, tmp_path, suffix, monkeypatch):
        path = tmp_path / f"film{suffix}"
        write_film(path, grays(3), fps=5)
        before = path.read_bytes()

        def fail(*_, **__):
            raise RuntimeError("in the middle")

        # Not at once: something of the new film has been written by then.
        monkeypatch.setattr(av, "VideoFrame", SimpleNamespace(from_image=fail))
        monkeypatch.setattr("PIL.GifImagePlugin._write_frame_data", fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            write_film(path, plain(RED, BLUE), fps=5)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == [path.name]

    def test_write_film_reports_a_full_disk(self, tmp_path, suffix):
        path = tmp_path / f"film{suffix}"
        path.write_bytes(b"old")
        frames = video.strip_film(noise(4, 3, 16, 16, 3), 3, 64)
        with files_end_at(5_000), pytest.raises(InputError, match=rf"film{suffix}: the file would exceed the size limit"):
            write_film(path, frames, fps=5)
        assert path.read_bytes() == b"old"
        assert [file.name for file in tmp_path.iterdir()] == [path.name]

    def test_write_film_refuses_wrong_arguments(self, tmp_path, suffix):
        wrong = [(grays(2), fps, 2, "fps: ") for fps in (0, 60.5, math.nan)]
        wrong += [(grays(2), 5, hold, "hold: ") for hold in (-1, 61, math.nan)]
        wrong += [([], 5, 2, "there are no frames"), ([*grays(2), *grays(1, (40, 30))], 5, 2, "the frames have 2 sizes")]
        path = tmp_path / f"film{suffix}"
        for frames, fps, hold, message in wrong:
            with input_error(str(path), match=f": {message}"):
                write_film(path, frames, fps, hold)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["film.avi", "film"])
def test_write_film_refuses_another_suffix(tmp_path, name):
    with pytest.raises(InputError, match=rf"{name}: the suffix: '.*' is unknown.*\.gif, \.mp4"):
        write_film(tmp_path / name, grays(2), 5)


class TestMP4:
    def test_mp4_pads_odd_sides(self, decoded):
        frame = decoded(".mp4", plain(RED, size=(47, 33)))[0][0]
        assert frame.shape == (34, 48, 3)
        assert (frame[33].mean(axis=0) > np.array(RED)).all()

    def test_mp4_without_a_fitting_encoder_is_refused(self, tmp_path, monkeypatch):
        with pytest.raises(InputError, match=r"film\.mp4: libx264 cannot encode frames of 20000x2 .*; choose \.gif"):
            write_film(tmp_path / "film.mp4", grays(1, (20_000, 2)), 5)
        # Another name that no build knows: what PyAV itself raises then.
        codec = av.Codec
        monkeypatch.setattr(av, "Codec", lambda name, mode: codec(f"{name}_missing", mode))
        with pytest.raises(InputError, match=r"film\.mp4: .*libx264 encoder.*; choose \.gif"):
            write_film(tmp_path / "film.mp4", grays(2), 5)
        assert not list(tmp_path.iterdir())

    def test_mp4_keeps_coloured_pixels_sharp(self, decoded):
        (frame,) = video.strip_film(noise(1, 1, 8, 8, 3), 1, 64)
        difference = np.abs(decoded(".mp4", [frame])[0][0, : frame.height, : frame.width].astype(int) - np.asarray(frame))
        assert (difference > 8).mean() < 0.01

    def test_mp4_starts_with_its_index_and_names_no_machine(self, tmp_path):
        # Small frames are never cut into parts.
        write_film(tmp_path / "film.mp4", grays(3, (640, 480)), 5)
        content = (tmp_path / "film.mp4").read_bytes()
        assert b" threads=1 " in content
        assert b"Lavf" not in content
        assert 0 < content.index(b"moov") < content.index(b"mdat"), "the index stands before the pictures"


class TestGIF:
    def test_gif_drops_frames_above_50_fps(self, decoded):
        frames, milliseconds = decoded(".gif", grays(61), fps=60)
        assert milliseconds == [20] * 51
        assert (frames[0, 0, 0, 0], frames[-1, 0, 0, 0]) == (20, 230)

    def test_gif_keeps_every_gray(self, decoded):
        (frame,) = video.strip_film(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16, 1), 1, 16)
        assert (decoded(".gif", [frame, plain((0, 0, 0), size=frame.size)[0]])[0][0] == np.asarray(frame)).all()

    def test_gif_approximates_colours(self, decoded):
        frames = video.strip_film(noise(2, 16, 8, 8, 3), 4, 16)
        assert np.abs(decoded(".gif", frames)[0].astype(int) - np.stack([np.asarray(frame) for frame in frames])).mean() < 12

    def test_gif_merges_equal_frames(self, decoded):
        assert decoded(".gif", plain(RED, RED, BLUE), fps=10, hold=1)[1] == [200, 1000]

    def test_gif_refuses_too_long_animations(self, tmp_path):
        with pytest.raises(InputError, match=r"film\.gif: a GIF is at most 655 seconds long; .* or \.mp4"):
            write_film(tmp_path / "film.gif", grays(8), fps=0.01)


class TestChoice:
    @given(total=st.integers(1, 2000), count=st.integers(1, 2500))
    def test_choose_frames_has_the_count_and_both_ends_and_is_not_behind_an_even_choice(self, total, count):
        chosen = choose_frames(total, count)
        assert len(chosen) == min(total, count)
        assert all(before < after for before, after in pairwise(chosen))
        assert chosen[-1] == total - 1
        if count > 1:
            assert chosen[0] == 0
            assert (np.array(chosen) >= np.linspace(0, total - 1, len(chosen)) - 0.5).all()

    def test_choose_frames_is_denser_towards_the_end(self):
        gaps = np.diff(choose_frames(1000, 20))
        assert gaps[:5].mean() > 2 * gaps[-5:].mean()

    def test_choose_frames_refuses_less_than_one(self):
        for total, count in ((0, 3), (3, 0), (3, -1)):
            with input_error("frames"):
                choose_frames(total, count)


@given(st.integers(0, 50))
def test_ping_pong_is_a_loop_with_each_end_once(count):
    order = ping_pong(range(count))
    assert sorted(set(order)) == list(range(count))
    assert len(order) == max(count, 2 * count - 2)
    assert order.count(0) == min(count, 1)
    assert order.count(count - 1) == min(count, 1)
    # From the last to the first as well, since it repeats.
    assert all(abs(after - before) == (count > 1) for before, after in pairwise([*order, *order[:1]]))


def tiles(frame, side, background=255):
    """The plain squares of a picture in reading order, by their upper left corners: each (y, x, gray)."""
    array = np.asarray(frame.convert("L")).astype(int)
    found = []
    for y, x in zip(*np.nonzero((array > 60) & (array < background)), strict=True):
        square = array[y : y + side, x : x + side]
        before = array[y - 1, x] == background and array[y, x - 1] == background
        if before and square.shape == (side, side) and (square == square[0, 0]).all():
            found.append((int(y), int(x), int(square[0, 0])))
    return found


def plain_images(*shape, first=100):
    """Images (..., 8, 8, 1) of one gray each: 100, 101, ..."""
    return np.broadcast_to(np.arange(math.prod(shape)).reshape(*shape, 1, 1, 1) + first, (*shape, 8, 8, 1)).astype(np.uint8)


def rows_of(frame, side):
    """The grays of a picture's squares, row by row."""
    rows = {}
    for y, _, gray in tiles(frame, side):
        rows.setdefault(y, []).append(gray)
    return list(rows.values())


class TestFrames:
    def test_denoising_frames_show_x_t_above_x0(self):
        x = plain_images(3, 4)
        frames = video.denoising_frames(x, x + 50, [999, 500, 0], 16)
        assert len({frame.size for frame in frames}) == 1
        assert [rows_of(frame, 16) for frame in frames] == [
            [[100 + 4 * f + k for k in range(4)], [150 + 4 * f + k for k in range(4)]] for f in range(3)
        ]

    @pytest.mark.parametrize(("count", "columns"), [(8, [8]), (9, [5, 4]), (19, [7, 7, 5])])
    def test_denoising_frames_wrap_more_than_8_images(self, count, columns):
        x = plain_images(1, count)
        (frame,) = video.denoising_frames(x, x + 50, [7], 16)
        rows = rows_of(frame, 16)
        assert [len(row) for row in rows[::2]] == [len(row) for row in rows[1::2]] == columns
        assert list(chain(*rows[::2])) == list(range(100, 100 + count))
        assert list(chain(*rows[1::2])) == list(range(150, 150 + count))

    def test_grid_frames_keep_the_order_and_differ_by_their_title_alone(self):
        frames = video.grid_frames(plain_images(2, 7), [10, 0], 3, 16)
        assert [rows_of(frame, 16) for frame in frames] == [
            [[100, 101, 102], [103, 104, 105], [106]], [[107, 108, 109], [110, 111, 112], [113]]
        ]  # fmt: skip
        same = np.repeat(plain_images(1, 2), 3, axis=0)
        frames = [np.asarray(frame).astype(int) for frame in video.grid_frames(same, [1000, 1000, 3.5], 2, 16)]
        assert (frames[0] == frames[1]).all()
        changed = np.flatnonzero((frames[0] != frames[2]).any(axis=(1, 2)))
        assert len(changed) > 5
        assert changed.max() < tiles(Image.fromarray(frames[0].astype(np.uint8)), 16)[0][0]
        with pytest.raises(InputError, match="columns: 0 must be at least 1"):
            video.grid_frames(plain_images(1, 3), [0], 0, 16)

    @pytest.mark.parametrize("captions", [("x_t", "x0"), ("noisy", "a longer caption")])
    def test_denoising_frames_have_captions(self, captions):
        x = plain_images(1, 2)
        (frame,) = video.denoising_frames(x, x, [7], 16, captions)
        (plain,) = video.denoising_frames(x, x, [7], 16, ("", ""))
        assert tiles(frame, 16)[0][1] > tiles(plain, 16)[0][1]
        for y, x, _ in tiles(frame, 16)[::2]:
            assert (np.asarray(frame)[y : y + 16, : x - 1] < 100).any(), "ink before the row"

    def test_training_frames_fit_wide_titles_of_whole_letters(self):
        frames = video.training_frames(plain_images(3, 1), [10_000_000, 5, 1500], 1, 16)
        assert len({frame.size for frame in frames}) == 1
        assert [rows_of(frame, 16) for frame in frames] == [[[100]], [[101]], [[102]]]
        for frame in frames:
            above = np.asarray(frame.convert("L"))[: tiles(frame, 16)[0][0]]
            assert (above < 100).any()
            assert (above[:, :4] > 200).all()
            assert (above[:, -4:] > 200).all(), "the last letter is whole"
        rows = np.flatnonzero((above < 250).any(axis=1))
        _, top, _, bottom = ImageFont.load_default(image_grid.FONT_SIZE).getbbox("step 1,500")
        assert rows.max() - rows.min() + 1 == bottom - top

    def test_frame_titles(self, monkeypatch):
        titles = []
        monkeypatch.setattr(video, "_titled", lambda tables, texts: titles.extend(texts))
        video.training_frames(plain_images(2, 1), [0, 2500], 1, 16)
        video.grid_frames(plain_images(2, 1), [250.0, 0.25], 1, 16)
        assert titles == ["step 0", "step 2,500", "t = 250", "t = 0.25"]

    def test_strip_film_runs_forwards_and_backwards(self):
        frames = video.strip_film(plain_images(4), 1, 16)
        assert [rows_of(frame, 16) for frame in frames] == [[[100]], [[101]], [[102]], [[103]], [[102]], [[101]]]
        frames = video.strip_film(plain_images(2, 3), 2, 16)
        assert [rows_of(frame, 16) for frame in frames] == [[[100, 101], [102]], [[103, 104], [105]]]

    def test_progressive_picture_has_a_row_per_sample_and_separate_captions(self):
        picture = video.progressive_picture(plain_images(4, 3), np.arange(4)[::-1], 48, samples=2)
        assert rows_of(picture, 48) == [[100 + 3 * f + k for f in range(4)] for k in range(2)]
        picture = video.progressive_picture(plain_images(3, 1), [1000, 900, 800], 8)
        lefts = sorted({x for _, x, _ in tiles(picture, 40)})
        above = np.asarray(picture.convert("L"))[: tiles(picture, 40)[0][0]]
        assert len(lefts) == 3
        assert all((above[:, x - image_grid.GAP - 1 : x + 1] == 255).all() for x in lefts)

    @pytest.mark.parametrize("array", [np.zeros((2, 3, 8, 8, 1)), noise(2, 3, 8, 8, 2), noise(2, 3, 8, 8), noise(2, 0, 8, 8, 1)])
    def test_frames_refuse_other_arrays(self, array):
        good = plain_images(2, 3)
        for key, call in {
            "x": lambda: video.denoising_frames(array, good, [1, 0], 16),
            "x0": lambda: video.denoising_frames(good, array, [1, 0], 16),
            "images": lambda: video.training_frames(array, [1, 0], 1, 16),
        }.items():
            with input_error(key, match=r"must be uint8 \(frames, images, height, width, 1 or 3\)"):
                call()


class TestUpscaling:
    def test_smooth_has_the_exact_size_and_never_shrinks(self):
        image = np.zeros((8, 4, 1), np.uint8)
        image[:, 2:] = 200
        smooth = image_grid.smooth(image, 45)
        assert smooth.size == (22, 45)
        assert ((np.asarray(smooth) > 50) & (np.asarray(smooth) < 150)).any()
        assert set(np.unique(np.asarray(image_grid.to_picture(image, 45)))) == {0, 200}
        image = noise(64, 64, 3)
        assert (np.asarray(image_grid.smooth(image, 40)) == image).all()

    def test_every_function_has_both_upscalings(self):
        images = plain_images(2, 3)
        functions = [
            lambda name: video.denoising_frames(images, images, [1, 0], 45, upscaling=name)[0],
            lambda name: video.grid_frames(images, [1, 0], 2, 45, name)[0],
            lambda name: video.training_frames(images, [1, 2], 2, 45, name)[0],
            lambda name: video.strip_film(images, 2, 45, name)[0],
            lambda name: video.progressive_picture(images, [1, 0], 45, upscaling=name),
        ]
        for draw in functions:
            sides = {name: {x for _, x, _ in tiles(draw(name), 45)} for name in image_grid.UPSCALING}
            steps = {name: min(np.diff(sorted(xs))) - image_grid.GAP for name, xs in sides.items()}
            assert steps == {"nearest": 48, "smooth": 45}
            with pytest.raises(InputError, match="upscaling: 'nearer' is unknown; did you mean 'nearest'"):
                draw("nearer")

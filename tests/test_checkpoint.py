"""Which states and snapshots are kept, and when a training starts from step 0."""

import itertools
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_training import SETTINGS

from ddpm.core.files import InputError
from ddpm.core.scratch import fresh_start
from ddpm.networks.power_ema import supported_range
from ddpm.training import checkpoint
from ddpm.training.artifacts import kept_snapshots
from ddpm.training.checkpoint import ResumeState, environment
from ddpm.training.settings import Train

CPU = torch.device("cpu")
WHERE = environment(CPU, torch.float32)


class TestFreshStart:
    @pytest.mark.parametrize(("value", "fresh"), [(None, False), ("", False), ("0", False), ("1", True)])
    def test_environment_variable(self, monkeypatch, value, fresh):
        monkeypatch.delenv("DDPM_FRESH", raising=False)
        if value is not None:
            monkeypatch.setenv("DDPM_FRESH", value)
        assert fresh_start() is fresh

    def test_fresh_start_empties_the_folder(self, tmp_path, capsys):
        state = ResumeState("abc", WHERE, tmp_path)
        state.save({"step": 1})
        (state.folder / "previews").mkdir()
        (state.folder / "previews" / "step_1.png").touch()
        assert state.load(fresh=True) is None
        assert list(state.folder.iterdir()) == []
        assert "DDPM_FRESH is set" in capsys.readouterr().out


class TestState:
    @pytest.mark.parametrize(
        ("damage", "reason"),
        [
            (lambda path: os.truncate(path, 500), ""),
            (lambda path: os.truncate(path, 0), ""),
            (lambda path: torch.save({"fingerprint": "other"}, path), "it belongs to another training"),
            (lambda path: torch.save({"fingerprint": "abc", "format": 1}, path), f"its format is 1, not {checkpoint.FORMAT}"),
        ],
        ids=["truncated", "empty", "foreign", "format"],
    )
    def test_state_that_cannot_be_used_is_renamed_with_a_warning(self, tmp_path, capsys, damage, reason):
        state = ResumeState("abc", WHERE, tmp_path)
        state.save({"step": 1, "weights": torch.zeros(1000)})
        damage(state.path)
        assert state.load() is None
        assert not state.path.exists()
        assert state.folder.with_suffix(".damaged").exists()
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"warning: {state.path}: not usable ({reason}")
        assert line.endswith("); kept as abc.damaged, starting afresh")

    def test_failed_write_keeps_the_old_state(self, tmp_path):
        state = ResumeState("abc", WHERE, tmp_path)
        state.save({"step": 1})
        with pytest.raises(Exception, match="pickle"):
            state.save({"step": lambda: None})
        assert state.load()["step"] == 1
        assert [path.name for path in state.folder.iterdir()] == [checkpoint.STATE]

    def test_resuming_in_another_environment_warns(self, tmp_path, capsys):
        ResumeState("abc", WHERE, tmp_path).save({"step": 3})
        elsewhere = ResumeState("abc", {**WHERE, "device": "NVIDIA H100", "processes": "8"}, tmp_path / "link")
        elsewhere.path = tmp_path / "train" / "abc" / checkpoint.STATE
        assert elsewhere.load()["step"] == 3
        assert "resumes with another device cpu -> NVIDIA H100, processes 1 -> 8; " in capsys.readouterr().err

    def test_partial_files_of_a_killed_writer_are_removed(self, tmp_path):
        state = ResumeState("abc", WHERE, tmp_path)
        state.save({"step": 1})
        (state.folder / ".state.partial123.pt").write_bytes(b"half")
        state._lock.release()
        again = ResumeState("abc", WHERE, tmp_path)
        assert [path.name for path in again.folder.iterdir()] == [checkpoint.STATE]
        assert again.load()["step"] == 1

    def test_state_is_locked_until_it_is_discarded(self, tmp_path):
        """The lock file stays: a process that opened it before the first training ended must not run next to a third."""
        state = ResumeState("abc", WHERE, tmp_path)
        with pytest.raises(InputError, match="another training with the same params, data and code is running"):
            ResumeState("abc", WHERE, tmp_path)
        ResumeState("other", WHERE, tmp_path)
        state.save({"step": 1})
        state.discard()
        assert (tmp_path / "train" / "abc.lock").exists()
        assert not state.folder.exists()
        assert ResumeState("abc", WHERE, tmp_path).load() is None


class TestSnapshots:
    @given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 4_000))
    def test_snapshots_are_due_every_snapshot_every_images(self, steps, batch_size, every):
        settings = Train(**{**SETTINGS, "steps": steps, "batch_size": batch_size, "snapshot_every": every, "snapshots": 3})
        due = [step for step in range(1, steps + 1) if settings.snapshot_due(step)]
        assert due == settings.snapshot_steps(steps)
        assert due[-1] == steps
        passed = {(step * batch_size) // every for step in range(1, steps + 1)} - {0}
        assert {(step * batch_size) // every for step in due} - {0} == passed

    def test_no_snapshots_are_due_if_none_are_kept(self):
        settings = Train(**{**SETTINGS, "snapshots": 0})
        assert settings.snapshot_steps(settings.steps) == []
        assert not settings.snapshot_due(settings.steps)

    @given(st.integers(1, 400), st.integers(1, 30))
    def test_kept_snapshots_respects_the_limit_and_keeps_the_last(self, total, count):
        due = list(range(10, 10 * total + 1, 10))
        kept = kept_snapshots(due, count)
        assert len(kept) == min(total, count)
        assert kept[-1] == due[-1]
        assert kept == sorted(set(kept) & set(due))

    @given(st.integers(1, 200), st.integers(1, 20))
    def test_kept_snapshots_never_needs_a_dropped_one(self, total, count):
        """So files may be removed during the training."""
        due = list(range(1, total + 1))
        histories = [set(kept_snapshots(due[:n], count)) for n in range(1, total + 1)]
        for n, (before, after) in enumerate(itertools.pairwise(histories), 1):
            assert after <= before | {due[n]}

    @pytest.mark.parametrize("total", [20, 50, 64, 100, 1000])
    def test_kept_snapshots_support_short_and_long_emas(self, total):
        narrowest, widest = supported_range(kept_snapshots([100 * k for k in range(1, total + 1)], 20))
        assert narrowest <= 0.02
        assert widest >= 0.24

    def test_kept_snapshots_get_denser_towards_the_end(self):
        kept = kept_snapshots(list(range(1, 1001)), 20)
        gaps = [b - a for a, b in itertools.pairwise(kept)]
        assert sum(gaps[-5:]) < sum(gaps[:5]) / 2

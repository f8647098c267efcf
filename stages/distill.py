"""models/ddpm -> models/distilled: distills the model into students of few steps, and scores them beside their teacher.

Frozen in dvc.yaml."""

import shutil

from ddpm.core import params, processes
from ddpm.core.device import Precision, Runtime, compiled, limit_threads
from ddpm.core.files import counted, read_json
from ddpm.core.paths import DISTILLED_DIR, MODEL_DIR
from ddpm.core.scratch import fresh_start
from ddpm.core.seconds import elapsed
from ddpm.core.stage import run_stage
from ddpm.data.loader import Batches
from ddpm.distillation.distill import check_teacher, distill, write_student
from ddpm.distillation.score import score_students
from ddpm.distillation.settings import Distill
from ddpm.evaluation.run import open_run
from ddpm.networks.checkpoints import CONFIG
from ddpm.report.distill import write_distill
from ddpm.training.checkpoint import ResumeState, environment, fingerprint, stage_inputs
from ddpm.training.trainer import Trainer


def print_row(row: dict) -> None:
    if processes.is_main_process():
        print(
            f"{row['method']}, {counted(row['nfe'], 'evaluation')}: FID {row['fid']:.4f}, recall {row['recall']:.3f}", flush=True
        )


def main() -> None:
    p = params.load(dataset=str, seed=params.Seed, prepare_data=dict, distill=Distill, runtime=Runtime)
    run, s = open_run(p, p.distill.checkpoint), p.distill
    check_teacher(run.model, s)
    config = read_json(MODEL_DIR / CONFIG, "train")
    training = s.train_settings(config["training"])
    training.check_share(processes.world_size())
    limit_threads(run.model.network, run.data.shape, s.batch_size)
    precision, train = Precision(p.runtime, run.device), run.data.train
    batches = Batches(train.images, train.labels, p.seed, run.device, training.flip, p.runtime.preload)

    def make_model(trainer: Trainer) -> None:
        wrapped = processes.wrap_ddp(trainer.network, run.device)
        trainer.model = compiled(wrapped, p.runtime.compile, run.device, trainer.probe)

    saved = None
    if processes.is_main_process():
        saved = ResumeState(fingerprint(stage_inputs("distill")), environment(run.device, precision.dtype))
        shutil.rmtree(DISTILLED_DIR, ignore_errors=True)
    students = []
    for student in distill(
        run.model, batches, run.data.test, s, training, p.seed, saved, fresh_start(), make_model,
        autocast=precision.autocast, scaler=precision.scaler,
    ):  # fmt: skip
        students.append(student)
        if saved:
            write_student(DISTILLED_DIR / str(student.steps), student, config, s, training, p.seed)
    took, evaluator = elapsed(), run.evaluator(s.samples)
    rows, grids = score_students(run.model, students, evaluator, s.samples, p.seed, precision.autocast, print_row)
    if saved:
        write_distill(rows, grids, students, evaluator.fid_floor, evaluator.sizes.n, took, s, p.dataset, run.weights)
        saved.discard()


if __name__ == "__main__":
    # dvc.yaml freezes it, so it is no part of a run.
    run_stage(main, parallel="stages.distill", memory="distill.batch_size", communicates=True, timed=False)

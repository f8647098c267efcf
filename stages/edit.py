"""models/ddpm and test images -> samples/edits.npz: inpainting, editing, interpolation, and the film of the training."""

from ddpm.core import params, processes
from ddpm.core.device import Runtime, setup
from ddpm.core.files import write_json, write_npz
from ddpm.core.paths import EDITS_FILE, MODEL_DIR
from ddpm.core.stage import run_stage
from ddpm.core.weights import weights_id
from ddpm.data.prepared import open_prepared
from ddpm.editing.score import score_inpainting
from ddpm.editing.stage_images import Edit, make_edits
from ddpm.features.classifier import load_classifier
from ddpm.networks.checkpoints import check_data
from ddpm.sampling.model import load


def main() -> None:
    p = params.load(dataset=str, seed=params.Seed, prepare_data=dict, edit=Edit, runtime=Runtime)
    device = setup(p.runtime)
    data = open_prepared(p.dataset, p.prepare_data)
    classifier, _ = load_classifier(data, device)
    model = load(p.edit.checkpoint, device)
    check_data(model.data, data.identity())
    settings = p.edit.fitted(model)
    jumps = settings.steps, settings.repaint_jump_length, settings.repaint_resamples
    scores = {"model": weights_id(p.edit.checkpoint, model.network)}
    scores["inpaint"] = score_inpainting(model, data, classifier, settings.scored_images, *jumps, p.seed)
    arrays = make_edits(model, data.test, MODEL_DIR, settings, p.seed)
    if not processes.is_main_process():
        return
    write_npz(EDITS_FILE, arrays)
    write_json("reports/edit/metrics.json", scores)
    for name, score in scores["inpaint"].items():
        if isinstance(score, dict):
            accuracy = f"accuracy {score['accuracy']:.1%}, " if "accuracy" in score else ""
            print(f"inpainting, {name}: {accuracy}PSNR {score['psnr']:.1f} dB")


if __name__ == "__main__":
    run_stage(main, parallel="stages.edit", memory="edit.scored_images, edit.images")

"""What a teacher knows at each noise level: its one-step estimates of held-out clips, measured as clips.

    python benchmarks/teacher_estimates.py --model runs/model
    python benchmarks/teacher_estimates.py --model runs/model --image --levels 1 .95 .9 --frames 17

The true clip is noised to t and the teacher's x0 = x_t - t v is decoded and measured against the truth. With
``--image`` the first frame is given clean, as ``teacher.clean_image`` trains it: at t = 1 that says what an
image and a caption tell it alone. ``mse`` is of the latents, which have unit variance.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from aad1.data.media import video_to_tensor
from aad1.evaluation.models import decoded
from aad1.evaluation.world import evaluate, protocol_clips
from aad1.flow import add_noise, with_clean_image, x0_from_v
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import open_folder
from aad1.models.vae import encode_video
from aad1.runtime import keep_freed_memory
from aad1.training.randomness import generator_for
from aad1.workspace import model_path

SHOWN = ("presence", "id_ok", "rho", "law_residual", "position_error", "heading", "speed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a Wan folder, or the name of a bundled one")
    parser.add_argument("--levels", nargs="*", type=float, default=[0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3])
    parser.add_argument("--image", action="store_true", help="the first frame is given clean")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_grad_enabled(False)
    folder = open_folder(model_path(arguments.model))
    teacher, vae, text = folder.transformer(CausalWanTransformer3DModel).eval(), folder.vae(), folder.text()
    clips = list(protocol_clips(arguments.frames, arguments.clips))
    latents = torch.cat([encode_video(vae, video_to_tensor(clip.frames[None])) for clip in clips])
    eps = torch.randn(latents.shape, generator=generator_for(arguments.seed, "estimates"))
    captions = text.embed([clip.caption for clip in clips])
    print("| t | track | mse |", " | ".join(SHOWN), "|")
    print("|---" * (len(SHOWN) + 3) + "|")
    for level in arguments.levels:
        estimated = estimate(teacher, latents, eps, captions, level, arguments.image)
        row = evaluate(str(level), decoded(vae, estimated, clips, image_given=arguments.image), with_flow=False)
        for track in ("determined", "free"):
            chosen = torch.tensor([clip.truth.scene.track == track for clip in clips])
            error = (estimated - latents)[chosen, :, 1:].square().mean().item()
            values = [row.measures[track][name] for name in SHOWN]
            cells = [f"{level:g}", track, f"{error:.3f}", *(f"{v.mean:.2f}" if v else "" for v in values)]
            print("|", " | ".join(cells), "|", flush=True)


def estimate(
    teacher: CausalWanTransformer3DModel, x0: Tensor, eps: Tensor, text: Tensor, level: float, image: bool
) -> Tensor:
    """The clean clips the teacher sees in these noised ones, all frames at one level but for a clean image."""
    t = torch.full((x0.shape[0], x0.shape[2]), level)
    t = with_clean_image(t) if image else t
    noised = add_noise(x0, eps, t)
    return x0_from_v(noised, teacher(noised, t, text), t)


if __name__ == "__main__":
    main()

"""What other engines load, by their class, key and weight names: SGLang-Diffusion, FastVideo, and Self Forcing's code.

The first two read a folder in diffusers' layout whose pipeline is ``WanCausalDMDPipeline``, whose transformer is
``CausalWanTransformer3DModel`` with diffusers' weight names (their ``param_names_mapping`` renames them on the way
in) and whose scheduler is ``SelfForcingFlowMatchScheduler``. Facts from sgl-project/sglang
(python/sglang/multimodal_gen: configs/models/dits/wanvideo.py 00bedbb, runtime/models/dits/causal_wanvideo.py 0344e3d,
runtime/models/schedulers/scheduling_self_forcing_flow_match.py 0923845, configs/pipeline_configs/wan.py 055e950) and
hao-ai-lab/FastVideo (fastvideo/configs/models/dits/wanvideo.py 026ee8d, fastvideo/configs/models/base.py 184e7f7,
fastvideo/pipelines/basic/wan/wan_causal_dmd_pipeline.py 03ac811).

Their window counts the sink, ours does not: ``local_attn_size`` here is sink + window, and ``window_counts_sink``
tells us so when the folder comes back.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aad1.exporting.card import write_card
from aad1.exporting.source import COMPONENTS, TRANSFORMER, ExportSource
from aad1.flow import TIMESTEP_SCALE
from aad1.models.checkpoint_io import CAUSAL_PIPELINE, INDEX, SINK_COUNTED, read_json, write_json
from aad1.models.released import save_self_forcing

SCHEDULER = "SelfForcingFlowMatchScheduler"
SCHEDULE = {
    "_class_name": SCHEDULER,
    "num_inference_steps": 1000,
    "num_train_timesteps": 1000,
    "shift": 5.0,
    "sigma_max": 1.0,
    "sigma_min": 0.0,
    "extra_one_step": True,
    "inverse_timesteps": False,
    "reverse_sigmas": False,
}
GENERATOR = "generator.pt"


@dataclass(frozen=True)
class Engine:
    """A serving engine. title: its own name; longest_chunk: latent frames of a chunk that it asserts at most."""

    name: str
    title: str
    longest_chunk: int


SGLANG = Engine("sglang", "SGLang-Diffusion", longest_chunk=3)
FASTVIDEO = Engine("fastvideo", "FastVideo", longest_chunk=3)


def write_sglang(source: ExportSource, fresh: Path) -> None:
    """Write the folder that SGLang-Diffusion serves into ``fresh``; warns of what it would refuse of this student."""
    _write(source, fresh, SGLANG)


def write_fastvideo(source: ExportSource, fresh: Path) -> None:
    """Write the folder that FastVideo serves into ``fresh``; warns of what it would refuse of this student."""
    _write(source, fresh, FASTVIDEO)


def write_self_forcing(source: ExportSource, fresh: Path) -> None:
    """Write ``generator.pt`` into ``fresh``, as Self Forcing, CausVid and their descendants load it."""
    config = source.skeleton.config
    save_self_forcing(source.load_generator(), fresh / GENERATOR)
    facts = [
        f"latent frames a chunk: {config.num_frames_per_block}; sink: {config.sink_size}; window, own chunk included "
        f"and the sink apart: {config.local_attn_size}",
        f"noise levels of a chunk's passes: {', '.join(f'{level:g}' for level in config.passes)}",
        "the picture enters as a clean latent frame, a chunk of its own before the first",
    ]
    use = f"`{GENERATOR}` has the entries `generator` and `generator_ema`, the same weights, by Wan's own names:"
    back = "Its file says nothing of these, so the way back into a folder has to:"
    write_card(source, fresh, "self-forcing", [_listed(use, facts), f"{back}\n\n```\n{_way_back(config)}\n```"])


def _way_back(config: Any) -> str:
    """The command that makes a student's folder of the file again."""
    options = {
        "head_dim": [config.attention_head_dim],
        "num_frames_per_block": [config.num_frames_per_block],
        "local_attn_size": [config.local_attn_size],
        "sink_size": [config.sink_size],
        "passes": config.passes,
        "size": config.size or [],
    }
    words = [f"--{name} {' '.join(map(str, values))}" for name, values in options.items() if values]
    return " ".join([f"aad1 convert {GENERATOR} --base WAN_FOLDER -o student", *words])


def _write(source: ExportSource, fresh: Path, engine: Engine) -> None:
    source.copy_student(fresh / TRANSFORMER)
    for part in COMPONENTS:
        source.copy_part(part, fresh / part)
    (fresh / "scheduler").mkdir()
    write_json(fresh / "scheduler" / "scheduler_config.json", SCHEDULE)
    write_json(fresh / INDEX, _index(source))
    config_file = fresh / TRANSFORMER / "config.json"
    config = read_json(config_file)
    write_json(config_file, {**config, **_span_keys(config)})
    refused = _refused(source.skeleton.config, engine)
    write_card(source, fresh, engine.name, _notes(source.skeleton.config, engine, refused))
    for line in refused:
        warnings.warn(line, stacklevel=2)


def _index(source: ExportSource) -> dict[str, Any]:
    own = read_json(source.folder.path / INDEX)
    return {
        "_class_name": CAUSAL_PIPELINE,
        "_diffusers_version": version("diffusers"),
        "scheduler": ["diffusers", SCHEDULER],
        "text_encoder": own["text_encoder"],
        "tokenizer": own["tokenizer"],
        TRANSFORMER: ["diffusers", "CausalWanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }


def _span_keys(config: dict[str, Any]) -> dict[str, Any]:
    """What a chunk sees, counted as the engines count it; the unlimited window is -1 on both sides."""
    window, sink = config["local_attn_size"], config["sink_size"]
    if window < 0:
        return {}
    return {"local_attn_size": window + sink, "sliding_window_num_frames": window + sink, SINK_COUNTED: True}


def _refused(config: Any, engine: Engine) -> list[str]:
    """What the engine's code does not take, as it stands at the commits named above."""
    found = []
    if config.num_frames_per_block > engine.longest_chunk:
        found.append(
            f"{engine.title} asserts at most {engine.longest_chunk} latent frames a chunk, this student makes "
            f"{config.num_frames_per_block} (num_frames_per_block): it must be raised there"
        )
    return found


def _notes(config: Any, engine: Engine, refused: Sequence[str]) -> list[str]:
    steps = [round(level * TIMESTEP_SCALE) for level in config.passes]
    facts = [
        f"the passes of a chunk are the engine's option: `dmd_denoising_steps` {steps}, `warp_denoising_step` off",
        "the picture enters as a clean latent frame before the first chunk (`image_latent`, a warm-up of the cache at "
        "t = 0); a text-to-video request of the engine does not offer that",
        "the engine keeps keys rotated at their absolute positions, the student counts positions inside what a chunk "
        "sees: the two agree until the window first slides",
        *refused,
    ]
    use = f"For {engine.title}: pipeline `{CAUSAL_PIPELINE}`, weights by diffusers' names. Before you serve it:"
    return [_listed(use, facts)]


def _listed(words: str, facts: Sequence[str]) -> str:
    return "\n".join([f"{words}\n", *(f"- {fact}" for fact in facts)])

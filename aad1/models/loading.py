"""Loading a diffusers or transformers model straight into the wanted type and place.

The libraries' own ``from_pretrained`` keeps a file mapped while anything in it is used, so that a cast holds the whole
checkpoint besides the model. Here the model is built without weights, and each tensor is read, cast, moved and let go:
the host holds the model in its type and one file's worth of pages, and only the pages when the model goes to a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from aad1.errors import UserError
from aad1.models.weights import Reader, Stored, tensors_of


def whole_model(
    cls: Any,
    path: Path,
    dtype: torch.dtype,
    device: str,
    prepare: Callable[[nn.Module], None] = lambda model: None,
    **config: Any,
) -> Any:
    """Load a model for evaluation; ``config`` overrides entries of its config.json.

    Weights of ``dtype`` already, on a CPU, stay views of their file until they are written to. ``prepare`` is called
    with the model before it has weights: what it splits over processes is read in parts.

    Raises:
        UserError: when the files lack weights that the config asks for, or the reverse, or cannot be read.
    """
    with quietly(), reading(path):
        model = _without_weights(cls, path, config)
        stored = tensors_of(path)
        refuse_other_weights(model, stored)
        prepare(model)
        model.load_state_dict(_read(model, stored, dtype, device), assign=True, strict=False)
        if not isinstance(model, ModelMixin):
            model.tie_weights()
        return model.to(device).eval()


def _without_weights(cls: Any, path: Path, config: Mapping[str, Any]) -> Any:
    """The model with its parameters on the meta device; buffers such as rotary tables are made as ever."""

    def weightless(_: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        return parameter if parameter is None else nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(weightless)  # type: ignore[arg-type]
    try:
        if issubclass(cls, ModelMixin):
            return cls.from_config(cls.load_config(path), **config)
        return cls(cls.config_class.from_pretrained(path, local_files_only=True, **config))
    finally:
        hook.remove()


def refuse_other_weights(model: Any, stored: Mapping[str, Stored]) -> None:
    """Raise ValueError where stored weights are not those of the model, by name and shape."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    for what, names in (("missing", wanted.keys() - stored.keys()), ("unexpected", stored.keys() - wanted.keys())):
        if names := names - tied:
            raise ValueError(f"its config.json does not fit its weights: {len(names)} {what}, such as {min(names)}")
    for name, one in stored.items():
        if one.shape != wanted[name]:
            raise ValueError(f"'{name}' has shape {list(one.shape)}, but its config.json wants {list(wanted[name])}")


def _read(model: Any, stored: Mapping[str, Stored], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    kept = _kept_in_float32(model, dtype)
    read, found, parameters = Reader(), {}, dict(model.named_parameters())
    for name, one in stored.items():
        wanted = torch.float32 if kept & set(name.split(".")) else dtype
        wanted = wanted if one.dtype.is_floating_point else one.dtype
        cast = one.dtype != dtype  # a view among copies would keep all of its file
        whole = read(one).to(device, wanted, copy=cast)
        place = parameters.get(name)
        found[name] = own_part(whole, place) if isinstance(place, DTensor) else whole
    return found


def own_part(whole: Tensor, place: DTensor) -> Tensor:
    """This process's part of a tensor that all processes have read, split as ``place`` is."""
    part = distribute_tensor(whole, place.device_mesh, place.placements, src_data_rank=None)
    local = part.to_local().clone()  # not a view, which would keep the whole
    return DTensor.from_local(local, part.device_mesh, part.placements, shape=part.shape, stride=part.stride())


def _kept_in_float32(model: Any, dtype: torch.dtype) -> set[str]:
    """Names of modules that the library does not run in half precision; transformers has some for float16 alone."""
    kept = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if isinstance(model, ModelMixin) or dtype == torch.float16:
        kept |= set(model._keep_in_fp32_modules or ())
    return kept


@contextmanager
def reading(part: Path) -> Iterator[None]:
    """Damaged or foreign weights become a UserError; the libraries raise a dozen kinds of errors for them."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):  # said already, or nothing is wrong with the weights
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot read '{part}' ({reason}); download or export it again") from error


@contextmanager
def quietly() -> Iterator[None]:
    """Load and save without the libraries' progress bars and warnings, and leave their settings as they were."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    spoken = diffusers.utils.logging.get_verbosity()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()  # what it warns of when loading is refused
    try:
        yield
    finally:
        diffusers.utils.logging.set_verbosity(spoken)
        if shown:
            transformers.utils.logging.enable_progress_bar()

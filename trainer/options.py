"""Options that several commands share, and one for each field of ``FitConfig``."""

import inspect
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.model.config import Fusion
from audiofuse.trainer.training.config import FitConfig

Sources = Annotated[
    list[str],
    typer.Argument(
        help="Where sounds with captions are: a manifest (*.jsonl), a ClothoV2, AudioCaps or "
        "WavCaps folder, or an audiofuse bucket, a folder or s3://name, whose sidecars have them."
    ),
]
Cache = Annotated[
    Path | None, typer.Option(help="Folder for decoded audio; default: under AUDIOFUSE_HOME.")
]
ValShare = Annotated[
    float | None,
    typer.Option(
        min=0.01, max=0.9, help="Share of the sounds without a split to judge by; 0.1 if not given."
    ),
]

UNUSED: dict[Fusion, tuple[str, ...]] = {  # what changes nothing for such an encoder
    "audio": ("metadata", "drop_metadata"),
    "metadata": ("crop_s", "mask_bands", "mask_frames", "jitter_bands", "audio_rate"),
}

Command = Callable[..., None]


def refuse_unused(config: FitConfig, fusion: Fusion) -> None:
    """Raise ``ConfigurationError`` for options that an encoder of such a fusion has no use for."""
    defaults = FitConfig()
    if config.teacher_weight != defaults.teacher_weight and not config.teacher:
        raise ConfigurationError("--teacher-weight: there is no --teacher: leave it out")
    unused = [
        f"--{name.replace('_', '-')}"
        for name in UNUSED.get(fusion, ())
        if getattr(config, name) != getattr(defaults, name)
    ]
    if unused:
        lacks = "reads no metadata" if fusion == "audio" else "hears no sound"
        raise ConfigurationError(f"{', '.join(unused)}: the encoder {lacks}: leave it out")


def fit_options(
    defaults: FitConfig, without: frozenset[str] = frozenset()
) -> Callable[[Command], Command]:
    """Give a command an option for each field of ``FitConfig``, in place of its ``config``."""
    return partial(_with_options, defaults=defaults, without=without)


def _with_options(command: Command, defaults: FitConfig, without: frozenset[str]) -> Command:
    fields = {name: f for name, f in FitConfig.model_fields.items() if name not in without}

    @wraps(command)
    def run(**given: Any) -> None:
        asked = {name: given.pop(name) for name in fields}
        command(**given, config=FitConfig(**(defaults.model_dump() | asked)))

    own = [p for p in inspect.signature(command, eval_str=True).parameters.values()
           if p.name != "config"]  # fmt: skip
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=getattr(defaults, name),
            annotation=Annotated[field.annotation, typer.Option(help=field.description)],
        )
        for name, field in fields.items()
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *options)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run

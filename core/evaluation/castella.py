"""CASTELLA as it is released (arXiv 2511.15131): captions of moments with their times.

``json/en/SPLIT.json`` is a list of recordings: ``yid``, its length and sentence as a whole, and
``moments``, each a ``local_caption`` with the ``timestamps`` (seconds) at which it is heard. The
sounds are ``YID.wav``, as its own script for downloading names them.
"""

from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from audiofuse.core.errors import ConfigurationError

CASTELLA_SUFFIX = ".json"


class _Moment(BaseModel):
    local_caption: str
    timestamps: list[tuple[float, float]]


class _Recording(BaseModel):
    yid: str
    moments: list[_Moment]


_RECORDINGS = TypeAdapter(list[_Recording])


def read_castella(content: bytes, path: Path) -> list[tuple[str, str, list[tuple[float, float]]]]:
    """Return each caption of a moment: its recording's file, the caption, and when it is heard.

    The sentence for the whole recording is left out: it tells what is to be found, and is no
    metadata. ``ConfigurationError`` says where a file is not as released.
    """
    try:
        recordings = _RECORDINGS.validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(
            f'{path} is not as CASTELLA is released: "{where}": {first["msg"]}'
        ) from error
    return [
        (f"{recording.yid}.wav", moment.local_caption, moment.timestamps)
        for recording in recordings
        for moment in recording.moments
        if moment.timestamps
    ]

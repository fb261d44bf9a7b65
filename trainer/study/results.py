"""What a training leaves: a bundle with its card and metrics, and a page to look at."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.evaluation.clips import Clip
from audiofuse.trainer.data.corpus import Corpus
from audiofuse.trainer.data.gallery import encode_cached
from audiofuse.trainer.study.assessment import Assessment, System, assess
from audiofuse.trainer.study.report import Story, write_report
from audiofuse.trainer.training.config import FitConfig
from audiofuse.trainer.training.fit import LOG

METRICS, REPORT = "assessment.json", "report.html"


def compare_on(
    corpus: Corpus, encoders: Mapping[str, Encoder], device: torch.device
) -> dict[str, System]:
    """Embed the clips that none was trained on, by every encoder, which move to ``device``."""
    return {name: _system(encoder, corpus, device) for name, encoder in encoders.items()}


def _system(encoder: Encoder, corpus: Corpus, device: torch.device) -> System:
    encoder.model.to(device)
    return System(encoder, encode_cached(encoder, corpus.gallery, corpus.entries))


def write_results(
    run: Path, title: str, systems: Mapping[str, System], corpus: Corpus
) -> Assessment:
    """Assess the first system against the others; write its figures and its page into the run."""
    assessment = assess(systems, corpus.queries)
    (run / METRICS).write_text(json.dumps(assessment.as_dict(), indent=2) + "\n")
    facts = {
        "trained on": f"{len(corpus.train)} sounds",
        "judged by": f"{len(corpus.queries)} sentences for {assessment.clips} other sounds",
        "folder": str(run),
    }
    shown = next(iter(systems.values()))
    log = run / LOG
    story = Story(title, assessment, shown, log if log.exists() else None, facts)
    write_report(run / REPORT, story)
    return assessment


def training_card(name: str, clips: Sequence[Clip], config: FitConfig) -> str:
    """Return the model card: what it was trained on, under which licences, and how."""
    collections = Counter(clip.collection or "without a name" for clip in clips)
    licences = Counter(clip.licence or "not stated" for clip in clips)
    options = "\n".join(
        f"- {key}: {value}" for key, value in config.model_dump(mode="json").items()
    )
    return (
        f"# audiofuse encoder {name}\n\n"
        f"Trained on {len(clips)} sounds.\n\n"
        f"Collections: {_counted(collections)}.\n\nLicences: {_counted(licences)}.\n\n"
        f"What was measured is in metrics.json.\n\n## Options\n\n{options}\n"
    )


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{key} ({count})" for key, count in counts.most_common())

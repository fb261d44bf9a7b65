"""Training: it learns, it can be killed and resumed, it refuses what cannot work."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import Clip
from audiofuse.core.items import Metadata
from audiofuse.core.model.config import TINY
from audiofuse.trainer.data.batches import Example, Examples, training_rows
from audiofuse.trainer.data.cache import AudioCache
from audiofuse.trainer.training.augment import AugmentedFrontEnd
from audiofuse.trainer.training.config import FitConfig
from audiofuse.trainer.training.fit import BEST, LOG, Fit, Task

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
NAMES = ("animals/owl.wav", "animals/crow.flac", "home/typing.mp3", "water/bubbles.opus")
CONFIG = FitConfig(
    epochs=3, batch_size=4, chunk=2, learning_rate=1e-3, crop_s=1, mask_bands=8, mask_frames=8
)


PLAIN = CONFIG.model_copy(
    update={"mask_bands": 0, "mask_frames": 0, "jitter_bands": False, "drop_metadata": 0.0,
            "warmup_epochs": 0.0, "learning_rate": 1e-4}
)  # fmt: skip


def _examples(folder: Path, config: FitConfig = CONFIG) -> Examples:
    clips = [
        Clip(
            SOUNDS / name, name, "train", Metadata(title=f"title {name}"),
            captions=(f"the sound of {name}", f"{name} can be heard"),
        )
        for name in NAMES
    ]  # fmt: skip
    entries = AudioCache(folder, 600, workers=1).prepare(clips).entries
    rows = training_rows(clips, every_caption=config.every_caption)
    return Examples(rows, entries, config.example_config)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the sounds are decoded."""
    folder = tmp_path_factory.mktemp("cache")
    _examples(folder)
    return folder


def _fit(cache: Path, run: Path, config: FitConfig = CONFIG, **task: Any) -> Fit:
    said: list[str] = []
    given = {"score": lambda _: {}, "criterion": "epoch", "say": said.append} | task
    examples = _examples(cache, config)
    return Fit(Encoder.random(TINY, seed=0), Task(examples, **given), config, run)


def _batch(fit: Fit) -> list[Example]:
    return [fit._task.examples[0, row] for row in (0, 2, 4, 6)]  # a caption of each sound


def _part_of(name: str) -> str:
    if name.startswith("audio_tower."):
        return "audio"
    return "text" if ".bert." in name else "head"


def test_a_step_goes_down_the_gradient(cache: Path, tmp_path: Path) -> None:
    """A small step of the optimiser on one batch lowers the loss of that very batch."""
    fit = _fit(cache, tmp_path, PLAIN)
    before = [float(fit._train(_batch(fit))) for _ in range(3)]
    assert before == sorted(before, reverse=True)


def test_dropout_and_masks_are_on_while_it_learns(cache: Path, tmp_path: Path) -> None:
    """In a step all but the batch norms is in training mode; when it is scored, nothing is."""
    states: list[list[bool]] = []

    def look(encoder: Encoder) -> None:
        model = encoder.model
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert isinstance(model.front_end, AugmentedFrontEnd)
        parts = (model, model.front_end, model.text_tower.bert)
        states.append([*(each.training for each in parts), any(each.training for each in norms)])

    def watch(encoder: Encoder, _examples: object, _step: int) -> torch.Tensor:
        look(encoder)
        return 0 * encoder.model.audio_head.weight.sum()

    def score(encoder: Encoder) -> dict[str, float]:
        look(encoder)
        return {}

    config = CONFIG.model_copy(update={"epochs": 1, "batch_size": 8})
    _fit(cache, tmp_path, config, auxiliaries=[watch], score=score).run(resume=False)
    assert states == [[True, True, True, False], [False, False, False, False]]


def test_the_temperature_is_the_one_asked_for(cache: Path, tmp_path: Path) -> None:
    """The loss of a batch is that of --temperature: a high one leaves nothing but chance."""
    losses = []
    for number, temperature in enumerate((0.05, 1000.0)):
        config = PLAIN.model_copy(update={"temperature": temperature})
        fit = _fit(cache, tmp_path / str(number), config)
        losses.append(float(fit._train(_batch(fit))))
    assert losses[1] == pytest.approx(math.log(4), rel=1e-3)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("part", ["audio", "text", "head"])
def test_each_part_learns_at_its_own_rate(cache: Path, tmp_path: Path, part: str) -> None:
    """A relative rate of 0 leaves audio tower, BERT or heads as they are; the others move."""
    fit = _fit(cache, tmp_path, PLAIN.model_copy(update={f"{part}_rate": 0.0}))
    before = {name: value.clone() for name, value in fit.encoder.model.named_parameters()}
    fit._train(_batch(fit))
    moved = {
        _part_of(n)
        for n, v in fit.encoder.model.named_parameters()
        if not torch.equal(v, before[n])
    }
    assert moved == {"audio", "text", "head"} - {part}


@pytest.mark.parametrize(
    ("frozen", "rate"), [("audio_tower", "audio_rate"), ("text_tower.bert", "text_rate")]
)
def test_a_rate_of_what_is_frozen_is_refused(
    cache: Path, tmp_path: Path, frozen: str, rate: str
) -> None:
    """A rate for what does not learn at all would do nothing; that of another part would."""
    part = frozenset({frozen})
    _fit(cache, tmp_path, PLAIN.model_copy(update={"head_rate": 0.5}), frozen=part)
    with pytest.raises(ConfigurationError, match=f"--{rate.replace('_', '-')}: .* frozen"):
        _fit(cache, tmp_path, PLAIN.model_copy(update={rate: 0.5}), frozen=part)


def test_long_gradients_are_clipped(cache: Path, tmp_path: Path) -> None:
    """With --clip-norm no step has a longer gradient than that."""
    fit = _fit(cache, tmp_path, PLAIN.model_copy(update={"clip_norm": 1e-3}))
    fit._train(_batch(fit))
    norms = [p.grad.norm() for p in fit._learner.parameters() if p.grad is not None]
    assert float(torch.stack(norms).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_memory_that_runs_out_halves_the_chunk(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that does not fit is taken again in halves, until one pair is too much."""
    chunks: list[int] = []
    room = 2

    def step(_learner: object, _examples: object, chunk: int, *_: object) -> torch.Tensor:
        chunks.append(chunk)
        if chunk > room:
            raise torch.OutOfMemoryError("no room")
        return torch.tensor(1.0)

    monkeypatch.setattr("audiofuse.trainer.training.fit.contrastive_step", step)
    fit = _fit(cache, tmp_path, PLAIN.model_copy(update={"chunk": 64}))
    fit._train(_batch(fit))
    fit._train(_batch(fit))
    assert chunks == [64, 2, 2]
    room = 0
    with pytest.raises(ConfigurationError, match="--crop-s"):
        fit._train(_batch(fit))


def test_a_run_goes_on_with_other_means(cache: Path, tmp_path: Path) -> None:
    """Chunk, reading processes and precision are the machine's, and no other run."""
    config = CONFIG.model_copy(update={"epochs": 1})
    _fit(cache, tmp_path, config).run(resume=False)
    other = config.model_copy(update={"chunk": 4, "workers": 1, "bf16": True})
    _fit(cache, tmp_path, other).run(resume=True)


def test_the_best_weights_are_kept(cache: Path, tmp_path: Path) -> None:
    """The encoder ends with the weights of the epoch that scored best, and returns its scores."""
    scores = iter([0.1, 0.9, 0.5])
    states = []

    def score(encoder: Encoder) -> dict[str, float]:
        states.append({name: value.clone() for name, value in encoder.model.state_dict().items()})
        return {"found": next(scores)}

    fit = _fit(cache, tmp_path, score=score, criterion="found")
    assert fit.run(resume=False)["epoch"] == 2
    for name, value in fit.encoder.model.state_dict().items():
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=0)


KILLED = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from test_fit import CONFIG, LOG, _fit
from audiofuse.trainer.training.fit import CHECKPOINT
cache, killed, whole = map(Path, sys.argv[2:])
child = os.fork()  # it has PyTorch, which takes seconds to load, by now
if not child:
    _fit(cache, killed).run(resume=True)  # from the start
    os._exit(0)
while not (killed / CHECKPOINT).exists():
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    time.sleep(0.01)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
assert len((killed / LOG).read_text().splitlines()) < CONFIG.epochs
for run in (killed, whole):
    _fit(cache, run).run(resume=True)
"""


@pytest.mark.timeout(900)  # another process loads PyTorch: slow on a busy machine
def test_a_killed_run_resumes_to_the_same_weights(cache: Path, tmp_path: Path) -> None:
    """After SIGKILL and resume the weights equal, bit for bit, those of an uninterrupted run."""
    tests, runs = Path(__file__).parent, [tmp_path / name for name in ("killed", "whole")]
    subprocess.run([sys.executable, "-c", KILLED, tests, cache, *runs], check=True, timeout=800)
    whole, resumed = (load_file(tmp_path / name / BEST) for name in ("whole", "killed"))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0, msg=name)
    assert (tmp_path / "killed" / LOG).read_text() == (tmp_path / "whole" / LOG).read_text()


def test_a_run_inside_an_epoch_resumes_there(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint written inside an epoch is gone on from, to the same weights."""
    monkeypatch.setattr("audiofuse.trainer.training.fit.CHECKPOINT_S", 0.0)

    def stop(work: Any, _total: int, _label: str) -> Any:
        yield next(iter(work))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _fit(cache, tmp_path / "stopped", show=stop).run(resume=False)
    resumed, whole = _fit(cache, tmp_path / "stopped"), _fit(cache, tmp_path / "whole")
    resumed.run(resume=True)
    whole.run(resume=False)
    for name, value in whole.encoder.model.state_dict().items():
        torch.testing.assert_close(resumed.encoder.model.state_dict()[name], value, rtol=0, atol=0)


def test_a_run_is_not_overwritten(cache: Path, tmp_path: Path) -> None:
    """A folder with a run is refused without --resume, and with it when the options differ."""
    config = CONFIG.model_copy(update={"epochs": 1})
    _fit(cache, tmp_path, config).run(resume=False)
    with pytest.raises(ConfigurationError, match="--resume"):
        _fit(cache, tmp_path, config).run(resume=False)
    with pytest.raises(ConfigurationError, match="other options"):
        _fit(cache, tmp_path, config.model_copy(update={"seed": 1})).run(resume=True)


def test_what_is_frozen_stays(cache: Path, tmp_path: Path) -> None:
    """A frozen part keeps its weights, and batch norms keep their statistics; the rest moves."""
    fit = _fit(cache, tmp_path, frozen=frozenset({"text_tower.bert"}))
    before = {name: value.clone() for name, value in fit.encoder.model.state_dict().items()}
    fit.run(resume=False)
    moved = {n for n, v in fit.encoder.model.state_dict().items() if not torch.equal(v, before[n])}
    assert not [n for n in moved if n.startswith("text_tower.bert.") or "running_" in n]
    assert {"audio_head.weight", "text_tower.project.weight"} <= moved


def test_an_unknown_part_is_named(cache: Path, tmp_path: Path) -> None:
    """Freezing what the encoder does not have is refused, and says what it has."""
    with pytest.raises(ConfigurationError, match=r"'ears'; it has .*audio_tower"):
        _fit(cache, tmp_path, frozen=frozenset({"ears"}))


def test_too_few_pairs_for_a_batch_are_refused(cache: Path, tmp_path: Path) -> None:
    """A batch larger than all pairs says what to do."""
    with pytest.raises(ConfigurationError, match="lower --batch-size"):
        _fit(cache, tmp_path, CONFIG.model_copy(update={"batch_size": 9}))


def test_the_learning_rate_warms_up_and_falls(cache: Path, tmp_path: Path) -> None:
    """The rate rises over the first epoch to its peak and falls as a cosine to its end."""
    config = CONFIG.model_copy(update={"epochs": 11, "final_learning_rate": 1e-5})
    fit = _fit(cache, tmp_path, config)
    rates = [fit._rate(step) for step in range(22)]  # two steps an epoch
    assert rates[:2] == pytest.approx([0.5e-3, 1e-3])
    assert rates[11] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[-1] == pytest.approx(1e-5)
    assert rates[1:] == sorted(rates[1:], reverse=True)


def test_a_loss_that_is_no_number_ends_the_run(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of NaN is reported within some steps, is not evaluated and never becomes weights."""
    monkeypatch.setattr("audiofuse.trainer.training.fit.NAN_CHECK_STEPS", 1)
    fit = _fit(cache, tmp_path, score=lambda _: pytest.fail("NaN was evaluated"))
    with torch.no_grad():
        fit.encoder.model.audio_head.weight.copy_(torch.tensor(float("nan")))
    with pytest.raises(ConfigurationError, match="step 1, is nan: lower the learning rate"):
        fit.run(resume=False)
    assert not (tmp_path / BEST).exists()

"""Training: epochs over pairs, a log line and a checkpoint after each, and what to resume from.

run/  config.json      what the run was asked for; a resumed run must be asked the same
      checkpoint.pt    weights, optimiser, position; after each epoch and every quarter of an hour
      best.safetensors the weights with the best score on the validation split so far
      log.jsonl        a line an epoch
      events.*         the same for TensorBoard
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.utils.tensorboard import SummaryWriter

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.inference import keep_freed_memory
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.model.frontend import MelFrontEnd
from audiofuse.trainer.data.batches import Batches, BatchPlan, Example, Examples
from audiofuse.trainer.training.augment import AugmentedFrontEnd
from audiofuse.trainer.training.config import FitConfig
from audiofuse.trainer.training.memory import pairs_that_fit
from audiofuse.trainer.training.step import (
    Learner,
    Precision,
    contrastive_step,
    sum_gradients,
    world,
)
from audiofuse.trainer.training.teacher import Teaching, load_teacher

CONFIG, CHECKPOINT, BEST, LOG = "config.json", "checkpoint.pt", "best.safetensors", "log.jsonl"
LAST = "epoch"  # the criterion by which the last weights are the best
CHECKPOINT_S = 15 * 60.0  # a killed run repeats at most that long; less writes more often
NAN_CHECK_STEPS = 50  # each check waits for the GPU; more of them notice a lost run earlier


class Auxiliary(Protocol):
    """A further loss, such as one that keeps the towers near where they began."""

    def __call__(self, encoder: Encoder, examples: Sequence[Example], step: int, /) -> Tensor:
        """Return the loss of a batch."""


Score = Callable[[Encoder], Mapping[str, float]]
Show = Callable[[Iterable[list[Example]], int, str], Iterable[list[Example]]]


def no_batch_progress(
    work: Iterable[list[Example]], _total: int, _label: str
) -> Iterable[list[Example]]:
    """Show no progress."""
    return work


@dataclass(frozen=True)
class Task:
    """What is to be learned, and who tells how well it was.

    ``score`` judges the encoder after each epoch; the best of ``criterion`` is kept, or by ``LAST``
    simply the last. ``frozen`` names parts of the encoder, such as "text_tower.bert".
    """

    examples: Examples
    score: Score
    criterion: str
    auxiliaries: Sequence[Auxiliary] = ()
    frozen: frozenset[str] = frozenset()
    show: Show = no_batch_progress
    say: Callable[[str], None] = print


class Fit:
    """One training run in a folder."""

    def __init__(self, encoder: Encoder, task: Task, config: FitConfig, run: Path) -> None:
        """Prepare to train ``encoder``, in place, on the device where it is."""
        self._task, self._config, self._run = task, config, run
        self._steps = len(task.examples.rows) // config.batch_size
        rank, processes = world()
        if not self._steps:
            raise ConfigurationError(
                f"{len(task.examples.rows)} pairs fill no batch of {config.batch_size}: "
                "lower --batch-size"
            )
        if config.batch_size % processes:
            raise ConfigurationError(
                f"a batch of {config.batch_size} cannot be divided among {processes} processes"
            )
        self._batch_plan = BatchPlan(config.batch_size, rank, processes, config.workers)
        self._batches = Batches(task.examples, self._batch_plan)
        device = encoder.device
        self._precision = Precision(
            device, bf16=device == "cuda" if config.bf16 is None else config.bf16
        )
        self._chunk = config.chunk
        self._learner = Learner(encoder, config.temperature, learned=config.learn_temperature)
        self._encoder, self._model = encoder, encoder.model
        self._learner.to(self._model.device)
        self._model.audio_tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        keep_freed_memory()
        freeze_parts(encoder, task.frozen)
        teachers = [load_teacher(each, device) for each in config.teacher]
        self._teaching = Teaching(teachers, config.teacher_weight) if teachers else None
        self._optimizer = torch.optim.AdamW(self._groups(), weight_decay=config.weight_decay)
        self._step = 0
        self._best = -math.inf
        self._saved = time.monotonic()

    @property
    def encoder(self) -> Encoder:
        """What is trained."""
        return self._encoder

    def run(self, *, resume: bool) -> Mapping[str, float]:
        """Train to the end; leave the encoder with its best weights and return their scores.

        With ``resume`` it goes on from the folder's checkpoint, if there is one.
        """
        front_end = self._model.front_end
        assert isinstance(front_end, MelFrontEnd)
        self._begin(resume=resume)
        self._model.front_end = AugmentedFrontEnd(front_end, self._config.augmentation)
        try:
            with _writer(self._run) as writer:
                for epoch in range(self._step // self._steps, self._config.epochs):
                    self._train_epoch(epoch, writer)
        finally:
            self._model.front_end = front_end
            self._model.eval()
        _barrier()
        self._model.load_state_dict(load_file(self._run / BEST, str(self._model.device)))
        lines = [json.loads(line) for line in (self._run / LOG).read_text().splitlines()]
        return max(lines, key=lambda line: float(line[self._task.criterion]))

    def _begin(self, *, resume: bool) -> None:
        config, asked = self._run / CONFIG, json.dumps(self._config.identity(), indent=2) + "\n"
        rank, _ = world()
        if resume and (self._run / CHECKPOINT).exists():
            if config.read_text() != asked:
                raise ConfigurationError(
                    f"{self._run} was trained with other options: see {config}"
                )
            self._restore()
        elif rank == 0:
            if (self._run / CHECKPOINT).exists():
                raise ConfigurationError(
                    f"{self._run} holds a run already: go on with --resume, or name another folder"
                )
            self._run.mkdir(parents=True, exist_ok=True)
            config.write_text(asked)
            (self._run / LOG).write_text("")
        _barrier()

    def _train_epoch(self, epoch: int, writer: SummaryWriter | None) -> None:
        label = f"epoch {epoch + 1} of {self._config.epochs}"
        done = self._step - epoch * self._steps  # not 0 where a run was resumed
        read = self._batches.epoch(epoch, done)
        self._set_training()
        losses = []
        for batch in self._task.show(read, self._steps - done, label):
            losses.append(self._train(batch))
            if self._step % NAN_CHECK_STEPS == 0:
                self._refuse_nan(losses[-1], epoch)
            if writer and time.monotonic() - self._saved > CHECKPOINT_S:
                self._save()
        self._refuse_nan(torch.stack(losses).mean(), epoch)
        self._model.eval()
        if writer is None:
            _barrier()
            return
        scores = dict(self._task.score(self.encoder))
        line = {
            "epoch": epoch + 1, "loss": float(torch.stack(losses).mean()),
            "learning_rate": self._rate(self._step - 1),
            "temperature": float(self._learner.temperature.abs()),
        } | scores  # fmt: skip
        for name, value in line.items():
            writer.add_scalar(name, value, epoch + 1)
        writer.flush()
        self._task.say("  ".join(f"{name} {value:.4g}" for name, value in line.items()))
        self._keep(line)
        _barrier()

    def _refuse_nan(self, loss: Tensor, epoch: int) -> None:
        """Raise ``ConfigurationError`` when a loss is no number: the weights are lost then."""
        value = float(loss)
        if not math.isfinite(value):
            raise ConfigurationError(
                f"the loss of epoch {epoch + 1}, step {self._step}, is {value}: lower the learning "
                "rate, or give --clip-norm"
            )

    def _set_training(self) -> None:
        """Switch dropout and augmentation on, but batch norm to the statistics it was trained with.

        Statistics of the batch would make a vector depend on its neighbours, and the gradient of
        chunks differ from that of the whole batch.
        """
        self._model.train()
        for module in self._model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    def _train(self, examples: Sequence[Example]) -> Tensor:
        config = self._config
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(self._step) * group["relative_rate"]
        loss = self._add_gradients(examples)
        for auxiliary in self._task.auxiliaries:
            extra = auxiliary(self.encoder, examples, self._step) / self._batch_plan.processes
            extra.backward()  # type: ignore[no-untyped-call]
        sum_gradients(self._learner)
        if config.clip_norm:
            nn.utils.clip_grad_norm_(self._learner.parameters(), config.clip_norm)
        self._optimizer.step()
        self._step += 1
        return loss

    def _add_gradients(self, examples: Sequence[Example]) -> Tensor:
        """Take the contrastive step; when memory runs out, halve the chunk and take it again."""
        seed = hash((self._config.seed, self._step))
        if self._chunk is None:
            self._chunk = self._chunk_that_fits(examples)
        while True:
            self._optimizer.zero_grad()
            try:
                return contrastive_step(
                    self._learner, examples, self._chunk, seed, self._precision, self._teaching
                )
            except torch.OutOfMemoryError as error:
                if self._chunk == 1:
                    raise ConfigurationError(
                        f"one pair is too large for the memory: lower --crop-s ({error})"
                    ) from error
                if self._batch_plan.processes > 1:  # the others wait inside the step
                    raise ConfigurationError(
                        f"the memory is too small for --chunk {self._chunk}: lower it"
                    ) from error
            self._chunk = min(self._chunk, len(examples)) // 2 or 1
            torch.cuda.empty_cache()
            self._task.say(f"out of memory: now {self._chunk} pairs at once")

    def _chunk_that_fits(self, examples: Sequence[Example]) -> int:
        def encode(some: Sequence[Example]) -> object:
            with self._precision.autocast():
                return self._learner(self._learner.inputs(some))

        return pairs_that_fit(encode, examples, self._model.device)

    def _rate(self, step: int) -> float:
        """Return the learning rate: linear up over the warm-up, then a cosine down to the end."""
        config, epoch = self._config, (step + 1) / self._steps
        if epoch < config.warmup_epochs:
            return config.learning_rate * epoch / config.warmup_epochs
        done = (epoch - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
        share = (1 + math.cos(math.pi * min(done, 1.0))) / 2
        return config.final_learning_rate + share * (
            config.learning_rate - config.final_learning_rate
        )

    def _groups(self) -> list[dict[str, Any]]:
        """Divide what is trained by how fast: audio tower, BERT, and the heads that join them."""
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self._learner.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(self._relative_rate(name), []).append(parameter)
        self._refuse_unused_rates()
        return [{"params": each, "relative_rate": rate} for rate, each in groups.items()]

    def _relative_rate(self, name: str) -> float:
        return float(getattr(self._config, _rate_of(name)))

    def _refuse_unused_rates(self) -> None:
        trained = {
            _rate_of(name) for name, each in self._model.named_parameters() if each.requires_grad
        }
        for rate in sorted({"audio_rate", "text_rate", "head_rate"} - trained):
            if getattr(self._config, rate) != 1.0:
                raise ConfigurationError(
                    f"--{rate.replace('_', '-')}: all that it is for is frozen: leave it out"
                )

    def _keep(self, line: Mapping[str, float]) -> None:
        """Keep an epoch's line, its weights if they are the best, and the run's state."""
        if line[self._task.criterion] > self._best:
            self._best = line[self._task.criterion]
            state = {name: value.contiguous() for name, value in self._model.state_dict().items()}
            save_file(state, self._run / (BEST + ".part"))
            (self._run / (BEST + ".part")).replace(self._run / BEST)
        with (self._run / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        self._save()

    def _save(self) -> None:
        """Write what a resumed run needs, whole or not at all."""
        state = {
            "learner": self._learner.state_dict(), "optimizer": self._optimizer.state_dict(),
            "step": self._step, "best": self._best, "log": (self._run / LOG).read_text(),
        }  # fmt: skip
        part = self._run / (CHECKPOINT + ".part")
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._run / CHECKPOINT)
        self._saved = time.monotonic()

    def _restore(self) -> None:
        state = torch.load(
            self._run / CHECKPOINT, map_location=self._model.device, weights_only=True
        )
        self._learner.load_state_dict(state["learner"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._step, self._best = state["step"], state["best"]
        rank, _ = world()
        if rank == 0:  # a line written after the checkpoint is written again
            (self._run / LOG).write_text(state["log"])


def _rate_of(parameter: str) -> str:
    """Return the option by which a parameter of such a name learns faster or slower."""
    if "audio_tower." in parameter:
        return "audio_rate"
    return "text_rate" if ".bert." in parameter else "head_rate"


def freeze_parts(encoder: Encoder, names: Iterable[str]) -> None:
    """Leave parts such as "text_tower.bert" as they are.

    Raises ``ConfigurationError`` for a part that the encoder does not have.
    """
    for name in names:
        try:
            encoder.model.get_submodule(name).requires_grad_(requires_grad=False)
        except AttributeError:
            parts = ", ".join(part for part, _ in encoder.model.named_children())
            raise ConfigurationError(f"the encoder has no part {name!r}; it has {parts}") from None


def _barrier() -> None:
    if world()[1] > 1:
        distributed.barrier()


@contextmanager
def _writer(run: Path) -> Iterator[SummaryWriter | None]:
    """Write for TensorBoard, in the first process only."""
    rank, _ = world()
    if rank:
        yield None
        return
    with SummaryWriter(str(run)) as writer:
        yield writer

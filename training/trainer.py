"""SeqloomTrainer: transformers' Trainer with updates in tokens, an exact loss, and evaluation by decoding.

Only hooks are overridden, the loop is Trainer's own. Exact means: the loss of an update is the sum over its target
tokens divided once by their number, over all processes and accumulation steps; Trainer counts them
(`num_items_in_batch`), the model divides.
"""

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object, send_to_device
from datasets import Dataset
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import (
    EvalPrediction,
    PrinterCallback,
    ProgressCallback,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import seed_worker

from seqloom.modeling.canary import ends_of, suppressed_by
from seqloom.modeling.modeling_seqloom import (
    SeqloomAttention,
    SeqloomForConditionalGeneration,
    SeqloomSelfAttention,
)
from seqloom.modeling.packing import attend_to_packed
from seqloom.training import metrics as scoring
from seqloom.training.batching import BatchSettings, UpdateLoader, UpdateSampler
from seqloom.training.collator import IGNORED_LABEL, SeqloomCollator
from seqloom.training.examples import MODEL_COLUMNS, in_original_order, lengths_of, longest_first, weights_of
from seqloom.training.fault_tolerance.interruption import ignore_stop_signals
from seqloom.training.fault_tolerance.resumable import ResumableTrainer
from seqloom.training.fault_tolerance.run_health import MouthError, TrainingError, speechless
from seqloom.training.monitoring.gradient_flow import GradientFlow
from seqloom.training.monitoring.progress import RunClock, TokenMeter, TrainingProgress
from seqloom.training.mouth import Doubt, broken_mouth, doubt_of, misread_in, spoken_sums, widest_floats
from seqloom.training.pushing import PushingTrainer
from seqloom.training.quality import rdrop
from seqloom.training.quality.moving_average import MovingAverage
from seqloom.training.quality.muon import WithMuon, matrices_of
from seqloom.training.tokenizer import SeqloomTokenizers
from seqloom_cli.command import explain_error

if TYPE_CHECKING:
    from seqloom.training.quality.bpe_dropout import EpochEncodings


logger = logging.getLogger(__name__)

TRUNCATED = "truncated"
"""Name among the scores: how many outputs have no end of sequence, for `max_new_tokens` were not enough."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What a validation or test pass computes."""

    metrics: tuple[str, ...] = ()
    """Names of `seqloom.training.metrics` that need decoded text; none: only the forced pass (loss, perplexity)."""
    num_beams: int = 1
    """Beams while decoding."""
    max_new_tokens: int = 256
    """Longest output in tokens."""


class SeqloomTrainer(ResumableTrainer, PushingTrainer):
    """Trains a Seqloom model on encoded pairs (columns `input_ids`, `labels`; to be scored also `source`, `target`)."""

    model: SeqloomForConditionalGeneration
    args: Seq2SeqTrainingArguments

    def __init__(
        self,
        model: SeqloomForConditionalGeneration,
        args: Seq2SeqTrainingArguments,
        *,
        tokenizers: SeqloomTokenizers,
        batching: BatchSettings,
        evaluation: EvaluationSettings | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        encodings: "EpochEncodings | None" = None,
        rdrop_alpha: float = 0.0,
        ema_decay: float = 0.0,
        has_muon: bool = False,
    ) -> None:
        """Set up a run.

        Args:
            model: what is trained.
            args: transformers' own; `gradient_accumulation_steps` says into how many micro-batches a process cuts its
                share of an update, `per_device_train_batch_size` is not read.
            tokenizers: saved with every checkpoint, and decode what the model writes.
            batching: how updates and micro-batches are made; what `args` knows of it is taken from there. Packed ones
                compute real tokens only, see `modeling.packing`: right everywhere, fast on GPUs.
            evaluation: what to compute on validation and test sets.
            train_dataset: encoded pairs.
            eval_dataset: encoded pairs with their texts.
            encodings: the training pairs as each epoch cuts them anew (BPE-dropout); None: as `train_dataset` has them.
            rdrop_alpha: weight of R-Drop's disagreement term; 0: one pass, no such term.
            ema_decay: decay of the moving average that is evaluated in the weights' place; 0: none.
            has_muon: whether Muon learns the layers' matrices, see `muon`.
        """
        freeze_inert_parameters(model)
        args._n_gpu = min(1, args.n_gpu)  # nn.DataParallel would cut batches and scale losses its own way
        if batching.packed:
            attend_to_packed(model)
        model.set_input_embeddings(model.get_input_embeddings())  # tied tables as one module: FSDP2 refuses two
        super().__init__(
            model=model,
            args=args,
            data_collator=SeqloomCollator(
                tokenizers.source.pad_token_id, int(model.config.decoder_start_token_id or 0)
            ),
            processing_class=tokenizers.source,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=self.score,
        )
        self._refuse_sharded_state()
        self.label_smoother = None  # Trainer's divides by the micro-batch's tokens; the model smooths, see compute_loss
        self.tokenizers = tokenizers
        self.batching = batching
        self.evaluation = evaluation or EvaluationSettings()
        self.scored_dataset = Dataset.from_dict({})
        """The set under evaluation, longest first."""
        self.outputs: list[str] = []
        """What the model wrote for each example of the set evaluated last; empty if nothing was decoded."""
        self.signatures: dict[str, str] = {}
        """How the scores were measured, e.g. `bleu_signature`."""
        self.doubt: Doubt | None = None
        """Why the scores of the set evaluated last say nothing; None: they do."""
        self._failures: list[str] = []
        self._is_read_again = False
        self.encodings = encodings
        self.rdrop_alpha = rdrop_alpha
        self.has_muon = has_muon
        self.gradient_flow: GradientFlow | None = None
        """Measures each layer's gradient, once `watch_gradients` was called."""
        self.moving_average = MovingAverage(model, ema_decay) if ema_decay else None
        """The weights that are evaluated and kept, until `use_moving_average` has put them into the model."""
        if self.moving_average:
            self.add_callback(self.moving_average)
        self.add_callback(LogLastUpdates())
        self.add_callback(RunClock())
        self.meter = TokenMeter(args.world_size)
        self.add_callback(self.meter)
        is_quiet = self.pop_callback(ProgressCallback) is None and self.pop_callback(PrinterCallback) is not None
        self.add_callback(TrainingProgress(shows_bars=False if is_quiet else None))

    # Batches -----------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return this process's micro-batches; they are rank-aware already, so accelerate must not shard them again."""
        workers: dict[str, Any] = {}
        num_workers = self.args.dataloader_num_workers
        if num_workers:
            named = ("prefetch_factor", "multiprocessing_context")
            workers = {name: getattr(self.args, f"dataloader_{name}", None) for name in named}
        return UpdateLoader(
            self.encodings or self.train_dataset.select_columns(list(MODEL_COLUMNS)),
            batch_sampler=self.train_sampler(),
            collate_fn=self.train_collator,
            num_workers=num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_persistent_workers and not self.encodings,  # they know one epoch
            worker_init_fn=partial(begin_worker, num_workers=num_workers, rank=self.args.process_index),
            **workers,
        )

    @property
    def train_collator(self) -> SeqloomCollator:
        """What makes a micro-batch of training examples; evaluation pads."""
        return replace(self.data_collator, packs=self.batching.packed)

    def train_sampler(self) -> UpdateSampler:
        """Return the plan of this process: which examples make its micro-batches, in which order."""
        settings = self.batching.in_run(self.args)
        if self.encodings:
            return self.encodings.sampler(settings)
        return UpdateSampler(lengths_of(self.train_dataset), settings, weights=weights_of(self.train_dataset))

    # Loss --------------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Let the model smooth the labels, so that smoothing too is summed and divided once; logits are not needed."""
        # An LM head of its own gathers its sharded weight only where it is called, and without logits it is not.
        skip_logits = not return_outputs and (self.model.config.tie_word_embeddings or not self.is_sharded)
        inputs = {**inputs, "smoothing": self.args.label_smoothing_factor, "skip_logits": skip_logits}
        if self.rdrop_alpha and model.training:
            return self._loss_of_two_passes(model, inputs, num_items_in_batch)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _loss_of_two_passes(self, model: nn.Module, inputs: dict[str, Any], num_items: Tensor | int | None) -> Tensor:
        """Return R-Drop's loss, divided by the update's targets in all its parts; see `rdrop`."""
        labels = inputs["labels"]
        num_items = (labels != IGNORED_LABEL).sum() if num_items is None else num_items
        both = {**rdrop.twice(inputs), "skip_logits": False}
        loss, outputs = super().compute_loss(model, both, return_outputs=True, num_items_in_batch=2 * num_items)
        # Trainer multiplies its loss by the processes, for their gradients are averaged and not summed
        scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return loss + self.rdrop_alpha / 2 * scale * rdrop.disagreement(outputs.logits, labels) / num_items

    # Gradients and weights ---------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Let Muon have the layers' matrices, if it is to, once Trainer has sorted all parameters into groups."""
        is_new = getattr(self, "optimizer", None) is None
        optimizer = super().create_optimizer(model)
        if self.has_muon and is_new:
            dtype = torch.bfloat16 if self.args.bf16 else torch.float32
            optimizer = self.optimizer = WithMuon(optimizer, matrices_of(self.model), dtype)
        return optimizer

    def watch_gradients(self, folder: Path) -> None:
        """Measure the gradient of each layer from now on, and keep the readings in `folder`."""
        self.gradient_flow = GradientFlow(self.model, folder)
        self.add_callback(self.gradient_flow)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float | None:
        """Also take the norm of each layer: Trainer calls this for every update, after clipping."""
        total = super()._get_grad_norm(model, grad_norm)
        if self.gradient_flow and total is not None:
            self.gradient_flow.measure(total, self.args.max_grad_norm)
        return total

    def use_moving_average(self) -> None:
        """Give the model the averaged weights for good, if there are any; training is over then."""
        if self.moving_average:
            self.moving_average.take_over()
            self.remove_callback(self.moving_average)
            self.moving_average = None

    # What is seen ------------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor | int | None]:
        """Count what an update learns from, then send it off; pinned tensors travel while the device still computes."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.meter.start(batches)
        is_pinned = self.args.dataloader_pin_memory and torch.cuda.is_available()
        return [send_to_device(batch, device, non_blocking=is_pinned) for batch in batches], num_items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the speed in tokens, the padding and the layers' gradients to each reading of the loss."""
        if "loss" in logs:
            logs = {**logs, **self.meter.read(), **(self.gradient_flow.read() if self.gradient_flow else {})}
        super().log(logs, start_time)

    # Evaluation --------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Score a set by a forced pass (loss, perplexity, token accuracy) and by decoding.

        Args:
            eval_dataset: encoded pairs with their texts; None: the one given to the constructor.
            ignore_keys: as in Trainer.
            metric_key_prefix: "eval", "test", ...

        Returns:
            Scores by name, each with the prefix.

        Raises:
            MouthError: when generate does not write what the model says; what was learned is saved before.
        """
        self.scored_dataset = longest_first(self.eval_dataset if eval_dataset is None else eval_dataset)
        self._is_read_again = False
        self._failures = []
        try:
            with self.moving_average.in_use() if self.moving_average else contextlib.nullcontext():
                return super().evaluate(self.scored_dataset, ignore_keys, metric_key_prefix)
        except MouthError as error:
            if self.is_in_train and self.state.global_step:
                self._save_checkpoint(self.model, trial=None)
            raise speechless(self.args, self.state, str(error)) from error

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, tuple[Tensor, ...], Tensor]:
        """Return per-sentence sums of the forced pass (B, 3), and if text is scored what was decoded.

        That is the ids (B, T), and sums of what was foreseen and written (B, 4).
        """
        inputs = send_to_device(inputs, self.args.device)
        try:
            predictions = self._predict(model, inputs)
        except Exception as error:
            if self.is_in_train or self.is_sharded or self.args.world_size == 1:
                raise
            self._failures = [explain_error(error)]  # the others wait in the next gather: `score` ends them all
            rows = inputs["labels"].new_zeros(len(inputs["labels"]), 4)
            sums = rows.to(widest_floats(rows.device))
            predictions = sums[:, :3], rows[:, :1], sums
            predictions = predictions if self.evaluation.metrics else predictions[:1]
        if self.evaluation.metrics:
            self._read_again(inputs, predictions[1])
        return None, predictions, inputs["labels"]

    def _predict(self, model: nn.Module, inputs: dict[str, Tensor | Any]) -> tuple[Tensor, ...]:
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**inputs, smoothing=0.0).logits  # (B, T, V)
        forced = forced_sums(logits, inputs["labels"])
        if not self.evaluation.metrics:
            return (forced,)
        ids = self.decode(inputs)
        most, suppressed = self.evaluation.max_new_tokens, suppressed_by(self.model)
        return forced, ids, spoken_sums(logits, inputs["labels"], ids, suppressed=suppressed, most=most)

    def _read_again(self, inputs: dict[str, Tensor], ids: Tensor) -> None:
        """Hold some outputs of an evaluation's first batch against forced passes over them.

        Beams may write something else than the arg max. Shards would have to read as many sentences on every process.

        Raises:
            MouthError: on all processes, if it is found on any.
        """
        if self._is_read_again or self.evaluation.num_beams > 1 or self.is_sharded:
            return
        self._is_read_again = True
        is_exact = not (self.args.bf16 or self.args.fp16 or self.args.tf32)
        faults: list[Any] = []
        if not self._failures:
            with self.compute_loss_context_manager():
                faults = misread_in(self.model, inputs, ids, most=self.evaluation.max_new_tokens, is_exact=is_exact)
        if faults := gather_object(faults):
            raise MouthError(broken_mouth(faults))

    @torch.no_grad()
    def decode(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return what the model writes for a batch of sources: ids (B, T), padded on the right."""
        with self.compute_loss_context_manager():
            return self.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                num_beams=self.evaluation.num_beams,
                max_new_tokens=self.evaluation.max_new_tokens,
                synced_gpus=self.is_sharded and self.args.world_size > 1,  # one that is done helps the others on
            )

    @property
    def is_sharded(self) -> bool:
        """Whether a forward pass needs all processes, because each holds a part of every weight."""
        return self.is_fsdp_enabled or (self.is_deepspeed_enabled and is_deepspeed_zero3_enabled())

    def score(self, prediction: EvalPrediction) -> dict[str, Any]:
        """Turn what `prediction_step` gathered into scores, token-weighted over the whole set.

        Raises:
            TrainingError: on all processes, where one of several could not predict; see `prediction_step`.
        """
        if failures := gather_object(self._failures):
            raise TrainingError(failures[0])
        forced, *decoded = prediction.predictions
        nll, num_tokens, num_correct = forced.sum(axis=0, dtype=np.float64)
        loss = float(nll / num_tokens)
        scores: dict[str, Any] = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "token_accuracy": 100 * float(num_correct / num_tokens),
        }
        self.outputs, self.doubt = [], None
        if decoded:
            outputs = self.to_texts(decoded[0])
            scored = scoring.score(outputs, self.scored_dataset["target"][:], self.evaluation.metrics)
            self.signatures = {name: scored.pop(name) for name in list(scored) if name.endswith("_signature")}
            scores.update(scored)
            scores[TRUNCATED] = int(self.is_cut(decoded[0]).sum())
            self.outputs = in_original_order(outputs, self.scored_dataset["position"][:])
            self._weigh(doubt_of(scores, decoded[1], self.evaluation.max_new_tokens))
        return scores

    def is_cut(self, ids: np.ndarray) -> np.ndarray:
        """Return which rows of decoded ids (B, T) lack an end of sequence, for they had no room for it; (B,)."""
        return np.isin(ids[:, 1:], ends_of(self.model.config)).sum(axis=1) == 0

    def _weigh(self, doubt: Doubt | None) -> None:
        """Keep what speaks against the scores of a set; while training, stop at a broken mouth and warn of the rest.

        Raises:
            MouthError: on all processes.
        """
        self.doubt = doubt
        if doubt and self.is_in_train:
            if doubt.is_broken:
                raise MouthError(doubt.reason)
            if self.is_world_process_zero():
                logger.warning(doubt.reason)

    def to_texts(self, ids: np.ndarray) -> list[str]:
        """Return the text of each row of ids; -100 is padding."""
        ids = np.where(ids == IGNORED_LABEL, self.tokenizers.target.pad_token_id, ids)
        return self.tokenizers.target.batch_decode(ids, skip_special_tokens=True)

    @torch.no_grad()
    def write_texts(self, sources: Sequence[str]) -> list[str]:
        """Return what the model writes for a few sources, and say where it was cut.

        To be called on every process, for weights may be sharded.
        """
        self.model.eval()
        encoded = self.tokenizers.source(list(sources), padding=True, return_tensors="pt").to(self.args.device)
        ids = self.decode(encoded).cpu().numpy()
        mark = f" [cut after {self.evaluation.max_new_tokens} tokens]"
        return [text + mark * cut for text, cut in zip(self.to_texts(ids), self.is_cut(ids).tolist(), strict=True)]

    # Saving ------------------------------------------------------------------------------------------------------

    def _refuse_sharded_state(self) -> None:
        """Refuse a setting with which Trainer would save no model at all, without a word.

        Raises:
            ValueError: before anything is trained.
        """
        if not self.is_fsdp_enabled:
            return
        kind = getattr(self.accelerator.state.fsdp_plugin.state_dict_type, "name", "SHARDED_STATE_DICT")
        if kind != "FULL_STATE_DICT":
            raise ValueError(
                f"fsdp_state_dict_type={kind} leaves a checkpoint without a model that can be loaded; write "
                f"fsdp_state_dict_type: FULL_STATE_DICT in the accelerate configuration, as in fsdp2.yaml."
            )

    def complete(self, folder: Path) -> None:
        """Save the target side's tokenizer too, where it has its own, and a running checkpoint's card."""
        self.tokenizers.save(folder)
        self.write_checkpoint_card(folder)


def begin_worker(worker_id: int, num_workers: int, rank: int) -> None:
    """Begin in a data worker; a function of the module, for a worker that is not forked gets it by its name."""
    ignore_stop_signals()
    seed_worker(worker_id, num_workers, rank)


class LogLastUpdates(TrainerCallback):
    """Logs what was learned since the last reading when training stops.

    Trainer adds up each process's own loss and averages over the processes where it logs. What was left at the end it
    would add to `train_loss` as it stands on one process.
    """

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a last reading; Trainer ends the epoch in which it stops, whatever the reason."""
        if control.should_training_stop:
            control.should_log = True


def freeze_inert_parameters(model: SeqloomForConditionalGeneration) -> None:
    """Leave out of training what cannot change the output: biases of keys that no rotation sets apart.

    Such a bias moves all scores of a query alike, and softmax forgets it. Its gradient is zero but for rounding, which
    Adam would blow up to full steps, other ones for every way to cut an update. The model has them all the same, for
    the weights of older folders and of Marian's models have them.
    """
    rotates = model.config.position_embedding_type == "rotary"
    for module in model.modules():
        if isinstance(module, SeqloomAttention) and not (rotates and isinstance(module, SeqloomSelfAttention)):
            module.k_proj.bias.requires_grad_(False)


def forced_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Return, for each sentence, the negative log-likelihood, the number of targets, and how many were the arg max.

    Args:
        logits: (B, T, V).
        labels: (B, T), -100 where there is no target.

    Returns:
        (B, 3) in float64 where the device has it, so that sums lose nothing.
    """
    nll = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
    is_target = labels != IGNORED_LABEL
    is_correct = (logits.argmax(-1) == labels) & is_target
    wide = widest_floats(labels.device)
    return torch.stack([each.to(wide).sum(-1) for each in (nll.view_as(labels), is_target, is_correct)], dim=-1)

"""SeqloomTrainer: transformers' Trainer with updates in tokens, an exact loss, and evaluation by decoding.

Only hooks are overridden, the loop is Trainer's own. Exact means: the loss of an update is the sum over its target
tokens divided once by their number, over all processes and accumulation steps; Trainer counts them
(`num_items_in_batch`), the model divides.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, ProgressCallback, Seq2SeqTrainingArguments, Trainer, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import seed_worker

from seqloom.modeling.modeling_seqloom import SeqloomForConditionalGeneration
from seqloom.training import metrics as scoring
from seqloom.training.batching import UpdateLoader, UpdateSampler
from seqloom.training.collator import IGNORED_LABEL, SeqloomCollator
from seqloom.training.progress import TokenMeter, TrainingProgress
from seqloom.training.tokenizer import SeqloomTokenizers

MODEL_COLUMNS = ("input_ids", "labels")


@dataclass(frozen=True)
class EvaluationPlan:
    """What a validation or test pass computes."""

    metrics: tuple[str, ...] = ()
    """Names of `seqloom.training.metrics` that need decoded text; none: only the forced pass (loss, perplexity)."""
    num_beams: int = 1
    """Beams while decoding."""
    max_new_tokens: int = 256
    """Longest output in tokens."""


class SeqloomTrainer(Trainer):
    """Trains a Seqloom model on encoded pairs (columns `input_ids`, `labels`; to be scored also `source`, `target`)."""

    model: SeqloomForConditionalGeneration
    args: Seq2SeqTrainingArguments

    def __init__(
        self,
        model: SeqloomForConditionalGeneration,
        args: Seq2SeqTrainingArguments,
        *,
        tokenizers: SeqloomTokenizers,
        tokens_per_update: int,
        evaluation: EvaluationPlan | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """Set up a run.

        Args:
            model: what is trained.
            args: transformers' own; `gradient_accumulation_steps` says into how many micro-batches a process cuts its
                share of an update, `per_device_train_batch_size` is not read.
            tokenizers: saved with every checkpoint, and decode what the model writes.
            tokens_per_update: most source + target tokens that one optimizer step learns from.
            evaluation: what to compute on validation and test sets.
            train_dataset: encoded pairs.
            eval_dataset: encoded pairs with their texts.
            callbacks: Trainer's.
        """
        super().__init__(
            model=model,
            args=args,
            data_collator=SeqloomCollator(tokenizers.source.pad_token_id),
            processing_class=tokenizers.source,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=self.score,
            callbacks=list(callbacks),
        )
        self.label_smoother = None  # Trainer's divides by the micro-batch's tokens; the model smooths, see compute_loss
        self.tokenizers = tokenizers
        self.tokens_per_update = tokens_per_update
        self.evaluation = evaluation or EvaluationPlan()
        self.scored_dataset = Dataset.from_dict({})
        """The set under evaluation, longest first."""
        self.outputs: list[str] = []
        """What the model wrote for each example of the set evaluated last; empty if nothing was decoded."""
        self.signatures: dict[str, str] = {}
        """How the scores were measured, e.g. `bleu_signature`."""
        self.meter = TokenMeter(args.world_size)
        self.add_callback(self.meter)
        if self.pop_callback(ProgressCallback):
            self.add_callback(TrainingProgress())

    # Batches -----------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return this process's micro-batches; they are rank-aware already, so accelerate must not shard them again."""
        return UpdateLoader(
            self.train_dataset.select_columns(list(MODEL_COLUMNS)),
            batch_sampler=self.train_sampler(),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_persistent_workers,
            worker_init_fn=self._seed_worker if self.args.dataloader_num_workers else None,
        )

    def train_sampler(self) -> UpdateSampler:
        """Return the plan of this process: which examples make its micro-batches, in which order."""
        return UpdateSampler(
            lengths_of(self.train_dataset),
            tokens_per_update=self.tokens_per_update,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            accumulation_steps=self.args.gradient_accumulation_steps,
            world_size=self.args.world_size,
            rank=self.args.process_index,
        )

    def _seed_worker(self, worker_id: int) -> None:
        seed_worker(worker_id, self.args.dataloader_num_workers, self.args.process_index)

    def _remove_unused_columns(self, dataset: Dataset, description: str | None = None) -> Dataset:
        """Hand the model its two columns; texts stay behind for scoring."""
        return dataset.select_columns([name for name in MODEL_COLUMNS if name in dataset.column_names])

    # Loss --------------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Let the model smooth the labels, so that smoothing too is summed and divided once; logits are not needed."""
        inputs = {**inputs, "label_smoothing": self.args.label_smoothing_factor, "skip_logits": not return_outputs}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    # What is seen ------------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor | int | None]:
        """Count what an update learns from, before it goes to the device."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.meter.start(batches)
        return batches, num_items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the speed in tokens and the padding to each reading of the loss."""
        super().log({**logs, **self.meter.read()} if "loss" in logs else logs, start_time)

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
        """
        self.scored_dataset = longest_first(self.eval_dataset if eval_dataset is None else eval_dataset)
        return super().evaluate(self.scored_dataset, ignore_keys, metric_key_prefix)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, tuple[Tensor, ...], Tensor]:
        """Return per-sentence sums of the forced pass (B, 3), and the decoded ids (B, T) if text is scored."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**inputs, label_smoothing=0.0).logits  # (B, T, V)
        predictions: tuple[Tensor, ...] = (forced_sums(logits, inputs["labels"]),)
        if self.evaluation.metrics:
            predictions = (*predictions, self.decode(inputs))
        return None, predictions, inputs["labels"]

    @torch.no_grad()
    def decode(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return what the model writes for a batch of sources: ids (B, T), padded on the right."""
        with self.compute_loss_context_manager():
            return self.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                num_beams=self.evaluation.num_beams,
                max_new_tokens=self.evaluation.max_new_tokens,
            )

    def score(self, prediction: EvalPrediction) -> dict[str, Any]:
        """Turn what `prediction_step` gathered into scores, token-weighted over the whole set."""
        forced, *decoded = prediction.predictions
        nll, num_tokens, num_correct = forced.sum(axis=0)
        loss = float(nll / num_tokens)
        scores: dict[str, Any] = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "token_accuracy": 100 * float(num_correct / num_tokens),
        }
        self.outputs = []
        if decoded:
            outputs = self.to_texts(decoded[0])
            scored = scoring.score(outputs, self.scored_dataset["target"][:], self.evaluation.metrics)
            self.signatures = {name: scored.pop(name) for name in list(scored) if name.endswith("_signature")}
            scores.update(scored)
            self.outputs = in_original_order(outputs, self.scored_dataset["position"][:])
        return scores

    def to_texts(self, ids: np.ndarray) -> list[str]:
        """Return the text of each row of ids; -100 is padding."""
        ids = np.where(ids == IGNORED_LABEL, self.tokenizers.target.pad_token_id, ids)
        return self.tokenizers.target.batch_decode(ids, skip_special_tokens=True)

    @torch.no_grad()
    def write_texts(self, sources: Sequence[str]) -> list[str]:
        """Return what the model writes for a few sources, on this process alone."""
        self.model.eval()
        encoded = self.tokenizers.source(list(sources), padding=True, return_tensors="pt").to(self.args.device)
        return self.to_texts(self.decode(encoded).cpu().numpy())

    # Saving ------------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the target side's tokenizer too, where it has its own."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.tokenizers.save(output_dir or self.args.output_dir)


class SampleOutputs(TrainerCallback):
    """Prints a few validation examples at each evaluation, so that a person sees the model learn."""

    def __init__(
        self, examples: Dataset, write: Callable[[Sequence[str]], list[str]], print_text: Callable[[str], None]
    ) -> None:
        """Remember what to show.

        Args:
            examples: a few rows of the validation set.
            write: returns the model's output for each source.
            print_text: prints without breaking the progress bar.
        """
        self.examples = examples
        self.write = write
        self.print_text = print_text

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Print source, output and reference of each example."""
        if not state.is_world_process_zero:
            return
        lines = [f"step {state.global_step}"]
        outputs = self.write(self.examples["source"][:])
        for source, output, reference in zip(self.examples["source"], outputs, self.examples["target"], strict=True):
            mark = "=" if output == reference else "x"
            lines += [f"    source     {source}", f"  {mark} output     {output}", f"    reference  {reference}"]
        self.print_text("\n".join(lines))


def forced_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Return, for each sentence, the negative log-likelihood, the number of targets, and how many were the arg max.

    Args:
        logits: (B, T, V).
        labels: (B, T), -100 where there is no target.

    Returns:
        (B, 3) in float64, so that sums over a set lose nothing.
    """
    nll = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
    is_target = labels != IGNORED_LABEL
    is_correct = (logits.argmax(-1) == labels) & is_target
    return torch.stack([x.double().sum(-1) for x in (nll.view_as(labels), is_target, is_correct)], dim=-1)


def lengths_of(dataset: Dataset) -> np.ndarray:
    """Return (examples, 2) source and target lengths in tokens, read from the Arrow offsets without loading the ids."""
    return np.stack([_list_lengths(dataset, column) for column in MODEL_COLUMNS], axis=1)


def _list_lengths(dataset: Dataset, column: str) -> np.ndarray:
    import pyarrow.compute as pc

    flat = dataset.flatten_indices() if dataset._indices is not None else dataset
    return pc.list_value_length(flat.data.column(column)).to_numpy().astype(np.int64)


def longest_first(dataset: Dataset) -> Dataset:
    """Return the set sorted by source length, with each row's `position`: less padding, and memory runs out early."""
    order = np.argsort(-lengths_of(dataset)[:, 0], kind="stable")
    return dataset.add_column("position", np.arange(len(dataset))).select(order)


def in_original_order(outputs: Sequence[str], positions: Sequence[int]) -> list[str]:
    """Undo `longest_first` for what the model wrote."""
    return [output for _, output in sorted(zip(positions, outputs, strict=True), key=lambda pair: pair[0])]

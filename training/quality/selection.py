"""Which model of a run is the best: by which score, in which direction, and when to stop looking for a better one.

transformers takes every score but the loss for one that should be high. Ours know their direction, and error rates and
perplexity are better when they are low.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

from seqloom.configuration.recipe import RecipeError
from seqloom.configuration.suggestion import did_you_mean
from seqloom.training.metrics import LOWER_IS_BETTER

FORCED_SCORES = ("loss", "perplexity", "token_accuracy")
"""What every evaluation computes, without decoding."""


def selection_settings(
    arguments: Mapping[str, Any], metrics: Sequence[str], *, patience: int, average_by: str
) -> dict[str, Any]:
    """Return the training arguments that say which model is the best; empty where nobody asks.

    Args:
        arguments: the recipe's training arguments; `load_best_model_at_end` asks.
        metrics: names of the scores that evaluation computes from decoded text; the first is taken where the arguments
            name no `metric_for_best_model`.
        patience: of early stopping; all but 0 asks.
        average_by: which checkpoints are averaged; "best" asks.

    Raises:
        RecipeError: for a metric that no evaluation computes.
    """
    named = arguments.get("metric_for_best_model")
    asks = patience or average_by == "best" or arguments.get("load_best_model_at_end")
    if not (named or asks):
        return {}
    metric = str(named or (*metrics, "loss")[0]).removeprefix("eval_")
    _check_metric(metric, metrics)
    higher = arguments.get("greater_is_better")
    settings = {
        "metric_for_best_model": metric,
        "greater_is_better": metric not in LOWER_IS_BETTER if higher is None else higher,
    }
    if patience:
        settings["load_best_model_at_end"] = arguments.get("load_best_model_at_end", True)
    if average_by == "best":
        settings["save_total_limit"] = None  # `KeepBestCheckpoints` deletes, not Trainer: it would keep the newest
    return settings


def _check_metric(metric: str, metrics: Sequence[str]) -> None:
    known = (*FORCED_SCORES, *metrics)
    if metric in known:
        return
    hint = did_you_mean(metric, known)
    raise RecipeError(
        f"metric_for_best_model={metric} is not among the scores of this run; {hint}use one of {', '.join(known)}, or "
        f"add it to metrics."
    )


def scores_by_update(log_history: Sequence[Mapping[str, Any]], metric: str) -> dict[int, float]:
    """Return what each evaluation during training scored, by update; the history survives in every checkpoint."""
    name = f"eval_{metric}"
    return {int(row["step"]): float(row[name]) for row in log_history if name in row}


def best_updates(scores: Mapping[int, float], count: int, *, higher: bool) -> list[int]:
    """Return the updates of the `count` best scores, best first; of equal ones the later."""
    return sorted(scores, key=lambda update: (scores[update] if higher else -scores[update], update))[::-1][:count]


class EarlyStopping(TrainerCallback):
    """Stops when the score has not improved for `patience` evaluations.

    They are counted in the history, which a resumed run has whole; transformers' own counter is its checkpoint's.
    """

    def __init__(self, patience: int) -> None:
        """Wait for `patience` evaluations without a better score."""
        self.patience = patience

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Look at evaluations of the run; the passes after its end have other names and do not count."""
        metric = str(args.metric_for_best_model).removeprefix("eval_")
        if f"eval_{metric}" not in metrics:
            return
        scores = list(scores_by_update(state.log_history, metric).values())
        best = (max if args.greater_is_better else min)(scores)
        if len(scores) - 1 - scores.index(best) >= self.patience:
            control.should_training_stop = True


__all__ = ["EarlyStopping", "best_updates", "scores_by_update", "selection_settings"]

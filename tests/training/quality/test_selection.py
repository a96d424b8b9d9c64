"""Which model is best: the direction of each score, the names that exist, and early stopping that survives a resume."""

from types import SimpleNamespace

import pytest
from transformers.trainer_callback import TrainerControl, TrainerState

from seqloom.configuration.recipe import RecipeError
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training.quality.selection import EarlyStopping, best_updates, scores_by_update, selection_settings

PAIRS = {"train": ["a", "b"], "valid": ["c", "d"]}


def settings(metrics=("bleu", "cer"), **keys):
    recipe = resolve_recipe(None, {**PAIRS, **keys})
    return selection_settings(
        recipe.training_arguments, metrics, patience=recipe.early_stopping_patience, average_by=recipe.average_by
    )


def test_nothing_is_chosen_where_nobody_asks():
    assert settings() == {}


@pytest.mark.parametrize(
    ("metric", "higher"),
    [
        ("bleu", True),
        ("chrf", True),
        ("exact_match", True),
        ("token_accuracy", True),
        ("cer", False),
        ("wer", False),
        ("loss", False),
        ("perplexity", False),
        ("eval_cer", False),
    ],
)
def test_every_score_has_its_direction(metric, higher):
    chosen = settings(("bleu", "chrf", "exact_match", "cer", "wer"), metric_for_best_model=metric)
    assert chosen == {"metric_for_best_model": metric.removeprefix("eval_"), "greater_is_better": higher}


def test_early_stopping_looks_at_the_decoded_metric_and_keeps_the_best():
    chosen = settings(early_stopping_patience=2)
    assert chosen == {"metric_for_best_model": "bleu", "greater_is_better": True, "load_best_model_at_end": True}
    assert settings((), early_stopping_patience=2)["metric_for_best_model"] == "loss"
    assert settings(early_stopping_patience=2, load_best_model_at_end=False)["load_best_model_at_end"] is False


def test_what_is_named_wins():
    assert settings(metric_for_best_model="cer", greater_is_better=True)["greater_is_better"] is True


def test_an_unknown_score_is_refused_before_training():
    sentence = (
        "metric_for_best_model=bleau is not among the scores of this run; did you mean bleu? use one of loss, "
        "perplexity, token_accuracy, bleu, cer, or add it to metrics."
    )
    with pytest.raises(RecipeError) as caught:
        settings(metric_for_best_model="bleau")
    assert str(caught.value) == sentence


def test_best_updates_in_both_directions_and_the_later_of_equals():
    scores = {100: 3.0, 200: 1.0, 300: 3.0, 400: 2.0}
    assert best_updates(scores, 2, higher=True) == [300, 100]
    assert best_updates(scores, 3, higher=False) == [200, 400, 300]
    assert best_updates(scores, 9, higher=True) == [300, 100, 400, 200]


def history(*scores):
    rows = [{"step": 10 * i, "eval_cer": score, "epoch": 1.0} for i, score in enumerate(scores, start=1)]
    return [{"step": 5, "loss": 2.0}, *rows]


def test_scores_come_from_the_history():
    assert scores_by_update(history(3.0, 2.0), "cer") == {10: 3.0, 20: 2.0}


@pytest.mark.parametrize(
    ("higher", "scores", "stops"),
    [
        (False, (5.0,), False),
        (False, (5.0, 6.0), False),
        (False, (4.0, 5.0, 4.0), True),  # the same again is no improvement
        (False, (4.0, 5.0, 3.0), False),
        (True, (4.0, 5.0, 3.0), False),
        (True, (5.0, 4.0, 3.0), True),
    ],
)
def test_patience_is_counted_in_the_history_so_that_a_resumed_run_counts_on(higher, scores, stops):
    args, control = SimpleNamespace(metric_for_best_model="cer", greater_is_better=higher), TrainerControl()
    EarlyStopping(2).on_evaluate(args, TrainerState(log_history=history(*scores)), control, {"eval_cer": scores[-1]})
    assert control.should_training_stop is stops


def test_only_evaluations_of_the_run_count():
    args = SimpleNamespace(metric_for_best_model="cer", greater_is_better=False)
    stopping, control = EarlyStopping(1), TrainerControl()
    state = TrainerState(log_history=history(1.0, 9.0))
    stopping.on_evaluate(args, state, control, {"test_cer": 9.0})
    assert not control.should_training_stop
    stopping.on_evaluate(args, state, control, {"eval_cer": 9.0})
    assert control.should_training_stop

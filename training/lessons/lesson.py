"""A lesson: the same small model trained twice, once without one of its parts, to see what the part is for.

    seqloom lesson residual
        |-- with       the date demo, four layers a side
        |-- without    the same first weights and the same updates, but the part is taken out by hand
        v
    lesson_page.py     both losses, the gradient in each layer, what each model writes

The network has no switch for what nobody should switch off, so a lesson takes the part out of the finished object.
Another lesson is a function that takes something out and a row of `LESSONS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import set_seed

from seqloom.configuration.recipe import Recipe
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.configuration.suggestion import did_you_mean
from seqloom.hub.files import refuse_no_place
from seqloom.modeling.modeling_seqloom import SeqloomForConditionalGeneration, SeqloomLayer
from seqloom.training.batching import BatchSettings
from seqloom.training.demo import DEMO_EXAMPLES, DEMO_TARGET, build_demo
from seqloom.training.lessons.lesson_page import Outcome, draw_lesson, write_lesson
from seqloom.training.monitoring.console import library_bars, say
from seqloom.training.monitoring.gradient_flow import can_draw
from seqloom.training.monitoring.history import rows_of
from seqloom.training.preparation import encode
from seqloom.training.settings import generation_config, training_arguments
from seqloom.training.tokenizer import SeqloomTokenizers, train_tokenizer
from seqloom.training.trainer import EvaluationSettings, SeqloomTrainer

NUM_TRAIN, NUM_VALIDATION = 6_000, 200
"""Dates to learn from, about 18 updates of each hundred tokens; and dates to answer at the end."""
NUM_READINGS = 25
"""Points of each curve."""

Model = SeqloomForConditionalGeneration
Both = tuple[str, str]
"""A text in English and in Chinese."""


def without_residuals(model: Model) -> None:
    """Let every sublayer hand on f(x) in place of x + f(x): what it is added to becomes zeros."""
    for layer in model.modules():
        if isinstance(layer, SeqloomLayer):
            layer.leave = partial(_leave_alone, layer.leave)  # type: ignore[method-assign]


def _leave_alone(leave: Callable[..., Tensor], norm: Any, residual: Tensor, output: Tensor) -> Tensor:
    return leave(norm, torch.zeros_like(residual), output)


def without_positions(model: Model) -> None:
    """Turn no query and no key; in a rotary model nothing else says where a token stands."""
    model.model.encoder.rotary_emb = model.model.decoder.rotary_emb = None


@dataclass(frozen=True)
class Lesson:
    """What is taken away, and what the page says about it."""

    take_away: Callable[[Model], None]
    title: Both
    question: Both
    with_it: Both
    """What the model that has the part is called."""
    without_it: Both
    rule: tuple[str, str]
    """What the two models compute, as formulas: with, without."""
    meaning: Both
    """What stands below the curves; a blank line parts paragraphs."""
    examples: Sequence[str] = DEMO_EXAMPLES
    """Dates that both models write at the end."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the demo's recipe with other values."""
    shows_gradients: bool = False


_RESIDUAL = (
    """\
The loss is computed at the very end. What a layer learns from it, its gradient, travels back through all the layers
behind it, and each multiplies it by its own derivative. Of f(x) that is f′(x): where it is small, little arrives, and
after a few layers nothing. Of x + f(x) it is 1 + f′(x): the 1 lets the gradient through unchanged, whatever f does.

Here it is the decoder that goes silent. Without residuals a cross attention hands on nothing but a mean of the source,
and as long as all its weights are alike, that mean is the same whatever was asked: so nothing of the question, and no
gradient, passes. The encoder's norms keep the size of its gradient also without residuals, but what the encoder learns
is of no use to a decoder that does not learn to ask. Adam, which divides a gradient by its usual size, would make up
for a small one, but not for these: what is far below its ε of 0.00000001 moves nothing.""",
    """\
损失在最末端算出。每一层要从中学习，靠的是梯度；梯度往回走，每经过一层就乘以那一层的导数。f(x) 的导数是 f′(x)：它小，
传回来的就少，几层之后什么也不剩。x + f(x) 的导数是 1 + f′(x)：其中的 1 让梯度原样通过，不管 f 怎样。

这里沉默的是解码器。没有残差，交叉注意力传下去的只是源文的加权平均；只要权重都差不多，无论问什么，平均都一样：问题过不去，
梯度也过不来。编码器靠归一化，没有残差也能保住梯度的大小，但解码器学不会提问，编码器学到的也就用不上。
Adam 会把梯度除以它平常的大小，小梯度本可以补救；但远小于它的 ε（0.00000001）的梯度，什么也推不动。""",
)

_POSITIONS = (
    """\
Without positions a sentence is a bag of tokens: a sum does not change when its terms change places. So a date read
backwards gets the same answer as the date, and which digits are the day and which the month can only be guessed.
Compare the outputs in the table.

The decoder is better off than the encoder: its mask lets the first token see one token, the second two, and from that
it can count. That is why it still writes year, month and day in the right order.""",
    """\
没有位置，句子就是一袋词元：交换加数的次序，和不变。所以把一个日期倒过来写，得到的回答完全相同；哪些数字是日、哪些是月，只能猜。
请比较表中的输出。

解码器的处境比编码器好：掩码让第一个词元只看见一个词元、第二个看见两个，它由此可以数数，所以仍能按年、月、日的次序写。""",
)

LESSONS = {
    "residual": Lesson(
        take_away=without_residuals,
        title=("What residual connections are for", "残差连接有什么用"),
        question=(
            "A sublayer could hand on what it has found. In a Transformer it adds it to what it has read. Why?",
            "子层本可以只把自己的发现传下去；Transformer 却把它加到读入的内容上。为什么？",
        ),
        with_it=("with residuals", "有残差"),
        without_it=("without", "无残差"),
        rule=("x + f(x)", "f(x)"),
        meaning=_RESIDUAL,
        recipe={"encoder_layers": 4, "decoder_layers": 4},
        shows_gradients=True,
    ),
    "positions": Lesson(
        take_away=without_positions,
        title=("What positions are for", "位置编码有什么用"),
        question=(
            "Attention compares every token with every token. Does it matter where they stand?",
            "注意力让每个词元与每个词元相比较。它们站在哪里，重要吗？",
        ),
        with_it=("with positions", "有位置"),
        without_it=("without", "无位置"),
        rule=("turn(q, 3) · turn(k, 1)", "q · k"),
        meaning=_POSITIONS,
        examples=[text for date in DEMO_EXAMPLES for text in (date, date[::-1])],
    ),
}


def give_lesson(name: str, output: str | Path, *, num_updates: int = 400) -> list[Outcome]:
    """Train both models, print what they do, and write the page and, where matplotlib is installed, the picture.

    Args:
        name: of `LESSONS`.
        output: the HTML file; the picture has its name, ending in .png. Files that are there are replaced.
        num_updates: of each model.

    Returns:
        What came of the model with the part, and of the one without.

    Raises:
        ValueError: for an unknown lesson, or an output that cannot be written.
    """
    if name not in LESSONS:
        raise ValueError(f"lesson={name!r} is unknown; {did_you_mean(name, LESSONS)}use one of {', '.join(LESSONS)}.")
    lesson, page = LESSONS[name], Path(output)
    picture = page.with_suffix(".png")
    for path in (page, picture):
        refuse_no_place(path)
    with TemporaryDirectory() as work, library_bars(wanted=True):
        recipe = _recipe(lesson, work, num_updates)
        tokenizers, data = _read_dates(recipe)
        outcomes = [_learn(lesson, recipe, tokenizers, data, whole=whole) for whole in (True, False)]
    for line in _table(lesson, outcomes):
        say(line)
    names = (lesson.with_it[0], lesson.without_it[0])
    write_lesson(page, outcomes, {**_words(lesson), "facts": _facts(recipe, tokenizers, num_updates)})
    if can_draw():
        draw_lesson(picture, outcomes, lesson.title[0], names, gradients=lesson.shows_gradients)
        say(f"\n{page} and {picture}: open the page in a browser; it needs no network.")
    else:
        say(f"\n{page}: open it in a browser; it needs no network. A picture beside it: pip install 'seqloom[plots]'.")
    return outcomes


def _recipe(lesson: Lesson, work: str, num_updates: int) -> Recipe:
    fixed = {"output": work, "max_steps": num_updates, "eval_strategy": "no", "save_strategy": "no"}
    return resolve_recipe("demo", {**fixed, "logging_steps": max(1, num_updates // NUM_READINGS), **lesson.recipe})


def _read_dates(recipe: Recipe) -> tuple[SeqloomTokenizers, dict[str, Dataset]]:
    dates = build_demo(num_train=NUM_TRAIN, num_validation=NUM_VALIDATION, num_test=1)
    texts = (dates["train"][column][:] for column in ("source", "target"))
    tokenizers = train_tokenizer(*texts, kind=recipe.tokenizer, vocab_size=recipe.vocab_size, show_progress=False)
    return tokenizers, {name: encode(rows, tokenizers, name) for name, rows in dates.items()}


def _learn(
    lesson: Lesson, recipe: Recipe, tokenizers: SeqloomTokenizers, data: dict[str, Dataset], *, whole: bool
) -> Outcome:
    """Train one of the two; both begin with the same weights and see the same updates."""
    arguments = training_arguments(recipe)
    set_seed(arguments.seed)
    model = SeqloomForConditionalGeneration(recipe.model_config(vocab_size=tokenizers.vocab_size))
    model.generation_config = generation_config(recipe, tokenizers)
    trainer = SeqloomTrainer(
        model,
        arguments,
        tokenizers=tokenizers,
        batching=BatchSettings(recipe.tokens_per_update),
        evaluation=EvaluationSettings(("exact_match",), max_new_tokens=model.generation_config.max_new_tokens),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
    )
    trainer.watch_gradients(Path(recipe.output))
    if not whole:
        lesson.take_away(model)
    say(f"\n{(lesson.with_it if whole else lesson.without_it)[0]}: {lesson.rule[not whole]}")
    trainer.train()
    right = trainer.evaluate()["eval_exact_match"]
    return Outcome(rows_of(trainer.state.log_history), right, trainer.write_texts(lesson.examples))


def _words(lesson: Lesson) -> dict[str, Any]:
    """Return what the page says of the lesson."""
    texts = {name: getattr(lesson, name) for name in ("title", "question", "rule", "meaning", "examples")}
    return {**texts, "names": (lesson.with_it, lesson.without_it), "gradients": lesson.shows_gradients}


def _facts(recipe: Recipe, tokenizers: SeqloomTokenizers, num_updates: int) -> dict[str, Any]:
    """Return what the page says of the two models."""
    config = recipe.model_config(vocab_size=tokenizers.vocab_size)
    names = ("d_model", "encoder_layers", "decoder_layers")
    sizes = {"updates": num_updates, "train": NUM_TRAIN, "validation": NUM_VALIDATION, "target": DEMO_TARGET}
    return {name: getattr(config, name) for name in names} | sizes


def _table(lesson: Lesson, outcomes: Sequence[Outcome]) -> list[str]:
    """Return the lines that compare both."""
    rows = [
        ("", [lesson.with_it[0], lesson.without_it[0]]),
        ("loss at the end", [f"{each.losses[-1][1]:.2f}" for each in outcomes]),
        (f"of {NUM_VALIDATION} new dates right", [f"{each.right:.0f} %" for each in outcomes]),
    ]
    for side in ("encoder", "decoder") if lesson.shows_gradients else ():
        rows.append((f"gradient, first / last layer, {side}", [f"{each.ratio(side):.2g}" for each in outcomes]))
    lines = ["", *(f"{name:38}{left:>18}{right:>12}" for name, (left, right) in rows)]
    for text, *written in zip(lesson.examples, *(each.outputs for each in outcomes)):
        names = (lesson.with_it[0], lesson.without_it[0])
        lines += ["", text, *(f"  {name:16}{output}" for name, output in zip(names, written))]
    return lines


__all__ = ["LESSONS", "Lesson", "give_lesson", "without_positions", "without_residuals"]

"""The model card: what is known of a folder, filled into a dataclass and rendered by a template as README.md.

A card claims only what a record or a file in the folder says. Data, training and scores come from `run/`, which a
finished run leaves (recipe.yaml, data.json, environment.json, results.json); sizes and settings come from the
checkpoint itself. What is not recorded is left out, and a folder without `run/` gets a card without claims.

Records outlive what they describe: a folder that was fine-tuned in place still holds the first run's scores. So the
weights' SHA-256 is kept, in `run/weights.json` when a finished run's card is first written and in the card's last line,
and a card for other weights claims nothing of the run. A README.md that somebody has edited is recognised by the digest
of its text, in the same line, and kept.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError
from yaml import YAMLError

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.configuration.recipe_values import PlainLoader
from seqloom.hub.costs import MOST_RECIPE, read_header
from seqloom.hub.files import CURVE_NAME, read_text, sha256_of
from seqloom.hub.quoting import Quoted, code, fenced, markdown, python_string, shown
from seqloom.modeling.canary import write_whole

CARD_NAME = "README.md"
TEMPLATE = "model_card.md.jinja"
TAGS = ("seqloom", "encoder-decoder")
DEMO_EXAMPLE = "22 novembre 2026"
"""What the demo's card asks; other cards quote nothing of the data, which may be private."""
ANY_EXAMPLE = "Your text here."
SPLITS = {"train": "training", "validation": "validation", "test": "test"}
SCORES = {
    "bleu": "BLEU",
    "tokenized_bleu": "BLEU (tokenised text)",
    "chrf": "chrF",
    "chrf++": "chrF++",
    "ter": "Translation edit rate (edits per 100 words)",
    "exact_match": "Exact match (% of outputs)",
    "cer": "Character error rate (edits per 100 characters)",
    "per": "Phone error rate (edits per 100 phones)",
    "wer": "Word error rate (%)",
    "bits_per_character": "Bits per character",
    "perplexity": "Perplexity per token",
    "token_accuracy": "Next token right (%)",
    "token_top5": "Next token among the first five (%)",
    "next_character": "Next character right (%)",
    "next_character_top5": "Next character among the first five (%)",
}
"""Scores that a card shows, in this order, with the names it gives them."""
WER_COUNTS = {
    "counts:outputs with any wrong phone": "% of outputs with any wrong phone",
    "counts:edits of words": "edits per 100 words",
}
"""What a word error rate counts, by its signature: the references decide."""
HUB_METRICS = frozenset(name for name in SCORES if not name.startswith(("token_a", "token_t", "next_")))
"""Those that are metrics on the Hub, and so go into the `model-index`."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_LAST_LINE = re.compile(
    r"<!-- Written by Seqloom \S+ for the weights ([0-9a-f]{64})\. Edit freely: .* sha256:([0-9a-f]{64}) -->\n?\Z"
)


class CardError(ValueError):
    """Records of which no card can be made."""


@dataclass(frozen=True)
class DataFacts:
    """One split of the data, as the run's data.json records it."""

    split: str
    """ "training", "validation" or "test"."""
    name: str
    """The files or the Hub data set; folders are left out of file names."""
    num_rows: int
    """Examples that were used."""
    files: tuple[tuple[str, int, str], ...] = ()
    """Name, bytes and SHA-256 of each file."""
    num_left_out: Mapping[str, int] = field(default_factory=dict)
    """Examples that were read and not used, by reason."""
    selected: Mapping[str, int] = field(default_factory=dict)
    """Examples that a condition of the recipe's `where` selected."""
    fingerprint: str = ""
    """Of content and reading options; equal fingerprints mean equal data."""

    @property
    def hub_dataset(self) -> str | None:
        """The data set's name on the Hub, if it came from there."""
        is_hub = not self.files and re.fullmatch(r"[\w.-]+/[\w.-]+(:\S+)?", self.name)
        return self.name.partition(":")[0] if is_hub else None


@dataclass(frozen=True)
class Score:
    """One score of one split."""

    split: str
    """ "validation" or "test"."""
    metric: str
    """Its key in results.json, without the split."""
    value: float
    interval: tuple[float, float] | None = None
    """95 % confidence interval."""
    signature: str | None = None
    """How it was measured, in sacreBLEU's words."""

    @property
    def name(self) -> str:
        """What the card calls it.

        Folders of a release before 0.1 hold under `wer`, without a signature, what is called `per` now.
        """
        if self.metric == "wer":
            return f"Word error rate ({WER_COUNTS.get(self.signature or '', 'edits per 100 space-separated units')})"
        return SCORES[self.metric]


@dataclass(frozen=True)
class CardFacts:
    """What a card says; None or empty: not known, and so not said."""

    model_id: str
    """`user/name` on the Hub, or the folder's name; what the usage code loads."""
    num_parameters: int
    """Tied weights counted once."""
    weights: str
    """SHA-256 of the weight files."""
    config: Mapping[str, Any]
    """config.json, defaults filled in."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """generation_config.json."""
    task: str | None = None
    """ "pairs" or "continuation"."""
    languages: tuple[str, ...] = ()
    """ISO 639 codes, the source's first."""
    license: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Every key of the resolved recipe."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions and hardware of the run."""
    results: Mapping[str, Any] = field(default_factory=dict)
    """results.json."""
    data: tuple[DataFacts, ...] = ()
    scores: tuple[Score, ...] = ()
    parent: Mapping[str, Any] = field(default_factory=dict)
    """What `run/parent.json` says of the folder with whose weights the training began; empty: random weights."""
    step: int | None = None
    """For a running checkpoint: the update it was saved at."""
    curve: str | None = None
    """The picture of loss and scores, if the folder has one."""

    @property
    def name(self) -> str:
        """The model's own name, without its owner."""
        return self.model_id.rpartition("/")[2]

    @property
    def has_run(self) -> bool:
        """Whether anything is known of the training."""
        return bool(self.recipe)

    @property
    def is_demo(self) -> bool:
        """Whether it learned the built-in dates."""
        return self.has_run and not self.recipe.get("train")

    @property
    def example(self) -> str:
        """A text for the usage code."""
        return DEMO_EXAMPLE if self.is_demo else ANY_EXAMPLE

    @property
    def pipeline_tag(self) -> str:
        """The Hub's task: translation where two languages are named, else text-generation.

        The Hub no longer has text2text-generation, which transformers 5 removed; the stock text-generation pipeline is
        right for every folder of ours, and so is the snippet that the Hub shows for it.
        """
        is_translation = self.task == "pairs" and len(set(self.languages)) == 2
        return "translation" if is_translation else "text-generation"


def read_facts(folder: str | PathLike[str], model_id: str | None = None) -> CardFacts:
    """Read what is known of a folder.

    Args:
        folder: a model; a running checkpoint takes data and recipe from the run that it lies in.
        model_id: its name on the Hub; None: the one that the run was told, or the folder's name.

    Raises:
        ValueError: if the folder holds no model.
    """
    folder = Path(folder)
    facts = CardFacts(
        model_id=model_id or folder.resolve().name,
        num_parameters=count_parameters(folder),
        weights=weights_sha256(folder),
        config=SeqloomConfig.from_pretrained(folder).to_dict(),
    )
    with _explained(folder):
        facts = replace(facts, generation=_read_json(folder / "generation_config.json"))
    step = _CHECKPOINT.fullmatch(folder.name)
    run = folder.parent if step else folder
    if run.name == "_saving":  # where a checkpoint grows, see training/fault_tolerance/checkpoints.py
        run = run.parent
    records = run / "run"
    if not _describes(records, facts.weights, is_running=step is not None):
        return facts
    with _explained(folder):
        return _with_run(facts, records, int(step[1]) if step else None, model_id)


def render_card(facts: CardFacts) -> str:
    """Return the text of README.md, with the digest by which an edited one is recognised."""
    template = card_environment().get_template(TEMPLATE)
    metadata, training = Quoted(metadata_of(facts).to_yaml()), training_rows(facts)
    text = template.render(facts=facts, metadata=metadata, training=training, version=version("seqloom"))
    return _signed(text.rstrip("\n") + "\n", facts.weights)


def card_environment() -> Environment:
    """Return what renders the templates of cards and Spaces; a value that a template misses is an error."""
    environment = Environment(
        loader=PackageLoader("seqloom.hub"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=markdown,  # whatever no filter has quoted for another place
    )
    environment.filters |= {"thousands": "{:,}".format, "python": python_string, "code": code, "fenced": fenced}
    return environment


def metadata_of(facts: CardFacts) -> ModelCardData:
    """Return the card's YAML head, as the Hub reads it."""
    datasets = [data.hub_dataset for data in facts.data if data.hub_dataset]
    results = [_eval_result(facts, score) for score in _index_scores(facts)]
    return ModelCardData(
        language=list(facts.languages) or None,
        license=facts.license,
        library_name="transformers",
        pipeline_tag=facts.pipeline_tag,
        tags=list(TAGS),
        datasets=list(dict.fromkeys(datasets)) or None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        base_model=facts.parent["name"] if facts.parent.get("is_on_hub") else None,
        model_name=facts.name,
        eval_results=results or None,
    )


def write_model_card(folder: str | PathLike[str], model_id: str | None = None) -> bool:
    """Write README.md into a folder, unless somebody has edited the one that is there.

    Args:
        folder: a model.
        model_id: its name on the Hub, if it has one.

    Returns:
        Whether the card was written; False: an edited README.md is kept.

    Raises:
        ValueError: if the folder holds no model.
    """
    folder = Path(folder)
    card, text = folder / CARD_NAME, current_card(folder, model_id)
    if card.is_file() and not is_generated(_read_text(card)):
        return False
    write_whole(card, text)
    if (folder / "run" / "results.json").is_file() and not (folder / "run" / "weights.json").exists():
        write_whole(folder / "run" / "weights.json", json.dumps({"sha256": weights_sha256(folder)}) + "\n")
    return True


def current_card(folder: str | PathLike[str], model_id: str | None = None) -> str:
    """Return the card a folder should have: the one there if it was edited, else one made from what is known now.

    A generated card that came without its run (a downloaded folder) knows more than the folder, and stays with its
    weights.
    """
    folder = Path(folder)
    old = _read_text(folder / CARD_NAME) if (folder / CARD_NAME).is_file() else None
    if old is not None and (not is_generated(old) or _knows_more(old, folder)):
        return old
    facts = read_facts(folder, model_id)
    with _explained(folder):
        return render_card(facts)


def card_bytes(folder: str | PathLike[str], model_id: str | None = None) -> bytes:
    """Return `current_card` as a file holds it: an edited one to the byte, whatever its line ends and encoding are."""
    path, text = Path(folder) / CARD_NAME, current_card(folder, model_id)
    return path.read_bytes() if path.is_file() and _read_text(path) == text else text.encode()


def is_generated(text: str) -> bool:
    """Return whether a card is as Seqloom wrote it."""
    match = _last_line(text)
    return match is not None and _digest(text[: match.start()]) == match[2]


def count_parameters(folder: str | PathLike[str]) -> int:
    """Return the number of values in a folder's weights, read from the headers of its safetensors files.

    Raises:
        ValueError: if there are none.
    """
    return sum(math.prod(shape) for path in _weight_files(Path(folder)) for shape in read_header(path).values())


def weights_sha256(folder: str | PathLike[str]) -> str:
    """Return the SHA-256 of the weights; of several files, that of their digests in the order of their names."""
    digests = [sha256_of(path) for path in _weight_files(Path(folder))]
    return digests[0] if len(digests) == 1 else _digest("".join(digests))


def training_rows(facts: CardFacts) -> list[tuple[str, str]]:
    """Return the rows of the card's table on training: only what the run recorded."""
    rows = [("Updates", _count(facts.results.get("updates")))]
    rows += _token_rows(facts)
    rows += [(label, _recipe_text(key, facts.recipe.get(key))) for key, label in _RECIPE_ROWS.items()]
    rows += [("Time", _describe_time(facts)), ("Hardware", _describe_hardware(facts))]
    versions = facts.environment.get("packages", {})
    rows += [("Software", ", ".join(f"{name} {number}" for name, number in versions.items()))]
    return [(label, text) for label, text in rows if text]


_RECIPE_ROWS = {
    "tokens_per_update": "Tokens per update (source + target, at most)",
    "learning_rate": "Peak learning rate",
    "lr_scheduler_type": "Schedule",
    "warmup_steps": "Warm-up updates",
    "label_smoothing_factor": "Label smoothing",
    "weight_decay": "Weight decay",
    "seed": "Seed",
    "tokenizer": "Vocabulary",
    "source_tokenizer": "Source vocabulary",
    "target_tokenizer": "Target vocabulary",
    "normalization": "Unicode normalisation",
}
"""Recipe keys that a card shows, and what it calls them."""


def _token_rows(facts: CardFacts) -> list[tuple[str, str]]:
    source, target = (facts.results.get(f"train_{side}_tokens") for side in ("source", "target"))
    epochs = facts.results.get("epochs")
    if source is None or target is None:
        return []
    rows = [("Tokens in an epoch", f"{source:,} source, {target:,} target")]
    if epochs is not None:
        rows += [("Epochs", f"{epochs:.2f}"), ("Tokens seen", f"about {_rounded((source + target) * epochs):,}")]
    return rows


def _describe_time(facts: CardFacts) -> str:
    seconds, resumed_at = facts.results.get("seconds"), facts.results.get("resumed_at")
    if seconds is None:
        return ""
    spent = f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.0f} min"
    return f"{spent} in all; the run was resumed at update {resumed_at:,}" if resumed_at else spent


def _describe_hardware(facts: CardFacts) -> str:
    device, processes = facts.environment.get("device"), facts.results.get("processes")
    if not device:
        return ""
    count = f"{processes} x " if processes and processes > 1 else ""
    return f"{count}{device} ({facts.environment.get('system', 'system unknown')})"


def _index_scores(facts: CardFacts) -> list[Score]:
    """What goes into the `model-index`: the test set's scores, or else the validation set's."""
    best = [score for score in facts.scores if score.split == "test"] or list(facts.scores)
    return [score for score in best if score.metric in HUB_METRICS]


def _eval_result(facts: CardFacts, score: Score) -> EvalResult:
    data = {data.split: data for data in facts.data}[score.split]
    how = {"signature": score.signature, "confidence_interval_95": list(score.interval) if score.interval else None}
    return EvalResult(
        task_type=facts.pipeline_tag,
        dataset_type=data.hub_dataset or "text",
        dataset_name=data.name,
        dataset_split=score.split,
        metric_type=score.metric.removeprefix("tokenized_"),
        metric_name=score.name,
        metric_value=round(score.value, 4),
        metric_args={key: value for key, value in how.items() if value is not None} or None,
    )


def _with_run(facts: CardFacts, records: Path, step: int | None, model_id: str | None) -> CardFacts:
    recipe = _read_recipe(records / "recipe.yaml")
    languages = recipe.get("languages") or ()
    results = {} if step else _read_json(records / "results.json")
    data = tuple(_data_facts(split, record) for split, record in _read_json(records / "data.json").items())
    return replace(
        facts,
        model_id=model_id or recipe.get("hub_model_id") or facts.model_id,
        task=recipe.get("task"),
        languages=(languages,) if isinstance(languages, str) else tuple(map(str, languages)),
        license=str(recipe["license"]) if recipe.get("license") else None,
        recipe=recipe,
        environment=_read_json(records / "environment.json"),
        results=results,
        data=data,
        parent=_read_json(records / "parent.json"),
        scores=tuple(_scores(results, {each.split for each in data})),
        step=step,
        curve=CURVE_NAME if results and (records.parent / CURVE_NAME).is_file() else None,
    )


def _describes(records: Path, weights: str, *, is_running: bool) -> bool:
    """Whether the run's records speak of these weights; those of a finished run were digested when its card was."""
    if not (records / "recipe.yaml").is_file():
        return False
    return is_running or _read_json(records / "weights.json").get("sha256", weights) == weights


def _data_facts(split: str, record: Mapping[str, Any]) -> DataFacts:
    files = tuple((_file_name(file["path"]), file["num_bytes"], file["sha256"]) for file in record.get("files", ()))
    left_out = {reason: count for reason, count in record.get("num_dropped", {}).items() if count}
    others = {"not selected": record.get("num_unselected", 0), "too long": record.get("num_too_long", 0)}
    left_out |= {reason: count for reason, count in others.items() if count}
    return DataFacts(
        split=SPLITS.get(split, split),
        name=" and ".join(name for name, _, _ in files) or str(record["name"]),
        num_rows=record["num_rows"] - record.get("num_too_long", 0),
        files=files,
        num_left_out=left_out,
        selected=record.get("num_selected", {}),
        fingerprint=record.get("fingerprint", ""),
    )


def _scores(results: Mapping[str, Any], splits: set[str]) -> list[Score]:
    """Read what results.json holds as `test_bleu`, `test_bleu_ci95` and `test_bleu_signature`; once it had no split."""
    found = []
    for split in ("test", "validation"):
        for metric in SCORES:
            value = results.get(f"{split}_{metric}")
            if isinstance(value, int | float) and split in splits:
                low_high = results.get(f"{split}_{metric}_ci95")
                bounds = (float(low_high[0]), float(low_high[1])) if low_high else None
                signature = results.get(f"{split}_{metric}_signature", results.get(f"{metric}_signature"))
                found.append(Score(split, metric, float(value), bounds, signature))
    return found


def _knows_more(card: str, folder: Path) -> bool:
    """Whether this generated card says of the same weights what no record in the folder says any more."""
    match = _last_line(card)
    has_records = (folder / "run" / "recipe.yaml").is_file() or _CHECKPOINT.fullmatch(folder.name) is not None
    return match is not None and not has_records and match[1] == weights_sha256(folder)


def _last_line(card: str) -> re.Match[str] | None:
    """Return what `_signed` wrote; a search from every place where it could begin may take an hour."""
    return _LAST_LINE.match(card, max(0, card.rfind("<!-- Written by Seqloom ")))


def _signed(text: str, weights: str) -> str:
    writer = f"Written by Seqloom {version('seqloom')} for the weights {weights}."
    return f"{text}<!-- {writer} Edit freely: a changed card is never overwritten. sha256:{_digest(text)} -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.glob("model*.safetensors")) if path.is_file()]
    if not files or not (folder / "config.json").is_file():
        raise ValueError(
            f"{shown(folder)} is not a model: it lacks config.json or model.safetensors; name the folder that seqloom "
            f"train wrote (its --output), or save the model there with save_pretrained."
        )
    return files


_SYNTAX = (YAMLError, TemplateError)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Say what a folder's records are, where they are not what a run writes."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, *_SYNTAX) as error:
        raise CardError(
            f"what {shown(folder)} records of its training, in run/ or generation_config.json, is not as Seqloom "
            f"writes it ({type(error).__name__}: {shown(error, 200)}); get the folder anew, or delete these."
        ) from error


def _read_recipe(path: Path) -> dict[str, Any]:
    """Every key of a recipe.yaml, out of its chapters."""
    chapters = _visible(yaml.load(read_text(path, MOST_RECIPE), Loader=PlainLoader) or {})
    return {key: value for values in chapters.values() for key, value in (values or {}).items()}


def _read_json(path: Path) -> dict[str, Any]:
    return _visible(json.loads(read_text(path))) if path.is_file() else {}


def _visible(record: Any) -> Any:
    """Return a record with every text in it on one line."""
    if isinstance(record, dict):
        return {shown(key): _visible(entry) for key, entry in record.items()}
    if isinstance(record, list):
        return [_visible(entry) for entry in record]
    return record if isinstance(record, int | float | None) else shown(record)


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _file_name(path: str) -> str:
    """Folders are left out: they say nothing about the data, and much about a computer."""
    return re.split(r"[/\\]", path)[-1]


def _rounded(number: float) -> int:
    """Three digits are right of it."""
    return int(float(f"{number:.3g}"))


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _recipe_text(key: str, value: Any) -> str:
    """Return a value of the recipe; a warm-up below 1 is a share of the run, auto is said elsewhere."""
    is_share = key == "warmup_steps" and isinstance(value, float) and 0 < value < 1
    return f"{100 * value:g} % of the run" if is_share else _plain(value)


def _plain(value: Any) -> str:
    return "" if value in (None, "auto") else f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)


__all__ = [
    "CardFacts",
    "DataFacts",
    "Score",
    "current_card",
    "is_generated",
    "read_facts",
    "render_card",
    "write_model_card",
]

"""The model card: only what a record says, readable for the Hub, usage code that runs, an edited card kept."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from seqloom.hub.model_card import (
    ANY_EXAMPLE,
    DEMO_EXAMPLE,
    SCORES,
    CardError,
    CardFacts,
    Score,
    count_parameters,
    current_card,
    is_generated,
    read_facts,
    render_card,
    write_model_card,
)
from tests.loopback_hub import card_errors

RECIPE = """
data:
  task: pairs
  train: [/home/jo/secret/train.de, /home/jo/secret/train.en]
  languages: [de, en]
tokenizer:
  tokenizer: bpe
training:
  license: cc-by-4.0
  learning_rate: 0.002
  tokens_per_update: 8192
  seed: 7
"""
SHA = "ab" * 32


def file_facts(name):
    return {"path": f"/home/jo/secret/{name}", "num_bytes": 1234567, "sha256": SHA}


DATA = {
    "train": {
        "name": "train.de and train.en",
        "files": [file_facts("train.de"), file_facts("train.en")],
        "num_rows": 29000,
        "num_dropped": {"target blank": 12},
        "num_unselected": 3,
        "num_selected": {"source=tatoeba": 1500},
        "num_too_long": 40,
        "fingerprint": "f" * 16,
    },
    "validation": {"name": "valid", "files": [file_facts("valid|odd.tsv")], "num_rows": 1000},
    "test": {"name": "owner/set:de-en", "files": [], "num_rows": 500},
}
RESULTS = {
    "seconds": 5400.0,
    "updates": 12000,
    "epochs": 3.5,
    "train_source_tokens": 400_000,
    "train_target_tokens": 411_000,
    "processes": 2,
    "test_bleu": 31.4159,
    "test_bleu_ci95": [30.1, 32.7],
    "test_bleu_signature": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0",
    "test_perplexity": 6.28,
    "test_loss": 1.8,
    "validation_bleu": 33.0,
}
ENVIRONMENT = {"device": "NVIDIA H100", "system": "Linux", "packages": {"seqloom": "0.1.0", "torch": "2.13.0"}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, taught_model, char_tokenizer):
    """A model and nothing else."""
    folder = tmp_path_factory.mktemp("card") / "de-en"
    model = taught_model()
    model.generation_config.update(max_new_tokens=9, num_beams=2)
    model.save_pretrained(folder)
    words = "abcdefghijklmnop"
    char_tokenizer(words + "0123" + words.upper()).save_pretrained(folder)
    return folder


@pytest.fixture
def bare(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "de-en")


@pytest.fixture
def finished(bare):
    """The model with the records of a finished run."""
    records = bare / "run"
    records.mkdir()
    (records / "recipe.yaml").write_text(RECIPE)
    for name, content in (("data", DATA), ("environment", ENVIRONMENT), ("results", RESULTS)):
        (records / f"{name}.json").write_text(json.dumps(content))
    return bare


def section(card, title):
    """Return the text under a heading."""
    return re.search(rf"\n## {title}\n(.*?)(?=\n## |\Z)", card, re.DOTALL)[1]


def row(card, first_cell):
    """Return the other cells of a table row."""
    (line,) = re.findall(rf"^\| {re.escape(first_cell)} \|(.*)\|$", card, re.MULTILINE)
    return [cell.strip() for cell in line.split("|")]


class TestContent:
    def test_the_head_is_what_the_hub_reads(self, finished):
        write_model_card(finished, "jo/de-en")
        card = ModelCard.load(finished / "README.md")
        assert card.data.language == ["de", "en"]
        assert card.data.license == "cc-by-4.0"
        assert card.data.library_name == "transformers"
        assert card.data.pipeline_tag == "translation"
        assert card.data.tags == ["seqloom", "encoder-decoder"]
        assert card.data.datasets == ["owner/set"]
        assert card.data.metrics == ["bleu", "perplexity"]
        assert card_errors((finished / "README.md").read_text()) == []

    def test_scores_stand_in_the_model_index_with_interval_and_signature(self, finished):
        write_model_card(finished, "jo/de-en")
        bleu, perplexity = ModelCard.load(finished / "README.md").data.eval_results
        assert (bleu.metric_type, bleu.metric_value) == ("bleu", 31.4159)
        assert (bleu.dataset_name, bleu.dataset_type, bleu.dataset_split) == ("owner/set:de-en", "owner/set", "test")
        assert bleu.metric_args == {
            "signature": RESULTS["test_bleu_signature"],
            "confidence_interval_95": [30.1, 32.7],
        }
        assert (perplexity.metric_type, perplexity.metric_value, perplexity.metric_args) == ("perplexity", 6.28, None)

    def test_every_metric_has_a_name_on_the_card(self):
        from seqloom.training.metrics import METRICS

        assert set(METRICS) <= set(SCORES)

    def test_scores_are_in_the_text_too(self, finished):
        scores = section(current_card(finished), "Scores")
        assert "| test | BLEU | 31.42 | 30.10 to 32.70 |" in scores
        assert "| test | Perplexity per token | 6.28 |  |" in scores
        assert "| validation | BLEU | 33.00 |  |" in scores
        assert RESULTS["test_bleu_signature"] in scores
        assert "loss" not in scores

    def test_signatures_of_runs_that_named_no_split_are_read(self, finished):
        results = {"bleu_signature" if name == "test_bleu_signature" else name: each for name, each in RESULTS.items()}
        (finished / "run" / "results.json").write_text(json.dumps(results))
        assert RESULTS["test_bleu_signature"] in section(current_card(finished), "Scores")

    def test_data_is_told_with_sizes_hashes_and_what_was_left_out(self, finished):
        data = section(current_card(finished), "Data")
        name = "train.de and train.en; source=tatoeba: 1,500"
        assert f"| training | {name} | 28,960 | 12 target blank, 3 not selected, 40 too long |" in data
        assert "| test | owner/set:de-en | 500 | none |" in data
        assert f"| training | train.en | 1,234,567 | `{SHA}` |" in data
        assert r"| validation | valid\|odd.tsv | 1,234,567" in data, "no name breaks the table"

    def test_no_path_of_the_computer_is_published(self, finished):
        assert "secret" not in current_card(finished)

    def test_training_is_told_from_recipe_results_and_environment(self, finished):
        card = current_card(finished)
        assert row(card, "Updates") == ["12,000"]
        assert row(card, "Tokens in an epoch") == ["400,000 source, 411,000 target"]
        assert row(card, "Tokens seen") == ["about 2,840,000"]
        assert row(card, "Peak learning rate") == ["0.002"]
        assert row(card, "Time") == ["90 min"]
        assert row(card, "Hardware") == ["2 x NVIDIA H100 (Linux)"]
        assert row(card, "Software") == ["seqloom 0.1.0, torch 2.13.0"]
        assert "Warm-up" not in card, "what the recipe does not hold is left out"

    def test_a_warm_up_that_is_a_share_is_told_as_one(self, finished):
        recipe = finished / "run" / "recipe.yaml"
        recipe.write_text(re.sub(r"( *)learning_rate: .*", r"\g<0>\n\1warmup_steps: 0.1", recipe.read_text()))
        assert "| Warm-up updates | 10 % of the run |" in current_card(finished)

    def test_the_curve_is_shown_where_there_is_one(self, finished):
        assert "learning_curve.png" not in current_card(finished)
        (finished / "learning_curve.png").write_bytes(b"\x89PNG")
        assert "![Loss and scores over the updates](learning_curve.png)" in section(current_card(finished), "Training")

    def test_it_says_how_to_cite_it(self, finished):
        assert "@misc{seqloom," in section(current_card(finished), "Citation")
        assert "author = {{The Seqloom developers}}" in current_card(finished)

    def test_a_resumed_run_says_so(self, finished):
        (finished / "run" / "results.json").write_text(json.dumps(RESULTS | {"resumed_at": 9000, "seconds": 60}))
        assert row(current_card(finished), "Time") == ["60 s in all; the run was resumed at update 9,000"]

    def test_the_model_is_described_from_its_own_files(self, finished):
        facts = read_facts(finished)
        from transformers import AutoModelForSeq2SeqLM

        model = AutoModelForSeq2SeqLM.from_pretrained(finished)
        assert facts.num_parameters == count_parameters(finished) == model.num_parameters()
        card = render_card(facts)
        assert row(card, "Parameters") == [f"{model.num_parameters():,}"]
        assert row(card, "Width") == [str(model.config.d_model)]
        assert "decodes with 2 beams, at most 9 new tokens" in card

    def test_licence(self, finished):
        assert "The model: `cc-by-4.0`." in section(current_card(finished), "Licence")
        (finished / "run" / "recipe.yaml").write_text(RECIPE.replace("  license: cc-by-4.0\n", ""))
        card = current_card(finished)
        assert "No licence was stated for the weights" in section(card, "Licence")
        assert "license" not in card.split("---")[1]


class TestNoClaims:
    def test_without_a_run_nothing_is_said_of_training_and_quality(self, bare):
        write_model_card(bare)
        card = (bare / "README.md").read_text()
        for title in ("Data", "Training", "Scores"):
            assert f"## {title}" not in card
        assert "trained from" not in card
        assert "How it was trained is not recorded in its folder" in card
        data = ModelCard.load(bare / "README.md").data
        assert (data.eval_results, data.language, data.license, data.metrics) == (None, None, None, None)
        assert card_errors(card) == []

    @pytest.mark.parametrize("lost", ["data", "environment", "results"])
    def test_a_lost_record_takes_its_section_along_and_nothing_else(self, finished, lost):
        (finished / "run" / f"{lost}.json").unlink()
        card = current_card(finished)
        titles = re.findall(r"^## (\w+)", card, re.MULTILINE)
        gone = {"data": {"Data", "Scores"}, "environment": set(), "results": {"Scores"}}[lost]
        assert set(titles) == {"Use", "Data", "Training", "Scores", "Decoding", "Limits", "Citation", "Licence"} - gone
        assert card_errors(card) == []

    def test_other_weights_do_not_inherit_scores(self, finished):
        write_model_card(finished)
        assert "31.42" in (finished / "README.md").read_text()
        weights = finished / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
        assert write_model_card(finished)
        card = (finished / "README.md").read_text()
        assert "31.42" not in card
        assert "How it was trained is not recorded" in card

    def test_a_running_checkpoint_knows_its_run_but_no_scores(self, finished):
        checkpoint = finished / "checkpoint-300"
        checkpoint.mkdir()
        for name in ("config.json", "model.safetensors", "generation_config.json"):
            shutil.copy(finished / name, checkpoint)
        write_model_card(checkpoint)
        card = (checkpoint / "README.md").read_text()
        assert "saved at update 300; it has no final scores" in card
        assert "## Data" in card
        assert "## Scores" not in card
        assert "12,000" not in card, "the updates of the whole run are not its own"

    def test_a_folder_without_a_model_is_refused(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"is not a model: it lacks config.json or model.safetensors; name the folder"
        ):
            write_model_card(tmp_path)


class TestKeeping:
    def test_an_edited_card_is_kept(self, finished):
        assert write_model_card(finished)
        card = finished / "README.md"
        card.write_text(card.read_text().replace("# de-en", "# My model"))
        edited = card.read_text()
        assert not is_generated(edited)
        assert not write_model_card(finished)
        assert card.read_text() == edited == current_card(finished)

    def test_the_last_line_is_found_at_once(self, bare):
        """A search from each of these places would take an hour."""
        (bare / "README.md").write_text(
            f"<!-- Written by Seqloom x for the weights {'a' * 64}. Edit freely: " * 100_000
        )
        assert not write_model_card(bare)

    def test_records_of_many_aliases_are_refused(self, finished):
        merges = "- {<<: *a}\n" * 10_000
        (finished / "run" / "recipe.yaml").write_text(f"- &a {{{', '.join(map(str, range(10_000)))}}}\n{merges}")
        with pytest.raises(CardError, match=r"is not as Seqloom writes it \(ComposerError: write \*a out"):
            write_model_card(finished)

    def test_a_card_written_by_hand_is_kept(self, bare):
        (bare / "README.md").write_text("# Mine\n")
        assert not write_model_card(bare)
        assert (bare / "README.md").read_text() == "# Mine\n"

    def test_a_generated_card_follows_the_run(self, finished):
        (finished / "run" / "results.json").rename(finished / "later.json")
        write_model_card(finished)
        assert "31.42" not in (finished / "README.md").read_text()
        (finished / "later.json").rename(finished / "run" / "results.json")
        assert write_model_card(finished)
        assert "31.42" in (finished / "README.md").read_text()

    def test_a_downloaded_card_knows_more_than_its_folder(self, finished):
        write_model_card(finished)
        card = (finished / "README.md").read_text()
        shutil.rmtree(finished / "run")
        assert write_model_card(finished)
        assert (finished / "README.md").read_text() == card
        weights = finished / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
        assert write_model_card(finished)
        assert "31.42" not in (finished / "README.md").read_text(), "but only with its weights"

    def test_writing_twice_changes_nothing(self, finished):
        write_model_card(finished)
        before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
        write_model_card(finished)
        assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def facts(**known):
    config = {"encoder_layers": 2, "decoder_layers": 2, "d_model": 8, "encoder_attention_heads": 2, "vocab_size": 99}
    config |= {"position_embedding_type": "learned", "max_position_embeddings": 512}
    return CardFacts(**{"model_id": "jo/m", "num_parameters": 1, "weights": "0" * 64, "config": config, **known})


class TestTasks:
    @pytest.mark.parametrize(
        ("task", "languages", "tag", "line"),
        [
            ("pairs", ("de", "en"), "translation", "Translates from de to en."),
            (
                "pairs",
                ("en",),
                "text-generation",
                "Writes a target text for a source text (en), as its training pairs do.",
            ),
            ("pairs", (), "text-generation", "Writes a target text for a source text, as its training pairs do."),
            ("continuation", ("zh",), "text-generation", "Continues a text (zh)."),
        ],
    )
    def test_the_task_decides_tag_and_first_line(self, task, languages, tag, line):
        known = facts(task=task, languages=languages, recipe={"train": ["a"]})
        card = render_card(known)
        assert known.pipeline_tag == tag
        assert line in card
        assert ('pipeline("translation"' in card) == (tag == "translation")
        assert card_errors(card) == []

    def test_the_demo_asks_for_a_date(self):
        from seqloom.training.demo import DEMO_EXAMPLES

        assert DEMO_EXAMPLE in DEMO_EXAMPLES
        assert f'"{DEMO_EXAMPLE}"' in render_card(facts(task="pairs", recipe={"train": []}))
        assert ANY_EXAMPLE in render_card(facts())

    def test_learned_positions_are_a_limit(self):
        assert "- It reads at most 512 tokens." in render_card(facts())


@pytest.mark.slow
def test_the_usage_code_runs_as_it_stands(finished):
    """Every Python block of the card, in an environment that need not know Seqloom."""
    write_model_card(finished)
    blocks = re.findall(r"```python\n(.*?)```", (finished / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    script = "import sys\n" + "\n".join(blocks) + "\nassert 'seqloom' not in sys.modules\n"
    environment = {**os.environ, "HF_HOME": str(finished.parent / "home"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=finished.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert len(run.stdout.splitlines()) == 3


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        (None, "Word error rate (edits per 100 space-separated units)"),  # of a folder from before `per`
        ("counts:edits of words", "Word error rate (edits per 100 words)"),
        ("counts:outputs with any wrong phone", "Word error rate (% of outputs with any wrong phone)"),
    ],
)
def test_a_word_error_rate_says_what_it_counts(signature, name):
    assert Score("test", "wer", 12.5, signature=signature).name == name

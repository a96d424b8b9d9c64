"""Several models write together: what they write is what the mean of their log-probabilities says."""

import shutil

import pytest
import torch

from seqloom.hub.decoding.engines import Search, TorchEngine
from seqloom.hub.generate import GenerateError, Job, generate_file

SOURCES = [[5, 6, 7, 2], [9, 4, 11, 15, 2], [8, 2]]


@pytest.fixture
def engine(tiny_model):
    """A model of random weights with two others."""

    def build(**search):
        models = [tiny_model(seed=seed) for seed in range(3)]
        for model in models:
            model.generation_config.update(max_new_tokens=6, eos_token_id=2, pad_token_id=0, decoder_start_token_id=1)
        tokenizer = None
        engine = TorchEngine.of(models[0], tokenizer, Search(**search))
        engine.others = models[1:]
        return engine

    return build


def mean_of(engine, source, written):
    """The mean log-probabilities of what comes next: (V,)."""
    ids = torch.tensor([source]), torch.tensor([[1, *written]])
    models = [engine.model, *engine.others]
    logits = [model(input_ids=ids[0], decoder_input_ids=ids[1]).logits[0, -1] for model in models]
    return torch.stack(logits).log_softmax(-1).mean(dim=0)


@torch.no_grad()
def test_greedy_takes_the_likeliest_of_the_mean(engine):
    ensemble = engine(num_beams=1)
    for source, (found,) in zip(SOURCES, ensemble.write(SOURCES, None, seed=None, in_detail=False), strict=True):
        written = []
        while len(written) < 6 and (best := int(mean_of(ensemble, source, written).argmax())) != 2:
            written.append(best)
        assert found.tokens == written
    alone = engine(num_beams=1)
    alone.others = []
    assert alone.write(SOURCES, None, seed=None, in_detail=False) != ensemble.write(
        SOURCES, None, seed=None, in_detail=False
    ), "one of them alone writes something else"


@torch.no_grad()
def test_beams_find_what_the_mean_scores_higher_and_scores_are_its(engine):
    ensemble = engine(num_beams=4, n_best=2)
    greedy = engine(num_beams=1, n_best=1)
    for source, several, one in zip(
        SOURCES,
        ensemble.write(SOURCES, None, seed=None, in_detail=False),
        greedy.write(SOURCES, None, seed=None, in_detail=False),
        strict=True,
    ):
        for found in (*several, *one):
            ids = [*found.tokens, *([] if found.is_cut else [2])]
            expected = [mean_of(ensemble, source, ids[:place])[token] for place, token in enumerate(ids)]
            assert found.log_probs == pytest.approx([float(each) for each in expected], abs=1e-4)
        means = [sum(found.log_probs) / len(found.log_probs) for found in (*several, *one)]
        assert means[0] >= max(means) - 1e-5


def test_an_ensemble_reads_what_each_of_its_models_can(engine, tiny_model):
    ensemble = engine()
    ensemble.others = [tiny_model(position_embedding_type="learned", max_position_embeddings=16)]
    assert ensemble.longest_source == (16, "the 16 positions that the model has learned")


def test_an_ensemble_of_other_vocabularies_is_refused(taught_model, char_tokenizer, tmp_path):
    for name, characters in (("a", "abcdefgh"), ("b", "abcdefgx")):
        taught_model().save_pretrained(tmp_path / name)
        char_tokenizer(characters).save_pretrained(tmp_path / name)
    (tmp_path / "in.txt").write_text("ab\n")

    def job(**keys):
        return Job(str(tmp_path / "a"), str(tmp_path / "in.txt"), str(tmp_path / "out.txt"), **keys)

    with pytest.raises(GenerateError, match=r"has another vocabulary than .*but for --seed"):
        generate_file(job(ensemble=(str(tmp_path / "b"),)))
    with pytest.raises(GenerateError, match="engine=ctranslate2 searches with one model"):
        generate_file(job(ensemble=(str(tmp_path / "a"),), engine="ctranslate2"))
    shutil.copy(tmp_path / "a" / "tokenizer.json", tmp_path / "b" / "tokenizer.json")
    generate_file(job(ensemble=(str(tmp_path / "b"),)))
    assert (tmp_path / "out.txt").is_file()

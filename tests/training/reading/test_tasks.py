"""The two tasks: pairs pass through, documents are cut where a reader would allow it, always in the same places."""

import logging
import unicodedata

import pytest
import regex
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from seqloom.training.reading import tasks
from seqloom.training.reading.tasks import ContinuationTask, PairsTask, find_cuts, get_task, split_document
from seqloom.training.reading.text_file import is_blank

ZH = "今天的天气很好，我们去公园散步。"
EN = "The quick brown fox jumps over the lazy dog."

documents = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=40)
"""Any text; and, below, text of the characters that are easily cut wrongly."""
difficult = st.text(
    st.sampled_from("a \u0301e\u200d\ufe0f👩💻🏽🇨🇳🇩ก่ำ한ᄒ\u1161\u11ab\u3000天，é\r\n\u200b"), max_size=12
)


def corpus(*texts: str) -> Dataset:
    return Dataset.from_dict({"text": list(texts)})


def pairs_of(dataset: Dataset) -> list[tuple[str, str]]:
    return list(zip(dataset["source"], dataset["target"]))


class TestSplitDocument:
    @settings(max_examples=200, deadline=None)
    @given(documents | difficult, st.integers(0, 2**40), st.integers(0, 2**40), st.integers(1, 5))
    def test_both_sides_are_text_and_nothing_is_lost(self, text, seed, index, num_splits):
        pairs = split_document(text, seed=seed, index=index, num_splits=num_splits)
        assert len(pairs) == len(set(pairs)) == min(num_splits, len(find_cuts(text)))
        for prompt, continuation in pairs:
            assert prompt + continuation == text
            assert not is_blank(prompt)
            assert not is_blank(continuation)
        assert pairs == split_document(text, seed=seed, index=index, num_splits=num_splits)

    @settings(max_examples=300, deadline=None)
    @given(documents | difficult)
    def test_no_visible_character_is_cut(self, text):
        """Held against the grapheme clusters of the regex package, which follows Unicode's UAX 29."""
        boundaries = {match.end() for match in regex.finditer(r"\X", text)}
        assert set(find_cuts(text)) <= boundaries

    @pytest.mark.parametrize(
        "cluster",
        [
            "e\u0301",
            "👨‍👩‍👧‍👦",
            "👍🏽",
            "❤️",
            "🇨🇳",
            "葛\U000e0100",
            "กำ",
            "ก่",
            "한",
            unicodedata.normalize("NFD", "한"),
            "각\u11a8",
            "क्षि",
            "र्त्स्न्य",
        ],
    )
    def test_clusters_stay_whole(self, cluster):
        assert find_cuts(cluster) == []
        assert find_cuts(f"天{cluster}天") == [1, 1 + len(cluster)]

    def test_what_only_looks_joined_is_cut_as_unicode_says(self):
        """The second version of the rule; the first kept these whole."""
        assert find_cuts("မာ") == [1], "Burmese AA is a character of its own"
        assert find_cuts("क्a") == [2], "a virama takes the next letter of its script, not any"
        assert find_cuts("天\u200d天") == [2], "a joiner joins pictures"

    def test_the_signs_of_a_script_without_spaces_part_words_too(self):
        assert find_cuts("「GPU」ー３３㍿x") == [1, 4, 5, 6, 7, 8, 9]
        assert find_cuts("it's 5 ʻō·a") == [4, 6]

    def test_a_change_of_the_rule_cuts_a_cached_corpus_anew(self, monkeypatch):
        """A corpus cut by an older rule is never read from the cache."""
        dataset = corpus("မာမာ")
        now = ContinuationTask().to_pairs(dataset)
        monkeypatch.setattr(tasks, "CUT_RULE", tasks.CUT_RULE - 1)
        assert ContinuationTask().to_pairs(dataset)._fingerprint != now._fingerprint

    def test_flags_are_cut_between_pairs_of_letters(self):
        assert find_cuts("🇨🇳🇩🇪🇫🇷") == [2, 4]

    def test_words_stay_whole_and_the_space_goes_with_the_continuation(self):
        pairs = split_document(EN, seed=0, index=0, num_splits=100)
        assert [prompt for prompt, _ in pairs] == [" ".join(EN.split()[:n]) for n in range(1, 9)]
        assert all(continuation.startswith(" ") for _, continuation in pairs)

    def test_chinese_is_cut_between_any_two_characters(self):
        assert find_cuts(ZH) == list(range(1, len(ZH)))

    def test_a_space_in_chinese_does_not_forbid_the_other_places(self):
        assert find_cuts("床前明月光\u3000疑是地上霜") == [1, 2, 3, 4, 5, 7, 8, 9, 10]

    def test_numbers_and_names_inside_chinese_stay_whole(self):
        assert find_cuts("在2026年用GPU") == [1, 5, 6, 7]

    def test_one_word_is_cut_between_characters(self):
        assert find_cuts("CC(=O)") == [1, 2, 3, 4, 5]
        assert find_cuts("  word ") == [3, 4, 5]

    @pytest.mark.parametrize("text", ["", "a", " a ", "天", "e\u0301", "\u200ba", " "])
    def test_one_character_cannot_be_cut(self, text):
        assert split_document(text, seed=0, index=0) == []

    def test_seed_and_index_decide(self):
        cuts = {
            name: [len(split_document(EN, **{"seed": 0, "index": 0, name: n})[0][0]) for n in range(200)]
            for name in ("seed", "index")
        }
        assert all(set(found) == set(find_cuts(EN)) for found in cuts.values())
        assert len({tuple(found) for found in cuts.values()}) == 2

    def test_every_place_is_equally_likely(self):
        num_draws, places = 4000, find_cuts(ZH)
        counts = dict.fromkeys(places, 0)
        for index in range(num_draws):
            counts[len(split_document(ZH, seed=1, index=index)[0][0])] += 1
        expected = num_draws / len(places)
        assert sum((count - expected) ** 2 / expected for count in counts.values()) < 36.1  # chi squared, 14 df, 0.1 %


class TestContinuationTask:
    def test_one_pair_per_document_in_order(self):
        pairs = pairs_of(ContinuationTask().to_pairs(corpus(ZH, EN, "one word"), seed=3))
        assert [source + target for source, target in pairs] == [ZH, EN, "one word"]

    def test_is_the_split_of_the_document(self):
        pairs = pairs_of(ContinuationTask(num_splits=2).to_pairs(corpus(ZH, EN), seed=3))
        assert pairs == [
            pair for n, text in enumerate((ZH, EN)) for pair in split_document(text, seed=3, index=n, num_splits=2)
        ]

    def test_other_columns_are_left_behind(self):
        dataset = Dataset.from_dict({"id": [1], "text": [ZH]})
        assert ContinuationTask().to_pairs(dataset).column_names == ["source", "target"]

    def test_the_number_of_processes_changes_nothing(self):
        dataset = corpus(*(ZH[n % 9 :] for n in range(50)))
        alone = ContinuationTask(num_splits=3).to_pairs(dataset, seed=1)
        together = ContinuationTask(num_splits=3).to_pairs(dataset, seed=1, num_proc=2)
        assert pairs_of(alone) == pairs_of(together)

    def test_what_cannot_be_cut_is_dropped_and_counted(self, caplog):
        with caplog.at_level(logging.WARNING):
            pairs = ContinuationTask(num_splits=2).to_pairs(corpus("a", ZH, "天", EN))
        assert len(pairs) == 4
        assert caplog.messages == [
            "Dropped 2 of 4 documents: one character cannot be cut into prompt and continuation."
        ]

    def test_nothing_left(self):
        with pytest.raises(ValueError, match=r"None of the 2 documents can be cut .* a document needs at least two"):
            ContinuationTask().to_pairs(corpus("a", "天"))


class TestPairsTask:
    def test_is_the_identity_on_its_columns(self):
        dataset = Dataset.from_dict({"target": ["eins"], "id": [1], "source": ["one"]})
        pairs = PairsTask().to_pairs(dataset)
        assert pairs.column_names == ["source", "target"]
        assert pairs[0] == {"source": "one", "target": "eins"}


def test_tasks_by_name():
    assert get_task("pairs") == PairsTask()
    assert get_task("continuation", num_splits=4) == ContinuationTask(num_splits=4)

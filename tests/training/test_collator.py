"""Padding: what stands where, and that nothing else is added."""

from seqloom.training.collator import IGNORED_LABEL, SeqloomCollator


def test_sources_and_targets_are_padded_to_their_own_longest():
    batch = SeqloomCollator(pad_token_id=0, decoder_start_token_id=1)(
        [{"input_ids": [5, 6, 2], "labels": [7, 2]}, {"input_ids": [5, 2], "labels": [8, 9, 7, 2]}]
    )
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["input_ids"].tolist() == [[5, 6, 2], [5, 2, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[7, 2, IGNORED_LABEL, IGNORED_LABEL], [8, 9, 7, 2]]


def test_a_pad_token_inside_a_source_stays_visible():
    batch = SeqloomCollator(pad_token_id=0, decoder_start_token_id=1)([{"input_ids": [0, 5, 0, 2]}, {"input_ids": [5]}])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert "labels" not in batch


def test_a_collator_that_packs_lays_sentences_end_to_end():
    examples = [{"input_ids": [5, 6, 2], "labels": [7, 2]}, {"input_ids": [5, 2], "labels": [8, 9, 7, 2]}]
    batch = SeqloomCollator(pad_token_id=0, decoder_start_token_id=1, packs=True)(examples)
    assert {name: value.tolist() for name, value in batch.items() if not isinstance(value, int)} == {
        "input_ids": [[5, 6, 2, 5, 2]],
        "position_ids": [[0, 1, 2, 0, 1]],
        "decoder_input_ids": [[1, 7, 1, 8, 9, 7]],
        "decoder_position_ids": [[0, 1, 0, 1, 2, 3]],
        "labels": [[7, 2, 8, 9, 7, 2]],
        "cu_seq_lens_q": [0, 2, 6],
        "cu_seq_lens_k": [0, 3, 5],
    }
    assert (batch["max_length_q"], batch["max_length_k"]) == (4, 3)

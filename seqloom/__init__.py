"""Seqloom: encoder-decoder Transformers, trained from scratch, at home in the Hugging Face world."""

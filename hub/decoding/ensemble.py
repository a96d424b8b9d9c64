"""Several models write together: at each step the mean of their log-probabilities decides.

The first is searched with by `generate`; the others read what it has written so far, as it is proposed, and have their
say before the search chooses. They keep no cache, for beams change their places: a step costs them the whole output.

B sources    K beams    S source length    T output so far    V vocabulary    D width
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import LogitsProcessor
from transformers.modeling_outputs import BaseModelOutput


class MeanOfModels(LogitsProcessor):
    """Averages the log-probabilities of the searched model with those of others."""

    def __init__(self, others: Sequence[Any], inputs: dict[str, Tensor]) -> None:
        """Let the others read the sources.

        Args:
            others: models of the same vocabulary.
            inputs: `input_ids` and `attention_mask`, (B, S), as `generate` gets them.
        """
        self.others, self.mask = others, inputs["attention_mask"]
        self.states = [model.get_encoder()(**inputs).last_hidden_state for model in others]  # (B, S, D) each

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the mean of all models.

        Args:
            input_ids: (B * K, T) written so far.
            scores: (B * K, V) of the searched model, logits or log-probabilities.
        """
        copies = len(input_ids) // len(self.mask)
        total = scores.float().log_softmax(-1)
        for model, states in zip(self.others, self.states, strict=True):
            logits = model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states.repeat_interleave(copies, dim=0)),
                attention_mask=self.mask.repeat_interleave(copies, dim=0),
                decoder_input_ids=input_ids,
                use_cache=False,
            ).logits[:, -1]  # (B * K, V)
            total = total + logits.float().log_softmax(-1)
        return total / (1 + len(self.others))


def log_probs_of(logits: Tensor, sequences: Tensor) -> Tensor:
    """Return (B, T) log-probabilities of the tokens of some outputs.

    Args:
        logits: (B, T, V) of a forced pass over them.
        sequences: (B, 1 + T), the start token in front.
    """
    logits = logits.float()
    return logits.gather(-1, sequences[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)


__all__ = ["MeanOfModels", "log_probs_of"]

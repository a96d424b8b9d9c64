"""What was probably meant by a misspelt name: the half sentence that every such message has in common."""

from collections.abc import Iterable
from difflib import get_close_matches

SENTENCE = " Did you mean {!r}?"
"""The form that follows a full stop."""


def did_you_mean(value: object, known: Iterable[object], form: str = "did you mean {}? ", cutoff: float = 0.6) -> str:
    """Return what to say of the known name that is nearest to `value`; nothing where none is near.

    Args:
        value: what was written.
        known: what may be written.
        form: the words around the name.
        cutoff: how much alike they have to be, in [0, 1].
    """
    near = get_close_matches(str(value), map(str, known), n=1, cutoff=cutoff)
    return form.format(near[0]) if near else ""


__all__ = ["SENTENCE", "did_you_mean"]

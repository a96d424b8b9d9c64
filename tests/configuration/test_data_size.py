"""Tables of sizes: larger data never gets less, and each row is a recipe that can be trained."""

import itertools

from seqloom.configuration.data_size import SIZES, STRING_SIZES, DataSize, settings_of, size_for
from seqloom.configuration.presets import PRESETS


def test_larger_data_never_gets_less() -> None:
    for sizes in (SIZES, STRING_SIZES):
        rows = [settings_of(size) for size in sizes]
        names = [row["preset"] for row in rows]
        assert names == sorted(names, key=list(PRESETS).index)
        assert all(a["dropout"] >= b["dropout"] for a, b in itertools.pairwise(rows))
        assert all(a["num_train_epochs"] > b["num_train_epochs"] for a, b in itertools.pairwise(rows))


def test_a_size_is_looked_up_by_its_bounds() -> None:
    def rows(counts: tuple[int, ...], sizes: tuple[DataSize, ...]) -> list[DataSize]:
        return [size_for(count, sizes) for count in counts]

    assert rows((1, 14_999, 15_000, 10**12), SIZES) == [SIZES[0], SIZES[0], SIZES[1], SIZES[-1]]
    assert rows((1, 107_413, 10**12), STRING_SIZES) == [STRING_SIZES[0], STRING_SIZES[3], STRING_SIZES[-1]]

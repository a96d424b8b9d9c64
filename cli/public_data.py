"""`seqloom data NAME`: public corpora, fetched from GitHub, checked, and laid out for the recipes.

    public_data.sha256      every file that is fetched: its digest, and OWNER/REPOSITORY/COMMIT/PATH on GitHub
        |  fetched once; a person, or a mirror, can put it there too
        v
    FOLDER/downloads/PATH
        |  CORPORA: output <- how it is made of which of them; what is made is held against its digest
        v
    FOLDER/train.tsv.gz ..., SOURCE.md: where it comes from, whose it is, what each file holds

No corpus is part of Seqloom, and whoever fetches one is bound by its licence. It lies beside the package, for what lies
in it imports torch, and this takes the standard library until something is fetched.
"""

import gzip
import hashlib
import json
import os
import shlex
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

MIRROR = "SEQLOOM_DATA_MIRROR"
"""Environment variable: what stands in front of OWNER/REPOSITORY/COMMIT/PATH instead of `HOME`."""

HOME = "https://raw.githubusercontent.com"


class PublicDataError(ValueError):
    """A corpus that cannot be fetched, checked or written."""


@dataclass(frozen=True)
class Output:
    """One file of a corpus."""

    sources: tuple[str, ...]
    """OWNER/REPOSITORY/COMMIT/PATH of each file that it is made of."""
    make: "Callable[..., str] | None" = None
    """Takes their texts, one argument each; None: the one source is copied."""
    sha256: str | None = None
    """Of what is made, uncompressed; None: copied, and the source's own digest is enough."""


@dataclass(frozen=True)
class Corpus:
    """A corpus, and whose it is."""

    about: str
    licence: str
    split: str
    """Which parts are official, and how the others were drawn."""
    outputs: Mapping[str, Output]
    """Name in the folder -> how it is made."""
    use: str
    """The command that it is for."""

    @property
    def sources(self) -> list[str]:
        """All that is fetched, each once."""
        return list(dict.fromkeys(source for output in self.outputs.values() for source in output.sources))


# How files become others


def hundredth(key: str) -> int:
    """Return 0 to 99, for one text always the same: the split of whoever draws by it does not depend on an order."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % 100


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n")


def _joined(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _rows_of_scan(text: str) -> str:
    """IN: command OUT: actions -> command, tab, actions."""
    return _joined(["\t".join(line.removeprefix("IN: ").split(" OUT: ")) for line in _lines(text)])


def _rows_in(hundredths: range, convert: Callable[[str], str] = str) -> Callable[[str], str]:
    """Keep the rows whose first column falls into a part of the hundred: all rows of a word stay together."""

    def make(text: str) -> str:
        return _joined([row for row in _lines(convert(text)) if hundredth(row.split("\t")[0]) in hundredths])

    return make


_EVERYDAY_PARTS = {"valid": range(3), "test": range(3, 6), "train": range(6, 100)}


def _everyday_chinese(part: str) -> Callable[..., str]:
    """Take Tatoeba's Chinese sentences, and KdConv's dialogues as wholes, each text once: first in training."""

    def make(tatoeba: str, *dialogues: str) -> str:
        groups = [("tatoeba", [line.split("\t")[1]]) for line in _lines(tatoeba) if "\t" in line]
        for text in dialogues:
            groups += [("kdconv", [turn["message"] for turn in each["messages"]]) for each in json.loads(text)]
        drawn = [(hundredth("\n".join(texts)), source, texts) for source, texts in groups]
        kept: dict[str, tuple[int, str]] = {}
        for number, source, texts in sorted(drawn, key=lambda group: group[0] not in _EVERYDAY_PARTS["train"]):
            for text in map(str.strip, texts):
                if 4 <= len(text) <= 200:
                    kept.setdefault(text, (number, source))
        rows = [(text, source) for text, (number, source) in kept.items() if number in _EVERYDAY_PARTS[part]]
        return _joined([json.dumps({"text": text, "source": source}, ensure_ascii=False) for text, source in rows])

    return make


# The corpora

_MULTI30K = "multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1"
_MULTI30K_PARTS = {"train": "train", "valid": "val", "test": "test_2016_flickr"} | {
    name: name for name in ("test_2017_flickr", "test_2017_mscoco", "test_2018_flickr")
}
_SIGMORPHON = "sigmorphon/2021-task1/821bcdece5a47820872215969f275004b0abe80c/data"
_MEDIUM = ("arm_e", "bul", "dut", "fre", "geo", "hbs_latn", "hun", "jpn_hira", "kor", "vie_hanoi")
_CMUDICT = "steveash/jg2p/9ef911031f2762b15f5b731c33dd968f523e181f/jg2p-core/src/test/resources/g014b2b"
_COGS = "najoungkim/COGS/165a7b669eade971fa47bf568a2e51925360fed8/data"
_SCAN = "brendenlake/SCAN/c4b756cbc010d75c912f16c42c8f15dc6b7e6c8f/simple_split/tasks"
_TATOEBA = "13luoyu/Transformer-machine-translation/aa43963320ccfacebd1d3542deae559bbca58d03/cmn.txt"
_KDCONV = "thu-coai/KdConv/653db76432de09a004ba708a68f8bbd5500e6bec/data"
_EVERYDAY = (
    _TATOEBA,
    *(f"{_KDCONV}/{of}/{part}.json" for of in ("film", "music", "travel") for part in ("dev", "test")),
)

CORPORA: dict[str, Corpus] = {
    "cogs": Corpus(
        about="COGS: English sentence, tab, logical form, tab, case (Kim and Linzen 2020, arXiv 2010.05465).",
        licence="MIT, (c) 2020 najoungkim.",
        split="Official; valid is their dev.",
        outputs={
            f"{name}.tsv.gz": Output((f"{_COGS}/{theirs}.tsv",))
            for name, theirs in {"train": "train", "valid": "dev", "test": "test"}.items()
        },
        use="seqloom train --recipe cogs",
    ),
    "cogs-gen": Corpus(
        about="COGS's second test, of generalisation: 21 cases of 1,000 sentences; rows and training text as in cogs.",
        licence="MIT, (c) 2020 najoungkim.",
        split="Official; their gen.",
        outputs={"test.tsv.gz": Output((f"{_COGS}/gen.tsv",))},  # known to us by git's tree alone, which has its SHA-1
        use="seqloom train --recipe cogs-gen",
    ),
    "g2p-cmudict": Corpus(
        about="CMUdict without stress: English word, tab, 39 phones; a word has a row for each pronunciation.",
        licence="BSD-style, (c) 1993-2015 Carnegie Mellon University; the split's repository, jg2p, is Apache-2.0.",
        split=(
            "test is the usual one of 12,000 words (g014b2b.test). train and valid are Seqloom's own, cut by word from "
            "the official training text: valid has the words whose SHA-256, first 8 bytes modulo 100, is below 3."
        ),
        outputs={
            "train.tsv.gz": Output(
                (f"{_CMUDICT}.train",),
                _rows_in(range(3, 100)),
                "ff28b493376d0f4f829a3521b9744a21e20ca4534364b866988aaffe2bb0777d",
            ),
            "valid.tsv.gz": Output(
                (f"{_CMUDICT}.train",),
                _rows_in(range(3)),
                "ff47da5603e596bdd53ce2a422f8a00939dad0b6ad563fdbe8ae7143b9d373c2",
            ),
            "test.tsv.gz": Output((f"{_CMUDICT}.test",)),
        },
        use="seqloom train --recipe g2p-cmudict",
    ),
    "g2p-sigmorphon21": Corpus(
        about=(
            "SIGMORPHON 2021 task 1: word, tab, IPA phones; LANGUAGE.train.tsv.gz and so on, of ten languages "
            f"({', '.join(_MEDIUM)}) and eng_us (Ashby et al. 2021)."
        ),
        licence="CC BY-SA 3.0; from Wiktionary's contributors, by way of WikiPron.",
        split="Official; valid is the task's dev.",
        outputs={
            f"{language}.{name}.tsv.gz": Output((f"{_SIGMORPHON}/{size}/{language}_{theirs}.tsv",))
            for size, languages in {"medium": _MEDIUM, "high": ("eng_us",)}.items()
            for language in languages
            for name, theirs in {"train": "train", "valid": "dev", "test": "test"}.items()
        },
        use="seqloom train --recipe g2p-sigmorphon21",
    ),
    "multi30k": Corpus(
        about=(
            "Multi30k task 1: image captions in English, German and French, line by line (Elliott et al. 2016, 2017); "
            "below tok/ the authors' lower-cased, normalised, tokenised text."
        ),
        licence="None is stated. The authors provide it for non-commercial research and education; from Flickr30k.",
        split="Official; test is test_2016_flickr, and valid their val.",
        outputs={
            f"{name}.{language}.gz": Output((f"{_MULTI30K}/raw/{theirs}.{language}.gz",))
            for name, theirs in _MULTI30K_PARTS.items()
            for language in ("en", "de", "fr")
        }
        | {
            f"tok/{name}.{language}.gz": Output((f"{_MULTI30K}/tok/{theirs}.lc.norm.tok.{language}",))
            for name, theirs in _MULTI30K_PARTS.items()
            for language in ("en", "de", "fr")
        },
        use="seqloom train --recipe multi30k-en-de",
    ),
    "scan": Corpus(
        about="SCAN, simple split: command, tab, actions (Lake and Baroni 2018, arXiv 1711.00350).",
        licence="BSD, (c) Facebook; LICENSE in the repository.",
        split=(
            "test is official. train and valid are Seqloom's own, cut from the official training text: valid has the "
            "commands whose SHA-256, first 8 bytes modulo 100, is below 6."
        ),
        outputs={
            "train.tsv.gz": Output(
                (f"{_SCAN}_train_simple.txt",),
                _rows_in(range(6, 100), _rows_of_scan),
                "be2feecb99c63feafd1120332fa0bcb316c976649a6f35368297822b5dce7307",
            ),
            "valid.tsv.gz": Output(
                (f"{_SCAN}_train_simple.txt",),
                _rows_in(range(6), _rows_of_scan),
                "bebdf0ff820b615ff0ec662998dcabbe88f7f7f57f05f3ee6f40e583177e9180",
            ),
            "test.tsv.gz": Output(
                (f"{_SCAN}_test_simple.txt",),
                _rows_of_scan,
                "cf5444acc6c217071def06a7a6d99fe51557f56fdc752f4b030c23a45373b0f6",
            ),
        },
        use="seqloom train --recipe scan",
    ),
    "zh-continuation": Corpus(
        about=(
            "Everyday Chinese, JSON lines with `text` and `source`: the Chinese side of Tatoeba's Mandarin-English "
            "pairs and the turns of KdConv's development and test dialogues (Zhou et al. 2020), of 4 to 200 characters."
        ),
        licence=(
            "tatoeba: CC BY 2.0 France, by the contributors of tatoeba.org, by way of www.manythings.org/anki; kdconv: "
            "Apache-2.0, the CoAI group of Tsinghua University."
        ),
        split=(
            "Seqloom's own, sentences and whole dialogues by their SHA-256, first 8 bytes modulo 100: valid below 3, "
            "test below 6. Each text is kept once, in train if it is there."
        ),
        outputs={
            f"{part}.jsonl.gz": Output(_EVERYDAY, _everyday_chinese(part), digest)
            for part, digest in {
                "train": "c337c7562f9387c199086cec40577ea1e6c2061ec3f60622ae61ef13183a0f92",
                "valid": "7f93c357f9aef19ca3a810fe0f4494dd2571b0ad488ec8c7ca1024393a44750c",
                "test": "c4afd4034311161303568a00c82bb83d95f70590d1a855d3f5712cfe38f8d66d",
            }.items()
        },
        use="seqloom train --recipe zh-continuation",
    ),
}
"""Name -> corpus, for `seqloom data NAME`."""


@cache
def digests() -> dict[str, str]:
    """Return OWNER/REPOSITORY/COMMIT/PATH -> its SHA-256; of a file that we have not seen, git's name for it, SHA-1."""
    lines = Path(__file__).with_suffix(".sha256").read_text(encoding="utf-8").splitlines()
    return {address: digest for digest, address in (line.split("  ") for line in lines)}


# What the command does


def describe_corpora() -> str:
    """Return the names that `seqloom data` knows, each with what it is, its licence and what it is for."""
    return "\n".join(
        f"{name}\n    {each.about}\n    Licence: {each.licence}\n    Use: {each.use}" for name, each in CORPORA.items()
    )


def how_to_make(path: str) -> str:
    """Return the command that makes a file, e.g. data/scan/train.tsv.gz; empty: no corpus has such a file."""
    for name, corpus in CORPORA.items():
        for output in corpus.outputs:
            if f"/{path}".endswith(f"/{name}/{output}"):
                return _command(name, Path(path.removesuffix(f"/{output}")))
    return ""


def _command(name: str, folder: Path) -> str:
    return f"seqloom data {name}" + ("" if folder == Path("data", name) else f" -o {shlex.quote(str(folder))}")


def make_corpus(name: str, folder: "str | None" = None) -> str:
    """Fetch what a corpus is made of, and write its files.

    Args:
        name: one of `CORPORA`.
        folder: where to write; None: data/NAME. What is below its `downloads` and right is not fetched again.

    Returns:
        For the user: the files, their rows, whose they are, what to do with them.

    Raises:
        PublicDataError: for an unknown name, for what cannot be fetched or is not what it should be, and for a file of
            another content that stands where one would be written.
    """
    if name not in CORPORA:
        near = get_close_matches(name, CORPORA, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(CORPORA)}."
        raise PublicDataError(f"{name} is no corpus that seqloom data knows; {hint}")
    corpus, place = CORPORA[name], Path(folder or Path("data", name))
    contents = {place / output: content for output, content in _made(corpus, _fetched(corpus, place))}
    for path, content in contents.items():
        if path.exists() and not _holds(path, content):
            raise PublicDataError(
                f"{path} exists and holds something else, which is not overwritten: move it away, or name another "
                f"folder: {_command(name, place.with_name(f'{place.name}-new'))}"
            )
    for path, content in contents.items():
        _write(path, gzip.compress(content, mtime=0))
    rows = {path: f"{content.count(10):,}" for path, content in contents.items()}
    note = _describe(name, {path.relative_to(place).as_posix(): content for path, content in contents.items()})
    _write(place / "SOURCE.md", note.encode())
    lines = [f"{path}  {rows[path]} rows" for path in contents]
    said = [*lines, f"Licence: {corpus.licence}", f"Split: {corpus.split}", f"More in {place / 'SOURCE.md'}"]
    return "\n".join([*said, f"Use: {corpus.use}"])


def _holds(path: Path, content: bytes) -> bool:
    try:
        return gzip.decompress(path.read_bytes()) == content
    except (gzip.BadGzipFile, zlib.error, EOFError):
        return False


def _fetched(corpus: Corpus, place: Path) -> dict[str, bytes]:
    """Return the content of each source, fetched where it is not there."""
    from tqdm import tqdm

    found = {}
    for address in tqdm(corpus.sources, unit=" files", desc="fetching", delay=1):
        path = place / "downloads" / address.split("/", 3)[3]
        content = path.read_bytes() if path.is_file() else b""
        if not _is_right(content, digests()[address]):
            content = _fetch(address, path)
            _write(path, content)
        found[address] = content
    return found


def _is_right(content: bytes, digest: str) -> bool:
    """Whether content has a SHA-256 of 64 digits, or git's SHA-1 of 40: that of a blob of its length and content."""
    if len(digest) == 40:
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == digest
    return hashlib.sha256(content).hexdigest() == digest


def _fetch(address: str, path: Path) -> bytes:
    """Ask for a file, for some seconds; what comes is right, or an error says how else to get it."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import hf_raise_for_status, http_backoff

    url = f"{os.environ.get(MIRROR, HOME).rstrip('/')}/{address}"
    by_hand = (
        f"Save {HOME}/{address} by other means as {path} and run the command again, or let {MIRROR} name a server that "
        f"has it."
    )
    if path.is_file():
        by_hand = f"What lies at {path} is not that file: its digest is another. {by_hand}"
    try:
        response = http_backoff("GET", url, max_retries=2, timeout=60)
        hf_raise_for_status(response)
    except OfflineModeIsEnabled as error:
        raise PublicDataError(f"HF_HUB_OFFLINE=1 forbids to fetch {url}; unset it. Or: {by_hand}") from error
    except HfHubHTTPError as error:
        raise PublicDataError(f"{url} answers {error.response.status_code} instead of the file. {by_hand}") from error
    except HTTPError as error:
        raise PublicDataError(f"{url} cannot be reached ({error or type(error).__name__}). {by_hand}") from error
    content: bytes = response.content
    if not _is_right(content, digests()[address]):
        raise PublicDataError(
            f"{url} holds {len(content):,} bytes that are not the file of this address: its digest is "
            f"{digests()[address]}. Something on the way has answered instead, or it was damaged. {by_hand}"
        )
    return content


def _made(corpus: Corpus, found: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each output."""
    for name, output in corpus.outputs.items():
        contents = [gzip.decompress(found[each]) if each.endswith(".gz") else found[each] for each in output.sources]
        if output.make is None:
            yield name, contents[0]
            continue
        made = output.make(*(content.decode() for content in contents)).encode()
        if not _is_right(made, str(output.sha256)):
            raise PublicDataError(
                f"{name} was made with SHA-256 {hashlib.sha256(made).hexdigest()} and should have {output.sha256}, "
                "though its sources are right: a fault of Seqloom, or of this Python. Please report it; nothing was "
                "written."
            )
        yield name, made


def _describe(name: str, contents: Mapping[str, bytes]) -> str:
    """Return SOURCE.md."""
    corpus = CORPORA[name]
    commits = dict.fromkeys(tuple(source.split("/")[:3]) for source in corpus.sources)
    fetched = "".join(f"- https://github.com/{owner}/{repo}/tree/{commit}\n" for owner, repo, commit in commits)
    rows = [
        f"| {path} | {content.count(10):,} | {hashlib.sha256(content).hexdigest()} |\n"
        for path, content in contents.items()
    ]
    return (
        f"# {name}\n\n{corpus.about}\n\nWritten by `seqloom data {name}` from\n\n{fetched}\n"
        f"Licence: {corpus.licence}\n\nSplit: {corpus.split}\n\n"
        f"| file | rows | SHA-256 of the content, unpacked |\n|---|---|---|\n{''.join(rows)}\n"
        f"`downloads/` holds the files as they were fetched, and may be deleted.\n"
    )


def _write(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


__all__ = ["CORPORA", "PublicDataError", "describe_corpora", "how_to_make", "make_corpus"]

"""What one `seqloom generate` is asked for."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from seqloom.hub.decoding.answers import LongLines
from seqloom.hub.decoding.engines import Search
from seqloom.hub.decoding.rows import FORMATS, Layout
from seqloom.hub.files import files_made_from, refuse_no_place, sha256_of
from seqloom.hub.verify import check_folder
from seqloom.hub.word_alignment import Units


class GenerateError(ValueError):
    """A command that cannot be, or that has not answered every line."""


class UnansweredError(GenerateError):
    """A command that has not answered every line, and has written all others."""


@dataclass(frozen=True)
class Job:
    """What is decoded with what, and where it goes."""

    folder: str
    """A trained model."""
    input_file: str | None = None
    """Plain or .gz; None: stdin."""
    output_file: str | None = None
    """Plain or .gz; None: stdout."""
    search: Search = field(default_factory=Search)
    engine: Literal["torch", "ctranslate2"] = "torch"
    quantization: str = "float32"
    """Of the export that "ctranslate2" computes with."""
    processes: int | None = None
    """None: as many as there are GPUs, else one."""
    input_format: str | None = None
    """One of `FORMATS`; None: by the name of the file."""
    output_format: str | None = None
    """None: by the name of the file; on stdout that of the input."""
    column: str | None = None
    """Of a TSV or JSON lines the source, see `Layout`."""
    prefix_column: str | None = None
    prefix: str = ""
    """What each output begins with."""
    long_lines: LongLines = "refuse"
    max_source_tokens: int | None = None
    report_file: str | None = None
    """JSON lines, one for each output."""
    alignments_file: str | None = None
    """One line for each output: pairs "source-output", counted from 0."""
    alignment_units: Units = "words"
    ensemble: tuple[str, ...] = ()
    """Further models of the same vocabulary, whose log-probabilities are averaged with its own."""
    overwrite: bool = False
    """Forget what an earlier, killed command has left of the output."""

    @property
    def files(self) -> list[str]:
        """The files that are written beside the output."""
        return [file for file in (self.report_file, self.alignments_file) if file is not None]


def refuse_what_cannot_be(job: Job) -> None:
    """Refuse files and settings that do not fit, before anything is loaded.

    Raises:
        GenerateError, ValueError: with the remedy.
        FileNotFoundError: for an input that is not there.
        FolderError: for a folder that is none, or dangerous to open.
    """
    if job.input_file is not None and not Path(job.input_file).exists():
        raise FileNotFoundError(2, "No such file or directory", job.input_file)
    check_folder(job.folder)
    refuse_other_vocabularies(job)
    written = [file for file in (job.output_file, *job.files) if file is not None]
    for file in written:
        refuse_no_place(Path(file))
        if job.input_file is not None and Path(file).resolve() == Path(job.input_file).resolve():
            raise GenerateError(f"{file} is read and written; give the output another name.")
    if len({Path(file).resolve() for file in written}) < len(written):
        raise GenerateError(f"{', '.join(written)}: two of them are the same file; give each its own name.")
    for name in (job.input_format, job.output_format):
        if name not in (None, *FORMATS):
            raise GenerateError(f"format={name!r} is unknown; use one of {', '.join(FORMATS)}.")


def refuse_other_vocabularies(job: Job) -> None:
    """Refuse an ensemble that does not read and write the same tokens, token by token.

    Raises:
        GenerateError: with the remedy.
        FolderError: for a folder that is none, or dangerous to open.
    """
    if job.ensemble and job.engine != "torch":
        raise GenerateError(
            f"engine={job.engine} searches with one model, and ensemble names more; use --engine torch."
        )
    for folder in job.ensemble:
        check_folder(folder)
        if _vocabulary_of(folder) != _vocabulary_of(job.folder):
            raise GenerateError(
                f"{folder} has another vocabulary than {job.folder}, and an ensemble writes each token together; train "
                f"its models on one text with the same settings but for --seed (with one --data_seed, which decides "
                f"what is held out), or leave it out."
            )


def _vocabulary_of(folder: str) -> dict[str, str]:
    files = (Path(folder) / name for name in ("tokenizer.json", "target/tokenizer.json"))
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in files if file.is_file()}


def work_of(job: Job, layout: Layout) -> dict[str, Any]:
    """Return what makes the output: what a command must have in common with the one it goes on from."""
    facts = {name: getattr(job, name) for name in ("engine", "prefix", "long_lines", "max_source_tokens")}
    return {
        **facts,
        **asdict(job.search),
        **{f"input_{name}": value for name, value in asdict(layout).items() if name != "name"},
        "input": str(Path(job.input_file).resolve()) if job.input_file else None,
        "quantization": job.quantization if job.engine == "ctranslate2" else None,
        "alignment_units": job.alignment_units if job.files else None,
        "report": job.report_file,
        "alignments": job.alignments_file,
        **{
            f"{folder}/{name}": digest[:16]
            for folder in (job.folder, *job.ensemble)
            for name, digest in files_made_from(Path(folder)).items()
        },
    }


__all__ = ["GenerateError", "Job", "UnansweredError", "refuse_what_cannot_be", "work_of"]

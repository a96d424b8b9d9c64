"""One verb per thing a user does, each a thin call into its room.

What a verb needs is imported when it runs, for all that lies below `seqloom` imports torch. Nobody imports this.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from seqloom_cli.command import (
    EXIT_FAILED,
    EXIT_USAGE,
    CommandParser,
    UsageError,
    print_what_goes,
    run_command,
    visible,
)

DESCRIPTION = "Train encoder-decoder Transformers from scratch, and use what comes out."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: the arguments after the program's name; None: those of the process.

    Returns:
        The exit code, see `run_command`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _dispatch(arguments), debug="--debug" in arguments)


def _dispatch(arguments: list[str]) -> int | None:
    parser = build_parser()
    words = [argument for argument in arguments if not argument.startswith("-")]
    if words and arguments[0] in (words[0], "--debug"):
        parser.refuse_verb(words[0], verbs_of(parser))
    try:
        namespace, unknown = parser.parse_known_args(arguments)
    except SystemExit as exit_:  # --help, --help_all and --version have printed
        return exit_.code if isinstance(exit_.code, int) else 0
    if namespace.verb is None:
        parser.refuse(unknown)
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    return namespace.run(namespace, unknown)


def build_parser() -> CommandParser:
    """The parser of every verb; what it leaves over belongs to the verb's `run`."""
    parser = CommandParser(prog="seqloom", description=DESCRIPTION)
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show what is installed, and exit")
    _add_debug(parser)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    _add_train(verbs)
    _add_distill(verbs)
    _add_data(verbs)
    _add_check(verbs)
    _add_generate(verbs)
    _add_evaluate(verbs)
    _add_verify(verbs)
    _add_upgrade(verbs)
    _add_serve(verbs)
    _add_push(verbs)
    _add_copy(verbs)
    _add_walk(verbs)
    _add_lesson(verbs)
    _add_space(verbs)
    _add_export(verbs)
    return parser


def verbs_of(parser: CommandParser) -> list[str]:
    """Return the names of the verbs of `build_parser`."""
    (action,) = (action for action in parser._actions if action.dest == "verb")
    return list(action.choices or ())


class _ShowVersion(argparse.Action):
    """argparse's own `version` wants the text before anybody asks, and reading it takes as long as the parser."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(describe_version())
        parser.exit()


def describe_version() -> str:
    """Return the versions of Seqloom and of what it stands on, without loading any of it."""
    named = {name: version(name) for name in ("seqloom", "transformers", "torch")}
    return f"seqloom {named.pop('seqloom')} ({', '.join(f'{name} {number}' for name, number in named.items())})"


def _add_verb(
    verbs: "argparse._SubParsersAction[CommandParser]",
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    text: str,
    more: str = "",
    *,
    folder: str | None = "a trained model",
) -> CommandParser:
    """Add a verb that takes what its parser knows, nothing else; first a folder, unless `folder` is None."""
    parser = verbs.add_parser(name, help=text, description=more or f"{_begin(text)}.")
    if folder is not None:
        parser.add_argument("folder", metavar="FOLDER", help=folder)

    def run_alone(namespace: argparse.Namespace, unknown: list[str]) -> int | None:
        parser.refuse(unknown)
        return run(namespace)

    _add_debug(parser)
    parser.set_defaults(run=run_alone)
    return parser


def _add_train(verbs: "argparse._SubParsersAction[CommandParser]") -> None:
    text = "train a model from a recipe, from flags, or (with neither) on the built-in date demo"
    parser = verbs.add_parser("train", help=text, description=f"{_begin(text)}.", usage=_TRAIN_USAGE)
    parser.complete = _add_recipe
    parser.set_defaults(run=_run_train)


def _add_recipe(parser: CommandParser) -> None:
    from seqloom.configuration.recipe_flags import add_recipe_arguments

    add_recipe_arguments(parser)
    _add_debug(parser)


_TRAIN_USAGE = """seqloom train [--recipe FILE] [--train A [B]] [--valid A [B]] [--test A [B]] [--output DIR]
                     [--preset NAME] [--task pairs|continuation] [--any_recipe_key value ...]"""


def _run_train(namespace: argparse.Namespace, unknown: list[str]) -> None:
    from seqloom.configuration.recipe_flags import recipe_from_arguments

    print_what_goes()
    recipe = recipe_from_arguments(namespace, unknown)  # first: a mistake in it is told without loading the rest
    from seqloom.training.languages import settle_languages
    from seqloom.training.reading.asking import settle_columns
    from seqloom.training.train import train

    train(settle_languages(settle_columns(recipe)), dry_run=namespace.dry_run)


def _add_distill(verbs: "argparse._SubParsersAction[CommandParser]") -> None:
    text = "train a model on what another, or several together, write for the training sources"
    more = (
        f"{_begin(text)}. What they write is kept in OUTPUT-distilled; a command that was killed goes on. All else is "
        f"as in seqloom train, whose flags it takes; with --dry_run the teachers write, and nothing is trained."
    )
    usage = "seqloom distill TEACHER [TEACHER ...] --train A [B] [--unlabelled FILE ...] [--any_recipe_key value ...]"
    parser = verbs.add_parser("distill", help=text, description=more, usage=usage)
    help_text = "a trained model; of several, with the same vocabulary, the mean of the log-probabilities writes"
    parser.add_argument("teachers", metavar="TEACHER", nargs="+", help=help_text)
    help_text = "text of the source side, one a line, or files with columns: sources without targets"
    parser.add_argument("--unlabelled", metavar="FILE", nargs="+", default=[], help=help_text)
    _add_count(parser, "--teacher_beams", "beams of the teachers' search [the folder's generation_config.json]")
    _add_count(parser, "--processes", "processes that share the writing [the GPUs, else 1]")
    parser.complete = _add_recipe
    parser.set_defaults(run=_run_distill)


def _run_distill(namespace: argparse.Namespace, unknown: list[str]) -> int:
    from seqloom.configuration.recipe_flags import recipe_from_arguments

    print_what_goes()
    for name in filter(os.path.isfile, namespace.teachers):
        raise UsageError(
            f"{name} is a file and stands among the teachers; folders first: seqloom distill FOLDER --train {name}"
        )
    recipe = recipe_from_arguments(namespace, unknown)
    from seqloom.training.distillation import Teachers, write_corpus
    from seqloom.training.languages import settle_languages
    from seqloom.training.reading.asking import settle_columns
    from seqloom.training.train import train

    teachers = Teachers(tuple(namespace.teachers), namespace.teacher_beams, namespace.processes)
    recipe = settle_languages(settle_columns(recipe))
    train(write_corpus(recipe, teachers, namespace.unlabelled), dry_run=namespace.dry_run)
    return 0


def _add_data(verbs: "argparse._SubParsersAction[CommandParser]") -> None:
    text = "fetch a public corpus, check it, and write it as a recipe expects it"
    more = f"{_begin(text)}. SEQLOOM_DATA_MIRROR names another server than raw.githubusercontent.com."
    parser = _add_verb(verbs, "data", _run_data, text, more, folder=None)
    parser.add_argument("name", metavar="NAME", nargs="?", help="the corpus [list them]")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where to write [data/NAME]")
    _add_flag(parser, "--list", "say which corpora there are, with their licences, and exit")


def _run_data(namespace: argparse.Namespace) -> None:
    from seqloom_cli.public_data import describe_corpora, make_corpus

    if namespace.list or namespace.name is None:
        print(describe_corpora())
    else:
        print(visible(make_corpus(namespace.name, namespace.output)))


def _add_check(verbs: "argparse._SubParsersAction[CommandParser]") -> None:
    text = "tell what is wrong with training, validation and test text, worst first"
    more = f"{_begin(text)}; nothing is changed. Ends with {EXIT_FAILED} when something is as bad as --fail_on says."
    parser = _add_verb(verbs, "check", _run_check, text, more, folder=None)
    parser.add_argument("files", metavar="FILE", nargs="*", help="the same as --train")
    for split in ("train", "valid", "test"):
        parser.add_argument(f"--{split}", metavar="FILE", nargs="+", help=f"{split} text, as `seqloom train` takes it")
    parser.add_argument("--recipe", metavar="FILE", help="a recipe that names them")
    parser.add_argument("--columns", metavar="NAME", nargs="+", help="names or numbers of the columns")
    parser.add_argument("--where", metavar="COLUMN=VALUE", nargs="+", help="read only these rows")
    parser.add_argument("--tags", metavar="NAME", nargs="+", help="columns whose values stand in front of the source")
    parser.add_argument("--task", choices=["pairs", "continuation"], help="what the text is for [pairs]")
    parser.add_argument(*_spellings("--num_proc"), metavar="N", type=_count, help="processes [all cores]")
    parser.add_argument("--json", metavar="FILE", help="write the report with every line's number, - for stdout")
    parser.add_argument("--html", metavar="FILE", help="write the report as a page")
    worst = ["refused", "harmful", "doubtful", "note", "never"]
    parser.add_argument(
        *_spellings("--fail_on"), choices=worst, default="harmful", help="the least that fails [harmful]"
    )


def _run_check(namespace: argparse.Namespace) -> int:
    from seqloom.configuration.recipe_layers import resolve_recipe

    keys = ("train", "valid", "test", "columns", "where", "tags", "task", "num_proc")
    named = {key: value for key in keys if (value := getattr(namespace, key)) is not None}
    if namespace.files and "train" in named:
        raise UsageError(f"{' '.join(namespace.files)} and --train {' '.join(named['train'])} are two texts; name one")
    if namespace.files:
        named["train"] = namespace.files
    for file in filter(None, (namespace.html, namespace.json)):
        if file != "-" and not Path(file).absolute().parent.is_dir():
            raise UsageError(f"{file}: the folder {Path(file).absolute().parent} does not exist; create it")
    recipe = resolve_recipe(namespace.recipe, named)
    if recipe.is_demo:
        raise UsageError("check needs a text: seqloom check FILE [FILE], or --train, or a --recipe that names one.")
    from seqloom.training.checking.check import check_corpora
    from seqloom.training.checking.fault_rules import Harm
    from seqloom.training.reading.asking import settle_columns

    report = check_corpora(settle_columns(recipe), num_proc=namespace.num_proc)
    if namespace.html:
        report.write(namespace.html, report.to_html())
    if namespace.json == "-":
        print(report.to_json(), end="")
    else:
        if namespace.json:
            report.write(namespace.json, report.to_json())
        print(visible(report.to_text()))
    fails = namespace.fail_on != "never" and report.worst is not None and report.worst >= Harm[namespace.fail_on]
    return EXIT_FAILED if fails else 0


def _add_generate(verbs: "argparse._SubParsersAction[CommandParser]") -> None:
    text = "read one source per line, write one output per line"
    more = (
        f"{_begin(text)}, in the same order. At a terminal, answer what is typed. A command with -i and -o that was "
        f"killed goes on behind the last lines that it has written."
    )
    parser = _add_verb(verbs, "generate", _run_generate, text, more)
    parser.add_argument("-i", "--input", metavar="FILE", help="lines to read, plain or .gz; .tsv, .jsonl [stdin]")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write, plain or .gz; .tsv, .jsonl [stdout]")
    for name in ("input", "output"):
        parser.add_argument(
            *_spellings(f"--{name}_format"), choices=("text", "tsv", "jsonl"), help="[by the name of the file]"
        )
    text = "the source's column: name, number from 1, or key of JSON lines (a.b: b in a) [source, else the first]"
    parser.add_argument("--column", metavar="NAME", help=text)
    text = "further models of the same vocabulary that write together with it: the mean of their log-probabilities"
    parser.add_argument("--ensemble", metavar="FOLDER", nargs="+", default=[], help=text)
    parser.add_argument("--engine", choices=("torch", "ctranslate2"), default="torch", help="what computes [torch]")
    text = "number format of ctranslate2's weights, e.g. int8 [float32]"
    parser.add_argument("--quantization", metavar="FORMAT", help=text)
    _add_count(parser, "--processes", "processes that share the work [the GPUs, else 1]")
    _add_count(parser, "--beams", "beams of the search, 1 is greedy [the folder's generation_config.json]")
    _add_count(parser, "--n_best", "write N outputs per input, best first, each with its score")
    _add_count(parser, "--max_new_tokens", "longest output in tokens [the folder's generation_config.json]")
    text = "exponent of the length by which scores are divided [the folder's generation_config.json]"
    parser.add_argument(*_spellings("--length_penalty"), type=float, metavar="X", help=text)
    parser.add_argument("--sample", action="store_true", help="draw each word instead of searching for the likeliest")
    parser.add_argument("--temperature", type=float, metavar="X", help="with --sample: below 1 safer, above 1 wilder")
    _add_count(parser, "--top_k", "with --sample: among the N likeliest words")
    parser.add_argument(
        *_spellings("--top_p"), type=float, metavar="X", help="with --sample: among the likeliest of this sum"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="with --sample: the same words each time")
    parser.add_argument("--prefix", metavar="TEXT", default="", help="what each output begins with")
    parser.add_argument(
        *_spellings("--prefix_column"), metavar="NAME", help="the column, or key, that says it for each line"
    )
    text = "a source that is too long: refuse it, or split it at ends of sentences [refuse]"
    parser.add_argument(*_spellings("--long_lines"), choices=("refuse", "split"), default="refuse", help=text)
    _add_count(parser, "--max_source_tokens", "tokens of the longest source [what the model reads, or has seen]")
    text = "write JSON lines: score, length ratio, cut, repetition, uncovered source tokens, confidence of each token"
    parser.add_argument("--report", metavar="FILE", help=text)
    parser.add_argument("--alignments", metavar="FILE", help="write pairs source-output, counted from 0 (Pharaoh)")
    units = ("words", "characters", "tokens")
    parser.add_argument(
        *_spellings("--alignment_units"), choices=units, default="words", help="what is counted [words]"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin anew where a killed command has left a part")


def _run_generate(namespace: argparse.Namespace) -> None:
    _settle_quantization(namespace)
    from seqloom.hub.generate import Job, Search, generate_file

    given = vars(namespace)
    search = ("n_best", "max_new_tokens", "sample", "temperature", "top_k", "top_p", "length_penalty", "seed")
    same = (
        *("folder", "engine", "quantization", "processes", "input_format", "output_format", "column", "prefix_column"),
        *("prefix", "long_lines", "max_source_tokens", "alignment_units", "overwrite"),
    )
    generate_file(
        Job(
            input_file=namespace.input,
            output_file=namespace.output,
            report_file=namespace.report,
            alignments_file=namespace.alignments,
            ensemble=tuple(namespace.ensemble),
            search=Search(num_beams=namespace.beams, **{name: given[name] for name in search}),
            **{name: given[name] for name in same},
        )
    )


def _add_evaluate(verbs: "argparse._SubParsersAction[CommandParser]") -> None:
    text = "score a folder on a test set, write what it wrote, and a page that shows where it is right and wrong"
    parser = _add_verb(verbs, "evaluate", _run_evaluate, text)
    files = "a .tsv, .jsonl, .csv or .parquet file, or line-aligned files: sources, and references, one or more"
    parser.add_argument("--test", metavar="FILE", nargs="+", required=True, help=files)
    parser.add_argument("-o", "--output", metavar="DIR", help="the folder to write [NAME-evaluation, here]")
    compared = "another folder, or a file of another system's outputs (.txt, .tsv, .jsonl), on the same test set"
    parser.add_argument("--compare", metavar="OTHER", help=compared)
    parser.add_argument("--metrics", metavar="NAME", nargs="+", help="scores [those of the run that made the folder]")
    _add_count(parser, "--beams", "beams of the search, 1 is greedy [the folder's generation_config.json]")
    _add_count(parser, "--max_new_tokens", "longest output in tokens [the folder's generation_config.json]")
    parser.add_argument("--columns", metavar="NAME", nargs="+", help="columns of the source and of the reference")
    parser.add_argument("--references", metavar="NAME", nargs="+", help="further columns with references")
    _add_flag(parser, "--any_reference", "rows of one source are one example, and each of their targets is right")
    parser.add_argument("--by", metavar="NAME", nargs="+", help="columns by whose values to group the scores")
    chosen = "read only rows with COLUMN=VALUE, or none: all rows [what the run selected]"
    parser.add_argument("--where", metavar="COLUMN=VALUE", nargs="+", help=chosen)
    trained = "the training text, for the nearest training lines and rare words [the files of the run, if still here]"
    parser.add_argument("--train", metavar="FILE", nargs="+", help=trained)
    parser.add_argument("--task", choices=["pairs", "continuation"], help="what the model does [as it was trained]")


def _run_evaluate(namespace: argparse.Namespace) -> None:
    from seqloom.training.scoring.evaluation import EvaluationOptions, evaluate_folder
    from seqloom.training.scoring.evaluation_files import describe_evaluation, write_evaluation
    from seqloom.training.scoring.score_page import write_page

    options = EvaluationOptions(
        columns=tuple(namespace.columns) if namespace.columns else None,
        references=tuple(namespace.references or ()),
        by=tuple(namespace.by or ()),
        where=None if namespace.where is None else () if namespace.where == ["none"] else tuple(namespace.where),
        merge=namespace.any_reference,
        task=namespace.task,
        metrics=tuple(namespace.metrics or ()),
        training=tuple(namespace.train or ()),
        num_beams=namespace.beams,
        max_new_tokens=namespace.max_new_tokens,
        compare=namespace.compare,
    )
    output = namespace.output or f"{Path(namespace.folder).resolve().name}-evaluation"
    evaluation = evaluate_folder(namespace.folder, namespace.test, options)
    write_evaluation(evaluation, output)
    write_page(evaluation, output)
    print(visible(describe_evaluation(evaluation, output)))


def _add_verify(verbs: "argparse._SubParsersAction[CommandParser]") -> None:
    text = "tell whether the code in a folder is the released code, and with --run whether it answers rightly here"
    more = (
        "Tell whether the code in a folder is the released code, before you load it with trust_remote_code=True; "
        "nothing in it is run. With --run the installed code answers in its place."
    )
    parser = _add_verb(verbs, "verify", _run_verify, text, more)
    text = "let the canary and every door answer, and compare; if all is well, the canary notes this library"
    parser.add_argument("--run", dest="doors", action="store_true", help=text)
    text = "compare all files with another folder, or with owner/name[@revision] on the Hub, of which nothing is loaded"
    parser.add_argument("--against", metavar="OTHER", help=text)


def _run_verify(namespace: argparse.Namespace) -> int:
    from seqloom.hub.verify import summarize, verify_folder

    findings = verify_folder(namespace.folder)
    for line in (*findings, summarize(namespace.folder, findings)):
        print(visible(line, one_line=True))
    is_wrong = any(found.is_problem for found in findings)
    if namespace.against is not None:
        is_wrong |= _compare(namespace.folder, namespace.against)
    if namespace.doors:
        is_wrong |= _try_doors(namespace.folder)
    return EXIT_FAILED if is_wrong else 0


def _compare(folder: str, other: str) -> bool:
    """Print how each file compares; return whether one differs."""
    from seqloom.hub.against import compare_folder, describe_comparison

    compared = compare_folder(folder, other)
    for line in ("", *compared, describe_comparison(folder, other, compared)):
        print(visible(line, one_line=True))
    return any(each.verdict != "same" for each in compared)


def _try_doors(folder: str) -> bool:
    """Print the table line by line; return whether a door answers wrongly."""
    from seqloom.hub.doors import describe_doors, note_library, try_doors

    print("\nThe doors, opened with the installed classes; the folder's own code is not run:")
    doors = []
    for door in try_doors(folder):
        print(visible(door, one_line=True))
        doors.append(door)
    print(visible(describe_doors(folder, doors)))
    if any(door.is_wrong for door in doors):
        return True
    print(visible(note_library(folder)))
    return False


def _add_upgrade(verbs: "argparse._SubParsersAction[CommandParser]") -> None:
    text = "give an old folder today's code"
    more = (
        f"{_begin(text)}, and a canary if it has none; weights and tokenizer are not touched. Nothing is changed "
        "if the folder would not answer as before."
    )
    folder = "a trained model; each checkpoint-N is a folder of its own"
    parser = _add_verb(verbs, "upgrade", _run_upgrade, text, more, folder=folder)
    _add_flag(parser, "--dry_run", "say what would be done, and do nothing")
    _add_flag(parser, "--replace_edited", "replace code that you have edited, too, and keep it as FILE.edited")


def _run_upgrade(namespace: argparse.Namespace) -> None:
    from seqloom.hub.upgrade import describe_upgrade, plan_upgrade, upgrade_folder

    make = plan_upgrade if namespace.dry_run else upgrade_folder
    upgrade = make(namespace.folder, replace_edited=namespace.replace_edited)
    print(visible(describe_upgrade(upgrade, dry_run=namespace.dry_run)))


def _add_serve(verbs: "argparse._SubParsersAction[CommandParser]") -> None:
    text = "answer the OpenAI client, many requests at a time, and a page to type into"
    more, folder = f"{_begin(text)}, until Ctrl-C.", "a trained model; requests call it by this name"
    parser = _add_verb(verbs, "serve", _run_serve, text, more, folder=folder)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on [127.0.0.1: this machine alone]")
    parser.add_argument("--port", metavar="N", type=_port, default=8000, help="0 takes any free one [8000]")
    _add_count(parser, "--max_tokens", "longest source and longest answer [what the folder was made for]")
    _add_count(parser, "--max_waiting", "requests that may wait; the next gets 429 [256]", default=256)
    engines = "what writes: torch, or CTranslate2 with an export that is made in the cache, once [torch]"
    parser.add_argument("--engine", choices=["torch", "ctranslate2"], default="torch", help=engines)
    formats = "of CTranslate2's weights: float32, int8, ... [float32]"
    parser.add_argument("--quantization", metavar="FORMAT", help=formats)


def _settle_quantization(namespace: argparse.Namespace) -> None:
    if namespace.quantization is not None and namespace.engine != "ctranslate2":
        raise UsageError(
            f"--quantization {namespace.quantization} is of CTranslate2's weights, and torch takes the folder's own; "
            "add --engine ctranslate2, or leave it out"
        )
    namespace.quantization = namespace.quantization or "float32"


def _run_serve(namespace: argparse.Namespace) -> None:
    _settle_quantization(namespace)
    from seqloom.hub.serving.serve import serve_folder

    serve_folder(
        namespace.folder,
        host=namespace.host,
        port=namespace.port,
        max_tokens=namespace.max_tokens,
        engine=namespace.engine,
        quantization=namespace.quantization,
        max_waiting=namespace.max_waiting,
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0 to 65535")
    return int(text)


def _add_push(verbs: "argparse._SubParsersAction[CommandParser]") -> None:
    text = "send a folder to a repository on the Hugging Face Hub"
    more = f"{_begin(text)}, in one commit; a new repository is private."
    parser = _add_verb(verbs, "push", _run_push, text, more)
    parser.add_argument("repo", metavar="REPO", help="owner/name; made if it does not exist")
    _add_flag(parser, "--dry_run", "list what would go, with sizes, and send nothing")
    _add_flag(parser, "--public", "make a new repository public")
    _add_flag(parser, "--with_run", "send run/ too: recipe, data facts, scores, test outputs; they quote the data")
    parser.add_argument("--message", metavar="TEXT", default="Upload a Seqloom model", help="of the commit")


def _run_push(namespace: argparse.Namespace) -> None:
    from seqloom.hub.push import describe_plan, describe_push, plan_push, push_folder

    files = plan_push(namespace.folder, namespace.repo, with_run=namespace.with_run)
    print(visible(describe_plan(files)))
    if namespace.dry_run:
        print(f"Nothing was sent to {namespace.repo}; without --dry_run this is what goes.")
        return
    report = push_folder(
        namespace.folder,
        namespace.repo,
        private=not namespace.public,
        with_run=namespace.with_run,
        message=namespace.message,
    )
    print(visible(describe_push(report, asked_for_public=namespace.public)))


def _add_copy(verbs: "argparse._SubParsersAction[CommandParser]") -> None:
    text = "copy of a folder what others need: the model, its code and its card"
    more = f"{_begin(text)}, as a push would send it; checkpoints and run/, whose records quote the data, stay."
    parser = _add_verb(verbs, "copy", _run_copy, text, more)
    parser.add_argument("output", metavar="DEST", help="the folder to write; it does not exist, or is empty")
    _add_flag(parser, "--with_run", "copy run/ too: recipe, data facts, scores, test outputs; they quote the data")


def _run_copy(namespace: argparse.Namespace) -> None:
    from seqloom.hub.push import copy_folder, describe_plan

    files = copy_folder(namespace.folder, namespace.output, with_run=namespace.with_run)
    print(visible(describe_plan(files)))
    print(visible(f"Copied to {namespace.output}.", one_line=True))


def _add_walk(verbs: "argparse._SubParsersAction[CommandParser]") -> None:
    text = "walk through a model with a sentence: every number on its way, in one HTML file"
    parser = _add_verb(verbs, "walk", _run_walk, text)
    parser.add_argument("text", metavar="TEXT", help="the sentence to read")
    parser.add_argument("-o", "--output", metavar="FILE", default="walk.html", help="the page to write [walk.html]")
    parser.add_argument("--target", metavar="TEXT", help="walk through this output [what the model writes]")
    _add_count(parser, "--beams", "beams of the search, 1 is greedy [the folder's generation_config.json]")
    _add_flag(parser, "--every_layer", "keep queries, keys and values of all layers, however large the file")


def _run_walk(namespace: argparse.Namespace) -> None:
    from seqloom.hub.page.walk_file import write_walk

    said = write_walk(
        namespace.folder,
        namespace.text,
        namespace.output,
        target=namespace.target,
        num_beams=namespace.beams,
        every_layer=namespace.every_layer,
    )
    print(visible(said))


def _add_lesson(verbs: "argparse._SubParsersAction[CommandParser]") -> None:
    text = "train a small model twice, once without one of its parts, and see what the part is for"
    more = f"{_begin(text)}; a minute, one HTML page that needs no network, and with matplotlib the same as PNG."
    parser = _add_verb(verbs, "lesson", _run_lesson, text, more, folder=None)
    parser.add_argument("name", metavar="NAME", help="residual or positions: the part that is taken away")
    parser.add_argument("-o", "--output", metavar="FILE", help="the page to write [lesson-NAME.html]")
    _add_count(parser, "--updates", "updates of each model [400]", default=400)


def _run_lesson(namespace: argparse.Namespace) -> None:
    from seqloom.training.lessons.lesson import give_lesson

    print_what_goes()
    give_lesson(namespace.name, namespace.output or f"lesson-{namespace.name}.html", num_updates=namespace.updates)


def _add_space(verbs: "argparse._SubParsersAction[CommandParser]") -> None:
    text = "write the folder of a Space: a Gradio page that serves a model and shows what it looked at"
    parser = _add_verb(verbs, "space", _run_space, text)
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="the folder to write")
    parser.add_argument("--repo", metavar="REPO", help="load the model from this repository [copied into the Space]")


def _run_space(namespace: argparse.Namespace) -> None:
    from seqloom.hub.page.space import describe_space, write_space

    files = write_space(namespace.folder, namespace.output, repo=namespace.repo)
    print(visible(describe_space(namespace.output, files)))


def _add_export(verbs: "argparse._SubParsersAction[CommandParser]") -> None:
    text = "write a model for another engine, and compare the two before it is handed over"
    parser = _add_verb(verbs, "export", _run_export, text)
    parser.add_argument("--to", choices=["ctranslate2", "onnx"], required=True, help="the engine")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="the folder to write")
    formats = "float32, int8, int8_float16, int16, float16, bfloat16, ... [float32; onnx: float32 and int8]"
    parser.add_argument("--quantization", metavar="FORMAT", help=f"of the weights: {formats}")
    compared = "compare on these sources (and references) [the run's test set, else the canary's rows]"
    parser.add_argument("--text", metavar="FILE", nargs="+", help=compared)


def _run_export(namespace: argparse.Namespace) -> None:
    from seqloom.training.confidence import compare_outputs

    kept: dict[str, Any] = {"text": namespace.text, "scorer": compare_outputs}
    said = _export_onnx(namespace, kept) if namespace.to == "onnx" else _export_ctranslate2(namespace, kept)
    print(visible(said))


def _export_onnx(namespace: argparse.Namespace, kept: "dict[str, Any]") -> str:
    if namespace.quantization is not None:
        raise ValueError(
            f"--quantization {namespace.quantization} is for --to ctranslate2: --to onnx writes float32 and int8 side "
            f"by side, as transformers.js looks for them; leave it away."
        )
    from seqloom.hub.export.onnx_export import describe_export, export_onnx

    return describe_export(namespace.output, export_onnx(namespace.folder, namespace.output, **kept))


def _export_ctranslate2(namespace: argparse.Namespace, kept: "dict[str, Any]") -> str:
    from seqloom.hub.export.ctranslate2_export import describe_export, export_ctranslate2

    quantization = namespace.quantization or "float32"
    export = export_ctranslate2(namespace.folder, namespace.output, quantization=quantization, **kept)
    return describe_export(namespace.output, export)


def _begin(text: str) -> str:
    """Return a text with a capital letter in front; `str.capitalize` would take the others from "Hub"."""
    return text[0].upper() + text[1:]


def _add_flag(parser: CommandParser, flag: str, text: str) -> None:
    parser.add_argument(*_spellings(flag), action="store_true", help=text)


def _spellings(flag: str) -> list[str]:
    """--dry_run and --dry-run."""
    return list(dict.fromkeys([flag, flag[:2] + flag[2:].replace("_", "-")]))


def _add_count(parser: CommandParser, flag: str, text: str, default: int | None = None) -> None:
    parser.add_argument(*_spellings(flag), metavar="N", type=_count, default=default, help=text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _add_debug(parser: CommandParser) -> None:
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )

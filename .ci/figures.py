"""Prints the figures of the house, so that a change shows what it did to them: `make figures`.

Figures are places to look, never targets: the longest functions and the biggest files are named so that somebody opens
them. Beside ours stand those of llama in transformers 5, the best page of mathematics we know.
"""

import ast
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.layout import FOLDERS, code_files, relative  # noqa: E402
from tests.test_seams import SEAMS  # noqa: E402

Function = ast.FunctionDef | ast.AsyncFunctionDef
NUM_NAMED = 5


def functions_in(path: Path) -> Iterator[Function]:
    """Yield every function and method of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def length(node: ast.stmt) -> int:
    """Return the lines of a function."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def is_typed(function: Function) -> bool:
    """Whether every argument and the result are annotated."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return function.returns is not None and all(
        each.annotation for each in arguments if each.arg not in ("self", "cls")
    )


def count_branches(function: Function) -> int:
    """Return how many `if` a function has, conditional expressions included."""
    return sum(isinstance(node, ast.If | ast.IfExp) for node in ast.walk(function))


def share(part: list[Function], whole: list[Function]) -> str:
    """Return how much of a list another is, in percent."""
    return f"{len(part) / max(1, len(whole)):.0%}"


def main() -> None:
    """Print everything."""
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in code_files(*FOLDERS)}
    placed = [(function, path) for path in lines for function in functions_in(path)]
    functions = [function for function, _ in placed]
    public = [function for function in functions if not function.name.startswith("_")]
    documented = [function for function in public if ast.get_docstring(function)]
    forwards = [count_branches(function) for function in functions if function.name == "forward"]
    rooms = Counter({folder: sum(lines[path] for path in code_files(folder)) for folder in FOLDERS})
    owners = Counter(seam.owner.partition(".")[0] for seam in SEAMS)
    lengths = [length(function) for function in functions]

    print(f"lines      {sum(lines.values()):,} in {len(lines)} files: {_list(rooms)}")
    print(f"functions  {len(functions):,}; {share(list(filter(is_typed, functions)), functions)} fully typed", end=", ")
    print(f"{share(documented, public)} of the public ones documented")
    print(f"length     median {statistics.median(lengths):.0f}, longest {max(lengths)} lines (llama: 10 and 54)")
    print(f"forwards   {statistics.mean(forwards):.1f} `if` each, at most {max(forwards)} (llama: 1.1)")
    print(f"seams      {len(SEAMS)} names that nobody promised us: {_list(owners)}")
    print("longest functions")
    for function, path in sorted(placed, key=lambda each: -length(each[0]))[:NUM_NAMED]:
        print(f"    {length(function):4} {relative(path)}:{function.lineno} {function.name}")
    print("biggest files")
    for path in sorted(lines, key=lambda each: -lines[each])[:NUM_NAMED]:
        print(f"    {lines[path]:4} {relative(path)}")


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())


if __name__ == "__main__":
    main()

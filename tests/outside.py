"""Runs a function "outside": where `import seqloom` fails, with module caches of its own and without a network."""

import inspect
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

WITHOUT_SEQLOOM = """
import json, sys

class NoSeqloom:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "seqloom":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoSeqloom())
"""


def run_outside(function: Callable[..., Any], cache: Path, **arguments: Any) -> tuple[Any, str]:
    """Run a function in such a process.

    Args:
        function: its source is handed over, so it sees nothing of the file that it stands in.
        cache: an existing folder, for transformers' caches and the result.
        **arguments: what can be JSON.

    Returns:
        The function's result, by way of JSON, and what it printed to stderr.
    """
    call = f"json.dump({function.__name__}(**json.load(sys.stdin)), open(sys.argv[1], 'w'))"
    code = "\n".join([WITHOUT_SEQLOOM, textwrap.dedent(inspect.getsource(function)), call])
    settings = {
        "HF_HOME": str(cache),
        "HF_MODULES_CACHE": str(cache / "modules"),
        "OMP_NUM_THREADS": "1",
        "PYTHONUTF8": "1",
    }
    process = subprocess.run(
        [sys.executable, "-c", code, str(cache / "result.json")],
        input=json.dumps(arguments),
        env={**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, **settings},
        cwd=cache,
        capture_output=True,
        encoding="utf-8",
    )
    assert process.returncode == 0, process.stderr
    return json.loads((cache / "result.json").read_text()), process.stderr

"""How many requests a second does a server answer, and how long does one wait? Several servers, one run, side by side.

    python benchmarks/serving.py FOLDER SOURCES [--servers NAME=COMMAND ...] [--clients 1 16 64] [-o ROWS.tsv]

FOLDER is a trained model, SOURCES a text with one source a line. Each client sends the next line as a chat message as
soon as it has the answer to the one before, for --seconds. The servers stand at the same time and are asked in turns,
so that whatever else the machine does meets all of them. `--servers` replaces those below; {folder} and {port} are
filled in, and a command may lead to another installation.

Tidy rows, one a server, number of clients and round: `per_second` answers, `per_cpu_s` answers a second of the server's
processor, in which other jobs hardly count, `p50_ms` and `p95_ms` from request to answer, `refused` (429, 503). What is
printed at the end are medians over the rounds, and each median beside that of the first server.
"""

import argparse
import csv
import http.client
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, fields
from itertools import cycle
from pathlib import Path

import psutil

SEQLOOM = f"{shlex.quote(sys.executable)} -m seqloom_cli serve {{folder}} --port {{port}}"
SERVERS = {
    "torch": SEQLOOM,
    "ctranslate2": f"{SEQLOOM} --engine ctranslate2",
    "ctranslate2-int8": f"{SEQLOOM} --engine ctranslate2 --quantization int8",
}
FIRST_PORT = 18_400
START_SECONDS = 300


@dataclass(frozen=True)
class Row:
    """One server, one number of clients, one round."""

    server: str
    clients: int
    round: int
    answers: int
    per_second: float
    per_cpu_s: float
    p50_ms: float
    p95_ms: float
    refused: int


@dataclass(frozen=True)
class Server:
    """One that stands."""

    name: str
    port: int
    process: psutil.Process


@contextmanager
def running(command: str, port: int) -> Iterator[psutil.Process]:
    """Start a server, wait until it is ready, and end it."""
    process = subprocess.Popen(shlex.split(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + START_SECONDS
        while not is_ready(port):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"this server did not start: {command}")
            time.sleep(0.5)
        ask(port, iter(["a"]), time.monotonic())
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def is_ready(port: int) -> bool:
    """Return whether /health says so."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def ask(port: int, sources: Iterator[str], end: float) -> tuple[list[float], int]:
    """Ask one thing after the other, one at least; return the seconds of each answer, and how many were refused."""
    connection, seconds, refused = http.client.HTTPConnection("127.0.0.1", port, timeout=600), [], 0
    for source in sources:
        body = json.dumps({"messages": [{"role": "user", "content": source}]})
        begin = time.monotonic()
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        if response.status == 200:
            seconds.append(time.monotonic() - begin)
        elif response.status in (429, 503):
            refused += 1
        else:
            raise SystemExit(f"{response.status}: {answer[:300]!r}")
        if time.monotonic() > end:
            break
    connection.close()
    return seconds, refused


def cpu_seconds(process: psutil.Process) -> float:
    """Return what a process and those below it have used."""
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def measure(server: Server, clients: int, turn: int, texts: Sequence[str], seconds: float) -> Row:
    """Let so many clients ask, and count the answers up to the last one."""
    begin, used = time.monotonic(), cpu_seconds(server.process)
    shares = [cycle([*texts[start:], *texts[:start]]) for start in range(0, 7 * clients, 7)]
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda sources: ask(server.port, sources, begin + seconds), shares))
    wall, used = time.monotonic() - begin, cpu_seconds(server.process) - used
    took = sorted(second for share, _ in found for second in share)
    p50, p95 = (1000 * took[min(len(took) - 1, int(len(took) * part))] for part in (0.5, 0.95))
    refused = sum(number for _, number in found)
    speeds = round(len(took) / wall, 2), round(len(took) / used, 2)
    return Row(server.name, clients, turn, len(took), *speeds, round(p50), round(p95), refused)


def summarise(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a line for each server and number of clients."""
    first = rows[0].server
    medians = {}
    for row in rows:
        same = [other for other in rows if (other.server, other.clients) == (row.server, row.clients)]
        columns = zip(*((each.per_second, each.per_cpu_s, each.p50_ms, each.p95_ms) for each in same), strict=True)
        medians[row.server, row.clients] = [statistics.median(column) for column in columns]
    for (server, clients), (wall, cpu, p50, p95) in medians.items():
        times = [f"{speed:>8.1f} ({speed / other:.1f}x)" for speed, other in zip((wall, cpu), medians[first, clients])]
        speeds = f"{times[0]} a second, {times[1]} a CPU-second"
        yield f"{server:<18} {clients:>3} clients {speeds}; p50 {p50:,.0f} ms, p95 {p95:,.0f} ms"


def main() -> None:
    """Run by hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("sources")
    parser.add_argument("--servers", nargs="+", default=[f"{name}={command}" for name, command in SERVERS.items()])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("-o", "--output")
    arguments = parser.parse_args()
    texts = [line for line in Path(arguments.sources).read_text(encoding="utf-8").splitlines() if line]
    commands = dict(server.split("=", 1) for server in arguments.servers)
    ports = {name: FIRST_PORT + place for place, name in enumerate(commands)}
    rows = []
    with ExitStack() as stack:
        servers = []
        for name, command in commands.items():
            filled = command.format(folder=shlex.quote(arguments.folder), port=ports[name])
            servers.append(Server(name, ports[name], stack.enter_context(running(filled, ports[name]))))
        for turn in range(arguments.rounds):
            for clients in arguments.clients:
                for server in servers:
                    rows.append(measure(server, clients, turn, texts, arguments.seconds))
                    print("\t".join(map(str, astuple(rows[-1]))), flush=True)
    if arguments.output:
        with open(arguments.output, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t")
            writer.writerows([[field.name for field in fields(Row)], *map(astuple, rows)])
    print("\n".join(summarise(rows)))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Measures libtutti beside its peers, all with the same code, interleaved round by round, and writes down everything.

`make bench` runs the tables that matter on a CPU; BENCH='...' chooses others. Every program is built around
examples-c/perf, so data, batches, touch and checks are the same; who they are is in implementations.py, what becomes of
the figures in report.py. A figure that was not checked is not reported."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
sys.path.insert(0, "benches")
import implementations  # noqa: E402
import report  # noqa: E402

KIB, MIB = 1 << 10, 1 << 20
SMALL = [8, 64, KIB, 8 * KIB, 64 * KIB, 256 * KIB, MIB]
LARGE = [16 * MIB, 64 * MIB]
# In place where engines reduce in place and MPI broadcasts so; else out of place, the form that all have.
IN_PLACE = {"all_reduce", "broadcast"}
# What a figure is, where the name does not say it.
MEANINGS = {
    "pingpong": "half a round trip: the time of one message",
    "dict": "half a round trip of 32 tensors, whose bytes the size counts together: libtutti sends one dict with their names and "
            "shapes, its peers a bare message for each tensor, all of them begun at once",
}
RUN_LIMIT_S = 180
IDLE_WAIT_S = 6
IDLE_ENOUGH = 0.9


def cpu_count():
    return len(os.sched_getaffinity(0))


class Case:
    """One table: a collective and a type on so many ranks, and who is asked."""

    def __init__(self, collective, dtype, ranks, sizes, peers, touch_from):
        self.collective, self.dtype, self.ranks, self.sizes, self.peers = collective, dtype, ranks, sizes, peers
        self.touch_from = touch_from
        self.in_place = collective in IN_PLACE
        self.notes = [MEANINGS[collective]] if collective in MEANINGS else []
        self.dropped = set()
        self.failed = False  # libtutti did not end as it should

    @property
    def name(self):
        with_registered = "-registered" if "registered" in self.peers else ""
        return f"{self.collective}-{self.dtype}-np{self.ranks}{with_registered}"

    def arguments(self, budget):
        return [self.collective, "-d", self.dtype, "-o", "sum", "-r", "-1", "--sizes", ",".join(map(str, self.sizes)), "--pin",
                "--place", "in" if self.in_place else "out", "--touch-from", str(self.touch_from), "--budget", str(budget), "--json", "-"]


def default_cases(touch_from):
    mpis = ["ompi4", "mpich4", "impi"]
    cases = [
        Case("all_reduce", "float32", 2, SMALL + LARGE, ["tutti", *mpis, "ccl"], touch_from),
        Case("all_reduce", "bfloat16", 2, SMALL + LARGE, ["tutti", "ompi4", "mpich5", "impi", "ccl"], touch_from),
        Case("all_reduce", "float32", 4, SMALL, ["tutti", "ompi4", "impi"], touch_from),
        Case("all_reduce", "float32", 2, [MIB, *LARGE], ["tutti", "registered"], touch_from),
        Case("pingpong", "float32", 2, SMALL, ["tutti", *mpis], touch_from),
        Case("dict", "float32", 2, [32 * KIB, 512 * KIB, 2 * MIB, 8 * MIB], ["tutti", *mpis], touch_from),
    ]
    for collective in ("broadcast", "all_gather", "reduce_scatter", "all_to_all"):
        cases.append(Case(collective, "float32", 2, SMALL + LARGE[:1], ["tutti", "ompi4", "impi"], touch_from))
        cases.append(Case(collective, "float32", 4, SMALL, ["tutti", "ompi4", "impi"], touch_from))
    return cases


# ---- Running ---------------------------------------------------------------------------------------------------------


def idle_share(seconds=0.2):
    """How much of the machine was idle while we looked."""

    def read():
        with open("/proc/stat") as stat:
            fields = [int(field) for field in stat.readline().split()[1:]]
        return fields[3] + fields[4], sum(fields[:8])

    idle, total = read()
    time.sleep(seconds)
    idle_now, total_now = read()
    return (idle_now - idle) / max(1, total_now - total)


def wait_for_idle(limit_s):
    end = time.monotonic() + limit_s
    share = idle_share()
    while share < IDLE_ENOUGH and time.monotonic() < end:
        share = idle_share()
    return share


def run_program(command, environment, limit=RUN_LIMIT_S):
    """What it printed, and a sentence if it failed. Leaves no process behind, whatever ends us."""
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                               env={**os.environ, **environment})
    try:
        out, err = program.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        end_program(program)
        return "", f"took longer than {limit} s"
    except BaseException:
        end_program(program)
        raise
    if program.returncode == 0:
        return out, None
    return out, f"ended with status {program.returncode}: {(err.strip().splitlines() or ['it says nothing'])[-1]}"


def end_program(program):
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(program.pid, number)
            program.communicate(timeout=3)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


class Progress:
    """Which run of how many, and how long the rest will take. On a terminal one line that changes."""

    def __init__(self, runs):
        self.runs, self.done, self.start = runs, 0, time.monotonic()
        self.terminal = sys.stderr.isatty()

    def show(self, what):
        left = ""
        if self.done >= 3:
            seconds = (time.monotonic() - self.start) / self.done * (self.runs - self.done)
            left = f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"
        line = f"[{self.done + 1} of {self.runs}{left}] {what}"
        print(f"\r\033[K{line}" if self.terminal else line, end="" if self.terminal else "\n", file=sys.stderr, flush=True)
        self.done += 1

    def clear(self):
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def run_case(case, member, prefix, arguments, round_number, rows, versions):
    idle = wait_for_idle(arguments.wait)
    command, environment = member.command(case.ranks, cpu_count())
    whole = [*prefix, *command, *case.arguments(arguments.budget), *member.arguments()]
    out, problem = run_program(whole, environment)
    try:
        result = json.loads(out[out.index("{"):])  # also where the status is 1 because elements were wrong: the rows say so
    except ValueError:
        case.notes.append(f"{member.name}: {problem or 'printed no JSON'}; left out from here on")
        case.dropped.add(member.name)
        case.failed = case.failed or member.name == "tutti"
        return
    versions[member.name] = result["library"]
    for row in result["rows"]:
        figure = row["in_place" if case.in_place else "out_of_place"]
        if row["note"] or figure is None:
            case.notes.append(f"{member.name}: {row['note'] or 'has no such form'}")
            case.dropped.add(member.name)
            return
        rows.append({"case": case.name, "implementation": member.name, "round": round_number, "bytes": row["bytes"],
                     "collective": case.collective, "dtype": case.dtype, "ranks": case.ranks, "place": "in" if case.in_place else "out",
                     "served_by": row["served_by"], "idle_before": round(idle, 3), **figure})


def measure(cases, members, prefix, arguments):
    """All rows, the floor's rows, and what everybody said they were."""
    rows, floors, versions = [], [], {}
    rounds = arguments.rounds
    progress = Progress(rounds * (1 + sum(len(case.peers) for case in cases)))
    floor = implementations.build_floor()
    for round_number in range(1, rounds + 1):
        progress.show(f"floor, round {round_number}")
        wait_for_idle(arguments.wait)
        out, problem = run_program([*prefix, floor], {})
        if problem is None:
            floors.append(json.loads(out))
        for case in cases:
            for name in case.peers:
                progress.show(f"{case.name}: {name}, round {round_number}")
                if name in case.dropped or "tutti" in case.dropped:
                    continue
                run_case(case, members[name], prefix, arguments, round_number, rows, versions)
    progress.clear()
    return rows, floors, versions


# ---- The command line ------------------------------------------------------------------------------------------------


def size_of(text):
    units = {"K": KIB, "M": MIB, "G": 1 << 30}
    return int(text[:-1]) * units[text[-1].upper()] if text[-1].upper() in units else int(text)


def parse():
    names = [member.name for member in implementations.everyone()][1:]
    parser = argparse.ArgumentParser(prog="make bench BENCH=...", description=__doc__.split("\n\n")[0])
    items = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--collective", type=items, help="all_reduce,broadcast,...; any of these three makes a table for every combination")
    parser.add_argument("--dtype", type=items, help="float32,bfloat16,... (float32)")
    parser.add_argument("--np", type=items, help="numbers of ranks (2)")
    parser.add_argument("--sizes", type=items, help="bytes; K and M are understood")
    parser.add_argument("--touch-from", type=size_of, default=64 * KIB, help="from this size on, buffers are written before and read after (64K)")
    parser.add_argument("--peers", type=items, help=f"of {', '.join(names)}; or none")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is run (3)")
    parser.add_argument("--budget", type=float, default=100, help="milliseconds for each size in each run (100)")
    parser.add_argument("--wait", type=float, default=IDLE_WAIT_S, help="seconds to wait at most for an idle machine before each run (6)")
    parser.add_argument("--real-time", action="store_true", help="run everything under chrt -f, where that is permitted")
    parser.add_argument("--name", default=None, help="of the folder of the results, after the date")
    parser.add_argument("--out", default="benches/results", help="where that folder goes")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds is at least 1")
    if arguments.peers == ["none"]:
        arguments.peers = []
    for name in arguments.peers or []:
        if name not in names:
            parser.error(f'there is no peer "{name}"; there are {", ".join(names)}')
    try:
        arguments.sizes = [size_of(size) for size in arguments.sizes or []]
        arguments.np = [int(ranks) for ranks in arguments.np or []]
    except (ValueError, IndexError):
        parser.error("--sizes and --np take numbers")
    return arguments


def chosen_cases(arguments):
    if not (arguments.collective or arguments.dtype or arguments.np):
        cases = default_cases(arguments.touch_from)
        for case in cases:
            case.sizes = arguments.sizes or case.sizes
            if arguments.peers is not None:
                case.peers = ["tutti", *arguments.peers]
        return list({case.name: case for case in cases}.values())
    cases = []
    for collective in arguments.collective or ["all_reduce"]:
        for dtype in arguments.dtype or ["float32"]:
            for ranks in arguments.np or [2]:
                peers = arguments.peers if arguments.peers is not None else ["ompi4", "mpich4", "impi"]
                sizes = arguments.sizes or (SMALL + LARGE if ranks <= cpu_count() else SMALL)
                cases.append(Case(collective, dtype, ranks, sizes, ["tutti", *peers], arguments.touch_from))
    return cases


def prepare(cases, named):
    """Installs and builds whom the cases need, and takes out of them who is not to be had."""
    wanted = {name for case in cases for name in case.peers}
    objects = implementations.build_harness()
    members, missing = {}, {}
    for member in implementations.everyone():
        if member.name not in wanted:
            continue
        print(f"preparing {member.title}", file=sys.stderr, flush=True)
        try:
            member.prepare(objects)
            members[member.name] = member
        except implementations.Missing as why:
            if member.name == "tutti":
                raise
            missing[member.name] = f"{member.title} is left out: {why}"
            print(missing[member.name], file=sys.stderr)
    for case in cases:
        for name in list(case.peers):
            if name in missing:
                case.peers.remove(name)
                case.notes.append(missing[name])
            elif not members[name].serves(case.collective, case.dtype):
                case.peers.remove(name)
                case.notes.append(f"{name} has no {case.collective} of {case.dtype}")
            elif case.ranks > cpu_count() and not members[name].more_ranks_than_cpus and name not in (named or []):
                case.peers.remove(name)
                case.notes.append(f"{name} is left out: its waiting ranks keep the CPU, and a call takes milliseconds where ranks are more than CPUs")
    return members


def stopped(number, frame):
    raise KeyboardInterrupt


def main():
    arguments = parse()
    signal.signal(signal.SIGTERM, stopped)  # as Ctrl-C: what runs is ended too
    cases = chosen_cases(arguments)
    try:
        prefix = implementations.real_time() if arguments.real_time else []
    except implementations.Missing as why:
        print(f"--real-time is not permitted here: {why}", file=sys.stderr)
        prefix = []
    try:
        members = prepare(cases, arguments.peers)
        started = time.time()
        rows, floors, versions = measure(cases, members, prefix, arguments)
    except implementations.Missing as why:
        print(why, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing is written", file=sys.stderr)
        return 130
    what = arguments.name or ("chosen" if len(sys.argv) > 1 and (arguments.collective or arguments.dtype or arguments.np) else "cpu")
    facts = {"command": "make bench" + (f" BENCH='{' '.join(sys.argv[1:])}'" if len(sys.argv) > 1 else ""), "rounds": arguments.rounds,
             "budget_ms": arguments.budget, "touch_from": arguments.touch_from, "real_time": bool(prefix), "seconds": round(time.time() - started),
             "libraries": versions, **report.machine()}
    folder = report.write(arguments.out, what, facts, cases, members, rows, floors)
    print(open(f"{folder}/table.md").read())
    print(f"{folder}/: table.md, rows.jsonl, machine.json and a picture of every table", file=sys.stderr)
    wrong = [row for row in rows if row["wrong"] > 0]
    for row in wrong:
        print(f"wrong results: {row['implementation']}, {row['case']}, {row['bytes']} B", file=sys.stderr)
    return 1 if wrong or any(case.failed for case in cases) else 0


if __name__ == "__main__":
    sys.exit(main())

"""What becomes of the rows: medians over rounds, ratios, the floor, tables, pictures, and a description of the machine."""

import json
import math
import os
import platform
import statistics
import subprocess
import time

COLOURS = {"tutti": "#0072b2", "registered": "#56b4e9", "ompi4": "#d55e00", "ompi5": "#e69f00", "mpich4": "#009e73", "mpich5": "#8a6d3b",
           "impi": "#cc79a7", "ccl": "#777777", "floor": "#222222"}
LINE = 64
MIB = 1 << 20


def machine():
    """What may stand in a file that everybody reads: no names of hosts, users or directories."""
    model, commit = "unknown", "unknown"
    with open("/proc/cpuinfo") as cpuinfo:
        for line in cpuinfo:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    try:
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip() or commit
    except OSError:
        pass
    memory_kib = int(next(line.split()[1] for line in open("/proc/meminfo") if line.startswith("MemTotal")))
    return {"date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "cpu": model, "cpus": len(os.sched_getaffinity(0)), "architecture": platform.machine(),
            "memory_gib": round(memory_kib / MIB, 1), "kernel": platform.release(), "compiler": compiler(), "commit": commit}


def compiler():
    try:
        return subprocess.run([os.environ.get("CC", "cc"), "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    except (OSError, IndexError):
        return "unknown"


# ---- The floor -------------------------------------------------------------------------------------------------------


class Floor:
    """What a call cannot be faster than, for all-reduce between two ranks that sit on two cores."""

    def __init__(self, floors):
        middle = lambda values: statistics.median(values)  # noqa: E731
        self.handoff = middle(floor["handoff_ns"] for floor in floors)
        self.barrier = middle(floor["barrier_ns"] for floor in floors)
        self.pull = {int(size): middle(floor["pull_ns"][size] for floor in floors) for size in floors[0]["pull_ns"]}
        self.reduce = {int(size): middle(floor["reduce_ns"][size] for floor in floors) for size in floors[0]["reduce_ns"]}

    def us(self, size):
        """One hand-off and the lines at the best rate of that size, between measured sizes the rate of the one below;
        in main memory what reading and writing half of both buffers takes."""
        if size <= LINE:
            return self.handoff / 1e3
        if size > max(self.pull):
            known = max((known for known in self.reduce if known <= size), default=min(self.reduce))
            return self.reduce[known] * size / known / 1e3
        known = max((known for known in self.pull if known <= size), default=min(self.pull))
        return (self.handoff + self.pull[known] * size / known) / 1e3

    def sentence(self):
        rates = ", ".join(f"{size_text(size)} {size / ns:.1f}" for size, ns in self.pull.items())
        memory = ", ".join(f"{size_text(size)} {ns / 1e6:.2f} ms" for size, ns in self.reduce.items())
        return (f"Floor, measured in the same run: a line takes {self.handoff:.0f} ns from core to core, a barrier of two flags "
                f"{self.barrier:.0f} ns; lines that the other core has just written are read at {rates} GB/s; two cores that "
                f"each reduce half of two buffers in memory take {memory}. floor(size) = hand-off + size / rate, beyond "
                f"{size_text(max(self.pull))} the time of reducing in memory.")


# ---- Words -----------------------------------------------------------------------------------------------------------


def size_text(size):
    for unit, name in ((MIB, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def number(value):
    """Three digits that matter."""
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


# ---- Tables ----------------------------------------------------------------------------------------------------------


class Table:
    """One case: the median over rounds for each implementation and size."""

    def __init__(self, case, rows, floor):
        self.case = case
        self.rows = [row for row in rows if row["case"] == case.name]
        self.names = [name for name in case.peers if any(row["implementation"] == name for row in self.rows)]
        self.sizes = sorted({row["bytes"] for row in self.rows})
        self.floor = floor if case.collective == "all_reduce" and case.ranks == 2 else None

    def us(self, name, size):
        times = [row["us"] for row in self.rows if row["implementation"] == name and row["bytes"] == size]
        return statistics.median(times) if times else None

    def served_by(self, name, size):
        return next((row["served_by"] for row in self.rows if row["implementation"] == name and row["bytes"] == size), "")

    def lines(self):
        """The table's cells, its heading first."""
        heading = ["size", *(f"{name} µs" if name == "tutti" else f"{name} µs (ratio)" for name in self.names)]
        if self.floor:
            heading += ["floor µs", "time/floor"]
        lines = [[*heading, "served by"]]
        for size in self.sizes:
            own = self.us("tutti", size)
            touched = any(row["touched"] for row in self.rows if row["bytes"] == size)
            line = [size_text(size) + ("*" if touched else "")]
            for name in self.names:
                us = self.us(name, size)
                ratio = f" ({us / own:.2f})" if us is not None and own and own > 0 and name != "tutti" else ""
                line.append("-" if us is None else number(us) + ratio)
            if self.floor:
                floor = self.floor.us(size)
                line += [number(floor), f"{own / floor:.2f}" if own else "-"]
            lines.append([*line, self.served_by("tutti", size)])
        return lines

    def notes(self):
        notes = list(dict.fromkeys(self.case.notes))
        for name in self.names:
            served = {row["served_by"] for row in self.rows if row["implementation"] == name}
            if "MPI_Op in plain C" in served:
                notes.append(f"{name} has no {self.case.dtype}: two-byte elements and an operation of our own, a loop that the compiler vectorises")
        return notes

    def markdown(self):
        place = "in place" if self.case.in_place else "out of place"
        against = ", private and registered buffers" if "registered" in self.case.peers else ""
        text = f"## {self.case.collective}, {self.case.dtype}, {self.case.ranks} ranks{against}\n\n"
        if self.sizes:
            text += f"{place}\n\n"
            lines = self.lines()
            widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
            write = lambda cells: "| " + " | ".join(cell.rjust(width) for cell, width in zip(cells, widths)) + " |\n"  # noqa: E731
            text += write(lines[0]) + "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|\n"
            text += "".join(write(line) for line in lines[1:])
        for note in self.notes():
            text += f"\n* {note}"
        return text.rstrip() + "\n"


# ---- Pictures --------------------------------------------------------------------------------------------------------


def picture(table):
    """Time over size, both logarithmic, as tutti-perf draws it."""
    width, height, left, top, bottom, legend = 960, 560, 86, 84, 72, 190
    series = [(name, [(size, table.us(name, size)) for size in table.sizes]) for name in table.names]
    if table.floor:
        series.append(("floor", [(size, table.floor.us(size)) for size in table.sizes]))
    series = [(name, [(size, us) for size, us in points if us and us > 0 and size > 0]) for name, points in series]
    times = [us for _, points in series for _, us in points]
    if not times:
        return None
    low_x, high_x = math.log2(table.sizes[0]) - 0.5, math.log2(table.sizes[-1]) + 0.5
    low_y, high_y = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)) + 0.01)
    x_of = lambda size: left + (math.log2(size) - low_x) / (high_x - low_x) * (width - left - legend)  # noqa: E731
    y_of = lambda us: height - bottom - (math.log10(us) - low_y) / (high_y - low_y) * (height - top - bottom)  # noqa: E731
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
           'font-family="DejaVu Sans, Verdana, Arial, sans-serif" font-size="13" fill="#222">', '<rect width="100%" height="100%" fill="#fff"/>']

    def text(x, y, words, style=""):
        out.append(f'<text x="{x:.1f}" y="{y:.1f}" {style}>{words}</text>')

    case = table.case
    text(left, 34, f"{case.collective}, {case.dtype}, {case.ranks} ranks", 'font-size="20" font-weight="bold"')
    text(left, 58, f"{'in' if case.in_place else 'out of'} place; median over rounds of the slowest rank's median", 'fill="#555"')
    for decade in range(low_y, high_y + 1):
        for digit in range(1, 10 if decade < high_y else 2):
            y = y_of(digit * 10.0**decade)
            out.append(f'<line x1="{left}" y1="{y:.1f}" x2="{width - legend}" y2="{y:.1f}" stroke="{"#bbb" if digit == 1 else "#eee"}"/>')
        value = 10.0**decade
        words = f"{value * 1e3:g} ns" if value < 1 else f"{value:g} µs" if value < 1e3 else f"{value / 1e3:g} ms" if value < 1e6 else f"{value / 1e6:g} s"
        text(left - 10, y_of(value) + 5, words, 'text-anchor="end"')
    for size in table.sizes:
        if size > 0:
            out.append(f'<line x1="{x_of(size):.1f}" y1="{top}" x2="{x_of(size):.1f}" y2="{height - bottom + 5}" stroke="#ddd"/>')
            text(x_of(size), height - bottom + 22, size_text(size), 'text-anchor="middle"')
    out.append(f'<rect x="{left}" y="{top}" width="{width - legend - left}" height="{height - bottom - top}" fill="none" stroke="#444"/>')
    text((left + width - legend) / 2, height - 20, "size", 'text-anchor="middle" font-size="15"')
    middle = (top + height - bottom) / 2
    text(20, middle, "time of one call", f'transform="rotate(-90 20 {middle})" text-anchor="middle" font-size="15"')
    for index, (name, points) in enumerate(series):
        colour, dash = COLOURS.get(name, "#222"), "5 4" if name == "floor" else "none"
        stroke = 3 if name == "tutti" else 2
        line = " ".join(f"{x_of(size):.1f},{y_of(us):.1f}" for size, us in points)
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="{stroke}" stroke-dasharray="{dash}" points="{line}"/>')
        if name != "floor":
            for size, us in points:
                out.append(f'<circle cx="{x_of(size):.1f}" cy="{y_of(us):.1f}" r="3.6" fill="{colour}" stroke="#fff">'
                           f"<title>{name}, {size_text(size)}: {number(us)} µs</title></circle>")
        y = top + 12 + 22 * index
        out.append(f'<line x1="{width - legend + 14}" y1="{y}" x2="{width - legend + 40}" y2="{y}" stroke="{colour}" stroke-width="{stroke}" stroke-dasharray="{dash}"/>')
        text(width - legend + 48, y + 5, name)
    return "\n".join([*out, "</svg>\n"])


# ---- Files -----------------------------------------------------------------------------------------------------------


def introduction(facts, members, floor):
    names = "".join(f"* {name}: {facts['libraries'][name]} ({members[name].title})\n" for name in members if name in facts["libraries"])
    touched = size_text(facts["touch_from"])
    return (f"# {facts['command']}\n\n{facts['date']}, {facts['cpu']}, {facts['cpus']} CPUs, {facts['memory_gib']} GiB, Linux {facts['kernel']}, "
            f"{facts['compiler']}, libtutti at {facts['commit']}; {facts['seconds']} s\n\n{names}\n"
            f"Times are in µs: the median over {facts['rounds']} interleaved rounds of the median over batches, of the slowest rank; rank r "
            f"on the r-th CPU, counted round{', all under chrt -f' if facts['real_time'] else ''}. A ratio is a peer's time over libtutti's: "
            f"above 1 libtutti is faster. Sizes with a star ({touched} and more): every input is written before and every result read after "
            f"its call, and the time that takes without the call subtracted. Roots rotate. Results were compared bit by bit: those of the "
            f"first calls, of the last call of every batch where calls leave their input alone, and, where buffers are touched, a checksum "
            f"of every result.\n\n{floor.sentence() if floor else 'The floor was not measured.'}\n")


def write(out, what, facts, cases, members, rows, floors):
    """Writes everything into a new folder and returns its name."""
    base = os.path.join(out, f"{time.strftime('%Y-%m-%d', time.gmtime())}-{what}")
    folder, copies = base, 1
    while os.path.exists(folder):
        copies += 1
        folder = f"{base}-{copies}"
    os.makedirs(folder)
    floor = Floor(floors) if floors else None
    tables = [Table(case, rows, floor) for case in cases]
    with open(f"{folder}/rows.jsonl", "w") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    with open(f"{folder}/machine.json", "w") as file:
        json.dump({**facts, "floor": floors}, file, indent=1)
        file.write("\n")
    with open(f"{folder}/table.md", "w") as file:
        file.write("\n".join([introduction(facts, members, floor), *(table.markdown() for table in tables)]))
    for table in tables:
        drawing = picture(table)
        if drawing:
            with open(f"{folder}/{table.case.name}.svg", "w") as file:
                file.write(drawing)
    return folder

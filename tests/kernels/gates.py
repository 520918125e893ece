"""The gates of the GPU kernels that need no GPU; one line for each, and a count at the end.

    source    no assembly outside the thin layer, no foreign header, system scope on every word that ranks share
    ptx       the committed PTX is, byte for byte, what the compiler makes of the sources (`--write` makes it so)
    text      instructions that must and must not be in the PTX
    ptxas     two assemblers accept it for every target, within the limits for registers, without spills
    sass      instructions that must and must not be in the machine code; loads that are in flight together
    run       the same sources, compiled as C++, keep their promises under the sanitizers (cpu/harness.cpp)
    plants    mistakes planted in the kernels are caught by the same runs (plants.py)

The protocol does not depend on the element type, so ThreadSanitizer watches fp32 and the kernels that move, and all
types run under AddressSanitizer.

usage: gates.py [--write] [--quick] [--jobs N] [--only GATE]...
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

from nvrtc import Nvrtc
from plants import PLANTS

ROOT = pathlib.Path(__file__).resolve().parents[2]
KERNELS = ROOT / "src/cuda/kernels"
TESTS = ROOT / "tests/kernels"
TOOLS = ROOT / ".tools/kernels"
WORK = TOOLS / "work"
UNPACKED = TOOLS / "unpacked"

MODULES = ["float32", "float16", "bfloat16", "integers", "movement"]
TYPES = {"float32": ["float32"], "float16": ["float16"], "bfloat16": ["bfloat16"], "integers": ["int8", "int32", "int64"]}
REDUCING = ["all_reduce_push_one_shot", "all_reduce_push_two_shot", "all_reduce_pull_one_shot",
            "all_reduce_pull_two_shot", "reduce_scatter_push", "reduce_scatter_pull"]
MOVING = ["all_gather_push", "all_gather_pull", "broadcast_push", "broadcast_pull"]
VIRTUAL = ["compute_80", "compute_90"]

PTXAS = {"12.2": UNPACKED / "nvidia_cuda_nvcc_cu12/nvidia/cuda_nvcc/bin/ptxas",
         "13.0": UNPACKED / "nvidia_cuda_nvcc/nvidia/cu13/bin/ptxas"}
# Which assembler takes which PTX to which machine: all of sm_80 and newer that it knows.
TARGETS = [("12.2", "compute_80", ["sm_80", "sm_86", "sm_89"]),
           ("12.2", "compute_90", ["sm_90"]),
           ("13.0", "compute_80", ["sm_80", "sm_86", "sm_89"]),
           ("13.0", "compute_90", ["sm_90", "sm_100", "sm_103", "sm_110", "sm_120", "sm_121"])]
# A block of 256 threads may have 255 registers each; the kernels that pull shall fit twice into a multiprocessor.
MOST_REGISTERS = {"push": 224, "pull": 128}
MOST_SHARED_BYTES = 1024

# Every way in which the PTX may touch memory, or order it. What is not listed is refused.
ALLOWED = {
    # payload, this rank's own or acquired; a table the host fills between kernels
    "ld.global.v4.u32", "st.global.v4.u32", "ld.global.u32", "ld.global.u16", "ld.global.u8", "ld.global.u64",
    "st.global.u32", "st.global.u16", "st.global.u8",
    # words between ranks, and between kernels and host
    "ld.relaxed.sys.global.v2.u64", "st.relaxed.sys.global.v2.u64",
    "ld.acquire.sys.global.v2.u64", "st.release.sys.global.v2.u64",
    "ld.acquire.sys.global.u32", "st.release.sys.global.u32",
    "ld.relaxed.sys.global.u32", "st.relaxed.sys.global.u32",
    "ld.relaxed.sys.global.u64", "st.relaxed.sys.global.u64",
    "atom.relaxed.sys.global.cas.b64", "fence.acq_rel.sys",
    # words of this rank's own kernels
    "ld.relaxed.gpu.global.u64", "st.relaxed.gpu.global.u64",
    "atom.relaxed.gpu.global.or.b64", "atom.relaxed.gpu.global.exch.b32",
}

WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]
# For every machine --quick assembles all modules but the one that takes longest, and that one for these.
ALWAYS_ALL = ["sm_80", "sm_90", "sm_120"]
SANITIZERS = {"tsan": ["-fsanitize=thread"], "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]}
ENVIRONMENT = {"TSAN_OPTIONS": "halt_on_error=1 exitcode=66", "ASAN_OPTIONS": "detect_leaks=0"}


class Failed(Exception):
    """What a gate found wrong."""


class Gates:
    """Counts what passed and what did not."""

    def __init__(self, jobs: int):
        self.pool = concurrent.futures.ThreadPoolExecutor(jobs)
        self.passed = self.failed = 0

    def check_all(self, checks):
        """Runs (name, function, arguments) side by side and prints a line for each, in order."""
        futures = [(name, self.pool.submit(self._timed, function, arguments)) for name, function, arguments in checks]
        for name, future in futures:
            seconds, note, error = future.result()
            if error is None:
                self.passed += 1
                print(f"ok      {name}{': ' + note if note else ''} ({seconds:.0f} s)", flush=True)
            else:
                self.failed += 1
                print(f"not ok  {name}: {error}", flush=True)

    @staticmethod
    def _timed(function, arguments):
        start = time.monotonic()
        try:
            note = function(*arguments)
            return time.monotonic() - start, note, None
        except (Failed, RuntimeError, OSError, subprocess.SubprocessError) as error:
            return time.monotonic() - start, None, error


def run(command, timeout=600, **options):
    return subprocess.run([str(part) for part in command], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=timeout, check=False, **options)


def must(command, **options) -> str:
    done = run(command, **options)
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, command[:2]))} ... ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def names(module: str) -> list[str]:
    """The entries that a module must have."""
    if module == "movement":
        return MOVING
    return [f"{kernel}_{element}" for element in TYPES[module] for kernel in REDUCING]


def ptx_file(module: str, arch: str) -> pathlib.Path:
    return KERNELS / "ptx" / f"{module}.{arch}.ptx"


# ---- source ----

def check_source():
    for path in sorted(KERNELS.glob("*.*")):
        if path.suffix == ".md":
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            where = f"{path.name}:{number}"
            include = re.match(r'\s*#\s*include\s*([<"].*[>"])', line)
            if include and include[1] not in ["<stdint.h>", '"ptx_cpu.h"'] and not (KERNELS / include[1][1:-1]).exists():
                raise Failed(f"{where} includes {include[1]}")
            if path.name == "ptx.cuh":
                continue
            if re.search(r"\basm\b|__threadfence|\bvolatile\b|\batomic", line):
                raise Failed(f"{where} goes round the thin layer")
            if "_gpu(" in line and not re.search(r"turn_of\(|state_of\(|state->", line):
                raise Failed(f"{where} uses device scope for something that is not this rank's own")


# ---- ptx ----

def make_ptx(compiler: Nvrtc, module: str, arch: str, write: bool) -> str:
    headers = {path.name: path.read_text() for path in sorted([*KERNELS.glob("*.cuh"), *KERNELS.glob("*.h")])}
    name = f"{module}.cu"
    text = compiler.compile(name, (KERNELS / name).read_text(), headers, arch)
    path = ptx_file(module, arch)
    if write:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    if not path.exists() or path.read_text() != text:
        raise Failed(f"{path.relative_to(ROOT)} is not what the sources give; run tests/kernels/run.sh --write")
    return f"{len(text)} bytes"


# ---- text ----

def entries_of(text: str, pattern: str) -> dict[str, str]:
    """The bodies behind the headings that `pattern` finds."""
    found = list(re.finditer(pattern, text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    return {match[1]: text[match.end():end] for match, end in zip(found, ends)}


def count(body: str, instruction: str) -> int:
    return len(re.findall(rf"\b{re.escape(instruction)}(?![\w.])", body))


def check_text(module: str, arch: str):
    entries = entries_of(ptx_file(module, arch).read_text(), r"\.entry (\w+)\(")
    if sorted(entries) != sorted(names(module)):
        raise Failed(f"the entries are {sorted(entries)}")
    for name, body in entries.items():
        def expect(truth, what):
            if not truth:
                raise Failed(f"{name} ({arch}): {what}")
        touches = re.findall(r"(?<![.\w])(?:ld|st|atom|red|fence|membar|prefetch|cp)\.[\w.]+", body)
        memory = [one for one in touches if not one.startswith(("ld.param", "ld.shared", "st.shared"))]
        for one in memory:
            expect(one in ALLOWED, f"{one} is not one of the allowed ways to touch memory")
        expect(".local" not in body, "local memory")
        expect(not re.search(r"\.ftz|\bfma\.|\.approx|\bdiv\.full", body), "inexact or contracted arithmetic")
        expect(count(body, "ld.global.v4.u32") and count(body, "st.global.v4.u32"), "no 16-byte access to payload")
        if "_push" in name:
            expect(count(body, "ld.relaxed.sys.global.v2.u64") >= 16, "eight ranks' lines are not polled at once")
            expect(count(body, "st.relaxed.sys.global.v2.u64") >= 4, "no 16-byte lines are sent")
        if "_pull" in name or "broadcast" in name:
            expect(count(body, "st.release.sys.global.v2.u64") and count(body, "ld.acquire.sys.global.v2.u64"),
                   "the ready flag is not released and acquired at system scope")
        if "_pull" in name:
            expect(count(body, "st.release.sys.global.u32") >= 2 and count(body, "ld.acquire.sys.global.u32"),
                   "the done flag is not released and acquired at system scope")
        if "float" in name:
            expect(count(body, "add.rn.f32") and count(body, "div.rn.f32"), "no rounded fp32 arithmetic")
            expect(count(body, "max.NaN.f32") and count(body, "min.NaN.f32"), "max and min lose NaN")
        expect(body.count("%globaltimer") >= 1 and count(body, "atom.relaxed.sys.global.cas.b64"), "waits for ever")
        waits, triggers = count(body, "griddepcontrol.wait"), count(body, "griddepcontrol.launch_dependents")
        if arch == "compute_80":
            expect(waits == 0 and triggers == 0, "griddepcontrol, which sm_80 has not")
            continue
        expect(waits == 1 and triggers == 1, "not exactly one griddepcontrol.wait and one launch_dependents")
        first = min(body.index(one) for one in set(memory))
        last = max(body.rindex(one) for one in set(memory))
        expect(body.index("griddepcontrol.wait") < first, "memory is touched before the kernels ahead are complete")
        expect(body.index("griddepcontrol.launch_dependents") > last, "dependents are launched before the last store")
    return f"{len(entries)} kernels"


# ---- ptxas and sass ----

def assemble(version: str, virtual: str, target: str, modules: list[str]):
    most = {"push": 0, "pull": 0}
    for module in modules:
        cubin = WORK / f"{module}.{version}.{target}.cubin"
        log = must([PTXAS[version], f"-arch={target}", "-v", ptx_file(module, virtual), "-o", cubin])
        infos = entries_of(log, r"Compiling entry function '(\w+)' for")
        if sorted(infos) != sorted(names(module)):
            raise Failed(f"assembled {sorted(infos)}")
        for name, info in infos.items():
            kind = "push" if "_push" in name else "pull"
            registers = int(re.search(r"Used (\d+) registers", info)[1])
            shared = int((re.search(r"(\d+) bytes smem", info) or [0, 0])[1])
            most[kind] = max(most[kind], registers)
            if "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" not in info:
                raise Failed(f"{name} spills: {info.strip()}")
            if registers > MOST_REGISTERS[kind] or shared > MOST_SHARED_BYTES:
                raise Failed(f"{name} needs {registers} registers and {shared} bytes of shared memory")
    return f"no spills, at most {most['push']} registers to push, {most['pull']} to pull"


# An instruction of 128 bits: its text, and the upper half of its code.
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+([^;]*);\s*/\* 0x[0-9a-f]{16} \*/\s*/\* 0x([0-9a-f]{16}) \*/")
# Loads further apart than this, in instructions, belong to different loops.
APART = 260


def loads_under_way(body: str) -> list[tuple[str, int, int]]:
    """The runs of 16-byte loads: "line" or "vector", how many there are, and how many of them are asked for before the code
    waits for one. From sm_70 on every instruction says in bits 46 to 48 of its upper half which of six counters its result
    will clear (7: none), and in bits 52 to 57 for which counters it waits."""
    runs = []
    kind, loads, first_wait, counters, last = "", 0, 0, set(), 0
    for number, (text, code) in enumerate(INSTRUCTION.findall(body)):
        waits = int(code, 16) >> 52 & 0x3f
        if not first_wait and any(waits >> counter & 1 for counter in counters):
            first_wait = loads
        load = re.search(r"\bLDG\.E\.128(\.STRONG\.SYS)? ", text)
        if not load:
            continue
        this = "line" if load[1] else "vector"
        if this != kind or number - last > APART:
            kind, loads, first_wait, counters = this, 0, 0, set()
            runs.append((kind, 0, 0))
        loads, last = loads + 1, number
        counters.add(int(code, 16) >> 46 & 7)
        runs[-1] = (kind, loads, first_wait or loads)
    return runs


def check_sass(module: str, target: str):
    cubin = WORK / f"{module}.13.0.{target}.cubin"
    tools = os.pathsep.join(str(UNPACKED / part / "nvidia/cu13/bin") for part in ["nvidia_cuda_nvdisasm"])
    sass = must([UNPACKED / "nvidia_cuda_cuobjdump/nvidia/cu13/bin/cuobjdump", "--dump-sass", cubin],
                env={**os.environ, "PATH": tools + os.pathsep + os.environ["PATH"]})
    entries = entries_of(sass, r"Function : (\w+)")
    if sorted(entries) != sorted(names(module)):
        raise Failed(f"the functions are {sorted(entries)}")
    for name, body in entries.items():
        def expect(truth, what):
            if not truth:
                raise Failed(f"{name} ({target}): {what}")
        expect(not re.search(r"\b(LDL|STL)\b", body), "local memory")
        expect(re.search(r"\bLDG\.E\.128 ", body) and re.search(r"\bSTG\.E\.128 ", body), "no 16-byte payload access")
        if "_push" in name:
            expect(len(re.findall(r"\bLDG\.E\.128\.STRONG\.SYS", body)) >= 16, "lines are not polled 16 bytes at once")
            expect(len(re.findall(r"\bSTG\.E\.128\.STRONG\.SYS", body)) >= 4, "lines are not sent 16 bytes at once")
        if "_pull" in name:
            expect(re.search(r"\bMEMBAR\.\w+\.SYS", body), "no system-wide release")
            expect(re.search(r"\bSTG\.E\.128\.STRONG\.SYS", body), "the ready flag is not one 16-byte store")
            expect(re.search(r"\bCCTL\.IVALL", body), "the acquire does not drop stale lines of the first cache")
        expect(not re.search(r"\.STRONG\.(SM|CTA)\b", body), "a scope that is too narrow")
        runs = loads_under_way(body)
        expect(any(loads >= 8 for _, loads, _ in runs), "no eight vectors are asked for at once")
        for kind, loads, under_way in runs:
            # Six counters are few for sixteen lines, so an assembler may wait for early ones; not for the first rank's.
            expect(under_way == loads or (kind == "line" and under_way >= 6), f"a {kind} is waited for after {under_way}")
        if target != "sm_80":
            expect("ACQBULK" in body and "PREEXIT" in body, "no programmatic dependent launch")
    return f"{len(entries)} kernels"


# ---- run and plants ----

def compile_host(folder: pathlib.Path, kernels: pathlib.Path, sanitizer: str, sources: list[str], few_types: bool,
                 warnings=WARNINGS):
    """Compiles what is named: kernel modules from `kernels`, the rest from cpu/."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        command = ["g++", "-std=c++17", "-O1", "-g", *warnings, "-DTUTTI_ON_CPU", f"-I{kernels}", f"-I{TESTS / 'cpu'}"]
        command += ["-DTUTTI_FEW_TYPES"] if few_types else []
        if source == "fibers":  # the scheduler itself is not watched
            command += ["-DTUTTI_TSAN"] if sanitizer == "tsan" else []
        else:
            command += SANITIZERS[sanitizer]
        path = kernels / f"{source}.cu" if source in MODULES else TESTS / "cpu" / f"{source}.cpp"
        must([*command, "-x", "c++", "-c", path, "-o", folder / f"{source}.o"])


def link_host(folder: pathlib.Path, sanitizer: str, objects: list[pathlib.Path]):
    must(["g++", *SANITIZERS[sanitizer], *objects, "-pthread", "-o", folder / "harness"])


MACHINE = ["fibers", "machine", "harness"]


def harness(folder: pathlib.Path, lanes: str, seed: int, test: str = "", **environment):
    return run([folder / "harness", lanes, seed, test], env={**os.environ, **ENVIRONMENT, **environment})


def check_run(folder: pathlib.Path, lanes: str, seed: int):
    done = harness(folder, lanes, seed)
    tests = len(re.findall(r"^ok ", done.stdout, re.M))
    late = re.findall(r"^FAILED (\w+)", done.stdout, re.M)
    # Threads meet deadlines only as far as the machine lets them run, so promises about those are tried again, alone.
    # What a sanitizer reported is not.
    if lanes == "threads" and done.returncode == 1 and late and "Sanitizer" not in done.stdout:
        done = next((again for again in (harness(folder, lanes, seed + 1, test) for test in late) if again.returncode != 0), None)
        if done is None:
            return f"{tests + len(late)} promises, {', '.join(late)} at the second try"
    if done.returncode != 0:
        raise Failed(f"ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return f"{tests} promises"


def check_plant(plant, number: int):
    folder = WORK / f"plant-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    kernels = folder / "kernels"
    shutil.copytree(KERNELS, kernels, ignore=shutil.ignore_patterns("ptx"))
    text = (kernels / plant.file).read_text()
    if text.count(plant.old) != 1:
        raise Failed(f"{plant.file} has {text.count(plant.old)} places to plant it")
    (kernels / plant.file).write_text(text.replace(plant.old, plant.new))
    try:
        compile_host(folder, kernels, "tsan", ["float32", "movement"], True, ["-w"])
        objects = [folder / f"{one}.o" for one in ["float32", "movement"]]
        link_host(folder, "tsan", objects + [WORK / "few" / f"{one}.o" for one in MACHINE])
        for seed in plant.seeds:
            done = harness(folder, "fibers", seed, plant.test, TUTTI_MOST_SWITCHES="4000000")
            caught = set()
            if "WARNING: ThreadSanitizer: data race" in done.stdout:
                caught.add("race")
            if re.search(r"^  \w+: (?!.*stuck)", done.stdout, re.M):
                caught.add("values")
            if "stuck" in done.stdout:
                caught.add("stuck")
            if done.returncode != 0 and caught & set(plant.caught):
                return f"caught by {' and '.join(sorted(caught))}, seed {seed}"
        raise Failed(f"not caught (the last run ended with {done.returncode}):\n{done.stdout[-1500:]}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the PTX instead of comparing it")
    parser.add_argument("--quick", action="store_true", help="leave out the integers for most machines")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", action="append", help="a gate; may be repeated")
    arguments = parser.parse_args()
    gates = Gates(arguments.jobs)
    WORK.mkdir(parents=True, exist_ok=True)

    def wanted(gate: str) -> bool:
        return not arguments.only or gate in arguments.only

    if wanted("source"):
        gates.check_all([("source", check_source, ())])
    if wanted("ptx") or arguments.write:
        compiler = Nvrtc(UNPACKED / "nvidia_cuda_nvrtc_cu12/nvidia/cuda_nvrtc/lib")
        gates.check_all([(f"ptx {module} {arch}", make_ptx, (compiler, module, arch, arguments.write))
                         for arch in VIRTUAL for module in MODULES])
    if wanted("text"):
        gates.check_all([(f"text {module} {arch}", check_text, (module, arch)) for arch in VIRTUAL for module in MODULES])
    if wanted("ptxas"):
        def modules_for(target: str) -> list[str]:
            return [one for one in MODULES if one != "integers" or not arguments.quick or target in ALWAYS_ALL]
        gates.check_all([(f"ptxas {version} {target} from {virtual}", assemble,
                          (version, virtual, target, modules_for(target)))
                         for version, virtual, targets in TARGETS for target in targets])
    if wanted("sass"):
        gates.check_all([(f"sass {module} {target}", check_sass, (module, target))
                         for target in ["sm_80", "sm_90", "sm_120"] for module in MODULES])
    few, all_types = WORK / "few", WORK / "all"
    types = {"tsan": (few, ["float32", "movement"]), "asan": (all_types, MODULES)}
    if wanted("run") or wanted("plants"):
        gates.check_all([(f"compile {source} for {name}", compile_host, (folder, KERNELS, name, [source], folder == few))
                         for name, (folder, modules) in types.items() if wanted("run") or name == "tsan"
                         for source in [*reversed(modules), *MACHINE]])
    if wanted("run"):
        for name, (folder, modules) in types.items():
            link_host(folder, name, [folder / f"{one}.o" for one in modules + MACHINE])
        gates.check_all([(f"run with {name} on {lanes}, seed {seed}", check_run, (folder, lanes, seed))
                         for name, (folder, _) in types.items() for lanes, seed in [("fibers", 1), ("threads", 2)]])
    if wanted("plants"):
        gates.check_all([(f"planted: {plant.name}", check_plant, (plant, number)) for number, plant in enumerate(PLANTS)])
    print(f"{gates.passed} passed, {gates.failed} failed")
    sys.exit(0 if gates.failed == 0 else 1)


if __name__ == "__main__":
    main()

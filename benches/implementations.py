"""Who is measured: how each implementation is obtained, built and started. Knows nothing of tables and rounds."""

import glob
import os
import shutil
import subprocess

BUILD = "target/bench"
HARNESS = sorted(glob.glob("examples-c/perf/*.c"))
CC = os.environ.get("CC", "cc")
CXX = os.environ.get("CXX", "c++")


class Missing(Exception):
    """The sentence that says why an implementation cannot be measured here."""


def _run(command, **more):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)
    if done.returncode != 0:
        last = (done.stdout.strip().splitlines() or ["it says nothing"])[-1]
        raise Missing(f"{' '.join(command[:3])} ... failed: {last}")
    return done.stdout


def build_harness():
    """The measuring code, compiled once and linked into every program."""
    os.makedirs(BUILD, exist_ok=True)
    objects = []
    for source in HARNESS:
        objects.append(f"{BUILD}/{os.path.basename(source)[:-2]}.o")
        _run([CC, "-std=c11", "-O3", "-c", source, "-o", objects[-1]])
    return objects


def build_floor():
    _run([CC, "-std=c11", "-O3", "-march=native", "-pthread", "benches/floor.c", "-o", f"{BUILD}/floor"])
    return f"{BUILD}/floor"


class Implementation:
    """One implementation. `prepare` raises Missing; `command` gives what starts `ranks` ranks, and its environment."""

    name = ""
    title = ""
    collectives = None  # all, or a set
    dtypes = None
    more_ranks_than_cpus = True  # whether waiting ranks give way, so that such a run ends in useful time

    def prepare(self, objects):
        raise NotImplementedError

    def command(self, ranks, cpus):
        raise NotImplementedError

    def arguments(self):
        return []

    def serves(self, collective, dtype):
        return (self.collectives is None or collective in self.collectives) and (self.dtypes is None or dtype in self.dtypes)


class Tutti(Implementation):
    name = "tutti"
    title = "libtutti"

    def prepare(self, objects):
        built = os.environ.get("BUILT", "target/release")
        self.program = f"{BUILD}/tutti-perf"
        _run([CC, "-std=c11", "-O3", "-Iinclude", "examples-c/tutti-perf.c", *objects, "-o", self.program, f"-L{built}", "-ltutti", "-lm",
              f"-Wl,-rpath,{os.path.abspath(built)}"])

    def command(self, ranks, cpus):
        return [self.program, "--np", str(ranks)], {}


class Registered(Tutti):
    name = "registered"
    title = "libtutti, buffers of tutti_mem_alloc"

    def arguments(self):
        return ["--registered"]


class Mpi(Implementation):
    """An MPI, of Debian (compiler wrapper on the PATH) or of the Python index (environment below .tools)."""

    def __init__(self, name, title, start, environment=None, wrapper=None, oversubscribe=(), gives_way=True):
        self.name, self.title = name, title
        self.start, self.wrapper, self.oversubscribe = start, wrapper, list(oversubscribe)
        self.more_ranks_than_cpus = gives_way
        self.environment = environment or {}

    def prepare(self, objects):
        _run(["tests/package/tools", self.name])
        self.program = f"{BUILD}/mpi_perf-{self.name}"
        flags = ["-std=c11", "-O3", "-march=native", "benches/peers/mpi_perf.c", *objects, "-o", self.program]
        if self.wrapper:
            _run([self.wrapper, *flags, "-lm"])
            return
        home = f".tools/{self.name}"
        _run([CC, *flags, f"-I{home}/include", f"-L{home}/lib", f"-Wl,-rpath,{os.path.abspath(home)}/lib", "-lmpi", "-lm"])

    def command(self, ranks, cpus):
        more = self.oversubscribe if ranks > cpus else []
        return [*self.start, *more, "-np", str(ranks), self.program], self.environment


class Ccl(Implementation):
    name = "ccl"
    title = "oneCCL"
    collectives = {"all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all", "barrier"}

    def prepare(self, objects):
        _run(["tests/package/tools", "ccl"])
        home = os.path.abspath(".tools/ccl")
        self.program = f"{BUILD}/ccl_perf"
        # Its libccl.so names libccl.so.1 and libccl.so.2 at once, at which the linker warns.
        _run([CXX, "-std=c++17", "-O3", "-w", "benches/peers/ccl_perf.cpp", *objects, "-o", self.program, f"-I{home}/include", f"-L{home}/lib",
              f"-Wl,-rpath,{home}/lib", f"-Wl,-rpath-link,{home}/lib", "-lccl", "-lmpi", "-lm"])
        # Without worker threads: with them, the default, a call takes 16 to 50 ms where ranks fill the cores.
        self.environment = {"I_MPI_ROOT": home, "LD_LIBRARY_PATH": f"{home}/lib", "I_MPI_PIN": "0", "I_MPI_FABRICS": "shm",
                            "CCL_WORKER_OFFLOAD": "0", "CCL_ATL_TRANSPORT": "mpi", "CCL_PROCESS_LAUNCHER": "hydra", "CCL_LOG_LEVEL": "error"}

    def command(self, ranks, cpus):
        return [".tools/ccl/bin/mpiexec.hydra", "-np", str(ranks), self.program], self.environment


def everyone():
    """In the order of the tables' columns."""
    open_mpi = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    intel = {"I_MPI_ROOT": os.path.abspath(".tools/impi"), "I_MPI_PIN": "0", "I_MPI_FABRICS": "shm"}
    return [
        Tutti(),
        Registered(),
        Mpi("ompi4", "Open MPI of Debian", ["mpirun.openmpi", *open_mpi, "--bind-to", "none"], wrapper="mpicc.openmpi",
            oversubscribe=["--oversubscribe"]),
        Mpi("ompi5", "Open MPI of the Python index", [".tools/ompi5/bin/mpirun", *open_mpi, "--bind-to", "none"],
            oversubscribe=["--map-by", ":OVERSUBSCRIBE"]),
        Mpi("mpich4", "MPICH of Debian", ["mpiexec.mpich"], wrapper="mpicc.mpich", gives_way=False),
        Mpi("mpich5", "MPICH of the Python index", [".tools/mpich5/bin/mpiexec"], gives_way=False),
        Mpi("impi", "Intel MPI", [".tools/impi/bin/mpiexec.hydra"], environment=intel),
        Ccl(),
    ]


def real_time():
    """What starts a program ahead of all others; Missing where that is not permitted."""
    if shutil.which("chrt") is None:
        raise Missing("there is no chrt (Debian: util-linux)")
    _run(["chrt", "-f", "10", "true"])
    return ["chrt", "-f", "10"]

"""Compiles CUDA C++ to PTX with the NVRTC library of a wheel, through ctypes; needs neither a driver nor headers."""

import ctypes
import pathlib


class Nvrtc:
    """One NVRTC library. `folder` holds libnvrtc.so.12 and its builtins."""

    def __init__(self, folder: pathlib.Path):
        # The compiler opens its builtins by bare name; what is loaded already is found.
        ctypes.CDLL(str(next(folder.glob("libnvrtc-builtins.so.*"))), ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(str(folder / "libnvrtc.so.12"))
        self.lib.nvrtcGetErrorString.restype = ctypes.c_char_p

    def compile(self, name: str, source: str, headers: dict[str, str], arch: str) -> str:
        """PTX of `source`; raises with the compiler's log. Both names and texts end up in the bytes, nothing else."""
        program = ctypes.c_void_p()
        texts = (ctypes.c_char_p * len(headers))(*[text.encode() for text in headers.values()])
        names = (ctypes.c_char_p * len(headers))(*[key.encode() for key in headers])
        self._check(self.lib.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), name.encode(), len(headers), texts, names))
        try:
            options = [b"--std=c++17", f"--gpu-architecture={arch}".encode()]
            result = self.lib.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
            if result != 0:
                raise RuntimeError(f"{name} for {arch}:\n{self._text(program, 'ProgramLog')}")
            return self._text(program, "PTX")
        finally:
            self.lib.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program, what: str) -> str:
        size = ctypes.c_size_t()
        self._check(getattr(self.lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        text = ctypes.create_string_buffer(size.value)
        self._check(getattr(self.lib, f"nvrtcGet{what}")(program, text))
        return text.value.decode()

    def _check(self, result: int):
        if result != 0:
            raise RuntimeError(f"nvrtc: {self.lib.nvrtcGetErrorString(result).decode()}")

"""Says which CUDA devices there are, or why there are none, through the driver alone: that of TUTTI_CUDA_LIBRARY, or the
system's."""

import ctypes
import os
import sys

try:
    driver = ctypes.CDLL(os.environ.get("TUTTI_CUDA_LIBRARY") or "libcuda.so.1")
except OSError as error:
    sys.exit(str(error))
code = driver.cuInit(0)
if code != 0:
    sys.exit(f"cuInit returned {code}")
count = ctypes.c_int()
driver.cuDeviceGetCount(ctypes.byref(count))
for ordinal in range(count.value):
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, 255, ordinal)
    print(f"device {ordinal}: {name.value.decode()}")
if count.value == 0:
    sys.exit("the driver sees no device")
if hasattr(driver, "stub_calls"):
    print("a stub of the driver: what runs there says nothing of a card")

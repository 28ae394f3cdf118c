"""Runs one planted defect in a process of its own: `python defect_runner.py LIBRARY NUMBER ORDER WORKERS`.

Prints the launch's status and text, then `nan` or `finite`. Knows the standard library alone, so that a sanitizer sees
little else.
"""

from __future__ import annotations

import ctypes
import math
import struct
import sys

FLOATS, ROOM = 4096, 2048
GLOBAL_OUT_OF_BOUNDS = 13  # its output ends where the tensor ends


class Options(ctypes.Structure):
    _fields_ = (
        ("order", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
        ("workers", ctypes.c_int32),
        ("deferred", ctypes.c_int32),
    )


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    defect, order, workers = map(int, sys.argv[2:])
    library.exl_last_error.restype = ctypes.c_char_p
    library.exl_emulator_configure(ctypes.byref(Options(order, 5, workers, 0)))
    room = ROOM - 64 if defect == GLOBAL_OUT_OF_BOUNDS else ROOM
    x, out = ctypes.c_void_p(), ctypes.c_void_p()
    for pointer, count in ((x, FLOATS), (out, room)):
        library.exl_memory_allocate(0, ctypes.c_int64(4 * count), ctypes.byref(pointer))
    # 0.00784 in float32, and two halves near 1 and 0.125: any of them is a harmless number
    values = struct.pack("<I", 0x3C003000) * FLOATS
    library.exl_memory_copy(x, values, ctypes.c_int64(4 * FLOATS), None)
    library.exl_memory_set(out, 0, ctypes.c_int64(4 * room), None)
    status = library.test_defect(defect, x, out, None)
    text = library.exl_last_error().decode() if status else ""
    found = ctypes.create_string_buffer(4 * room)
    library.exl_memory_copy(found, out, ctypes.c_int64(4 * room), None)
    numbers = "nan" if any(map(math.isnan, struct.unpack(f"<{room}f", found.raw))) else "finite"
    sys.stdout.write(f"{status} {text}\n{numbers}\n")


if __name__ == "__main__":
    main()

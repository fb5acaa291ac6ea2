# SPDX-License-Identifier: Apache-2.0
# What a driver in Python needs of DRIVER.md: the lines of the protocol, the bus
# that the kit lends, and the stream of bytes that both ends know.
import mmap, os, sys, time


class Status(Exception):
    """Status(status, text): an operation ends with "err"."""


class Bus:
    """The adapter's registers and the memory that it reaches."""

    def __init__(self):
        self.memory = mmap.mmap(int(os.environ["TOEBOX_MEMORY_FD"]), 0)

    def ask(self, *words):
        print("bus", *words, flush=True)
        answer = sys.stdin.readline().split()
        if not answer or answer[0] != "ok":
            raise Status(0, "bus: " + " ".join(answer))
        return [int(w, 0) for w in answer[1:]]

    def open(self):  # the address of the memory's first byte
        return self.ask("open")[0]

    def config(self, offset, size, value):
        self.ask("cfgw", offset, size, value)

    def read(self, offset):
        return self.ask("r32", 0, offset)[0]

    def write(self, offset, value):
        self.ask("w32", 0, offset, value)


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        if time.monotonic() > end:
            raise Status(3, "timed out")
        time.sleep(0.0002)


def payload(seed, n):
    mask = (1 << 64) - 1
    out = bytearray()
    for i in range((n + 7) // 8):
        z = (seed + i * 0x9E3779B97F4A7C15) & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        out += (z ^ z >> 31).to_bytes(8, "little")
    return bytes(out[:n])


def serve(driver, operations):
    """Calls the methods of driver as the kit says, with words as arguments."""
    print("toebox-driver 1", *operations, flush=True)
    for line in sys.stdin:
        operation, *words = line.split()
        try:
            result = getattr(driver, operation)(*words)
            print("ok", *(() if result is None else result), flush=True)
        except Status as status:
            print("err", *status.args, flush=True)

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# A small driver of the adapter, for "toebox test --driver": one
# queue, polled, through the bus that the kit lends (DRIVER.md, SPEC.md).
import hashlib, mmap, os, struct, sys, time

M64 = (1 << 64) - 1
IN, OUT, EV, CTL, TX, RX = 0, 0x1000, 0x2000, 0x3000, 0x10000, 0x20000  # places in memory
SLOTS, PIECE = 64, 32768

class Status(Exception):
    pass

def ask(*words):  # something of the kit's bus
    print("bus", *words, flush=True)
    answer = sys.stdin.readline().split()
    if not answer or answer[0] != "ok":
        raise Status(0, "bus: " + " ".join(answer))
    return [int(w, 0) for w in answer[1:]]

def r32(off): return ask("r32", 0, off)[0]
def w32(off, v): ask("w32", 0, off, v)

def until(cond):
    end = time.monotonic() + 20
    while not cond():
        if time.monotonic() > end:
            raise Status(3, "timed out")
        time.sleep(0.0002)

def payload(seed, n):  # the stream of SplitMix64
    out = bytearray()
    for i in range((n + 7) // 8):
        z = (seed + i * 0x9e3779b97f4a7c15) & M64
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9 & M64
        z = (z ^ z >> 27) * 0x94d049bb133111eb & M64
        out += (z ^ z >> 31).to_bytes(8, "little")
    return bytes(out[:n])

class Driver:
    mem = mmap.mmap(int(os.environ["TOEBOX_MEMORY_FD"]), 0)

    def reset(self):
        self.base = ask("open")[0]
        ask("cfgw", 4, 2, 6)  # memory space, bus master
        w32(0x10, 1 << 31)  # CONTROL.RESET
        until(lambda: r32(0x14) & 1)  # STATUS.READY
        w32(0x10, 1)  # CONTROL.RUN
        until(lambda: r32(0x14) & 2)
        self.mem[0:CTL] = bytes(CTL)
        for s in range(SLOTS):
            struct.pack_into("<I", self.mem, OUT + 32 * s, 0x80)
        for i, at in enumerate((IN, OUT, EV)):
            w32(0x1008 + 8 * i, (self.base + at) & 0xffffffff)
            w32(0x100c + 8 * i, (self.base + at) >> 32)
        w32(0x1020, 6 | 6 << 8)  # 64 slots each
        w32(0x1000, 1)  # Q_COMMAND create
        until(lambda: r32(0x1004) & 0xf == 1)
        self.put, self.got, self.tag = 0, 0, 0
        self.arrivals, self.ended = [], set()

    def post(self, type, conn=0, base=0, length=0, aux=0, flags=0):
        self.tag += 1
        at = IN + 32 * (self.put % SLOTS)
        struct.pack_into("<IQQII", self.mem, at + 4, self.tag, base, conn, length, 0)
        struct.pack_into("<I", self.mem, at, 0x80 | type << 2 | (type == 1) | flags << 8 | aux << 16)
        self.put += 1
        w32(0x4000, self.put)  # doorbell
        return self.tag

    def take(self, tag, arrival=False):  # the next response with the tag
        found = []
        def look():
            at = OUT + 32 * (self.got % SLOTS)
            word, t, _, conn, length, offset = struct.unpack_from("<IIQQII", self.mem, at)
            if word & 0x80:
                return False
            struct.pack_into("<I", self.mem, at, word | 0x80)
            self.got += 1
            w32(0x4004, self.got)
            if t == 0 and word >> 2 & 31 == 18:
                self.arrivals.append(conn)
            elif t == tag and t:
                found.append((word >> 16, word >> 8 & 1, conn, length, offset))
            return bool(found) or arrival and bool(self.arrivals)
        until(look)
        return found[0] if found else None

    def do(self, *args, good=(0,), **kw):
        status, _, conn, _, _ = self.take(self.post(*args, **kw))
        if status not in good:
            raise Status(status, "refused by the adapter")
        return conn

    def target(self, type, count, lport=0, rport=0, remote=bytes(4)):
        t = struct.pack("<BBHHH16s16sQIIQ", 6, 4, count, lport, rport, b"", remote, 0, 0, 0, 0)
        self.mem[CTL:CTL + 72] = struct.pack("<HHI", 0x8001, 0, 64) + t
        return self.do(type, base=self.base + CTL, length=72, aux=1)

    def connect(self, address):
        host, port = address.rsplit(":", 1)
        return self.target(3, 1, rport=int(port), remote=bytes(map(int, host.split("."))))

    def listen(self, port): return self.target(5, 1, lport=int(port))

    def accept(self, _):
        if not self.arrivals:
            self.take(0, arrival=True)
        return self.arrivals.pop(0)

    def send(self, conn, n, seed):
        data = payload(int(seed), int(n))
        for i in range(0, len(data), PIECE):
            part = data[i:i + PIECE]
            self.mem[TX:TX + len(part)] = part
            self.do(1, int(conn), self.base + TX, len(part))
        return n

    def recv(self, conn, n):
        h, total, n = hashlib.sha256(), 0, int(n)
        while total < n and conn not in self.ended:
            tag, final = self.post(2, int(conn), self.base + RX, min(PIECE, n - total)), 0
            while not final:
                status, final, _, length, offset = self.take(tag)
                if status in (5, 12):
                    raise Status(status, "the connection is gone")
                if status == 13:  # end of the stream
                    self.ended.add(conn)
                h.update(self.mem[RX + offset:RX + offset + length])
                total += length
        return total, h.hexdigest()

    def close(self, conn, mode):
        self.do(4, int(conn), length={"graceful": 0, "abort": 1, "half": 2}[mode])

    def get(self, conn, attribute, room):
        room = int(room)
        self.mem[CTL:CTL + 8 + room] = struct.pack("<HHI", int(attribute), 0, room) + bytes(room)
        self.do(7 if int(conn) else 8, int(conn), self.base + CTL, 8 + room, aux=1, good=(0, 1))  # 1: see the tuple
        _, status, length = struct.unpack_from("<HHI", self.mem, CTL)
        if status:
            raise Status(status, "refused by the adapter")
        return self.mem[CTL + 8:CTL + 8 + length].hex()

driver, ops = Driver(), "reset connect listen accept send recv close get".split()
print("toebox-driver 1", *ops, flush=True)
for line in sys.stdin:
    op, *args = line.split()
    try:
        out = getattr(driver, op)(*args) if op in ops else None
        print("ok", *(out if isinstance(out, tuple) else () if out is None else (out,)), flush=True)
    except Status as e:
        print("err", *e.args, flush=True)

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# A small driver of the adapter: one queue, polled (SPEC.md, DRIVER.md).
import hashlib, struct, sys
sys.dont_write_bytecode = True
from kit import Bus, Status, payload, serve, until

IN, OUT, EVENTS, CONTROL, TX, RX = 0, 0x1000, 0x2000, 0x3000, 0x10000, 0x20000  # places in memory
SLOTS, PIECE = 64, 32768
SEND, AVAILABLE, CONNECT, TERMINATE, LISTEN, CANCEL, CONNECTION, ADAPTER, ARRIVAL = 1, 2, 3, 4, 5, 6, 7, 8, 18

class Driver(Bus):
    def reset(self):
        self.base = self.open()
        self.config(4, 2, 6)  # memory space, bus master
        self.write(0x10, 1 << 31)  # CONTROL.RESET
        until(lambda: self.read(0x14) & 1)  # STATUS.READY
        self.write(0x10, 1)  # CONTROL.RUN
        until(lambda: self.read(0x14) & 2)
        self.memory[:CONTROL] = bytes(CONTROL)
        for slot in range(SLOTS):
            struct.pack_into("<I", self.memory, OUT + 32 * slot, 0x80)
        for i, place in enumerate((IN, OUT, EVENTS)):
            self.write(0x1008 + 8 * i, (self.base + place) & 0xffffffff)
            self.write(0x100c + 8 * i, (self.base + place) >> 32)
        self.write(0x1020, 6 | 6 << 8)  # 64 slots each
        self.write(0x1000, 1)  # create
        until(lambda: self.read(0x1004) & 0xf == 1)
        self.posted = self.taken = self.tag = 0
        self.arrivals, self.ended = [], set()

    def post(self, type, conn=0, base=0, length=0, tuples=0, offset=0):
        self.tag += 1
        at = IN + 32 * (self.posted % SLOTS)
        struct.pack_into("<IQQII", self.memory, at + 4, self.tag, base, conn, length, offset)
        struct.pack_into("<I", self.memory, at, 0x80 | type << 2 | (type == SEND) | tuples << 16)
        self.posted += 1
        self.write(0x4000, self.posted)  # doorbell
        return self.tag

    def take(self, tag):  # the next response with the tag; of tag 0 the next arrival
        while True:
            at = OUT + 32 * (self.taken % SLOTS)
            until(lambda: not self.memory[at] & 0x80)
            word, got, _, conn, length, offset = struct.unpack_from("<IIQQII", self.memory, at)
            struct.pack_into("<I", self.memory, at, word | 0x80)
            self.taken += 1
            self.write(0x4004, self.taken)
            if got == 0 and word >> 2 & 31 == ARRIVAL:
                self.arrivals.append(conn)
            if got == tag and (tag or self.arrivals):
                return word >> 16, word >> 8 & 1, conn, length, offset  # status, FINAL

    def done(self, tag, good=(0,)):
        status, _, conn, _, _ = self.take(tag)
        if status not in good:
            raise Status(status, "refused by the adapter")
        return conn

    def tuple(self, attribute, value):  # a control buffer of one
        self.memory[CONTROL:CONTROL + 8 + len(value)] = struct.pack("<HHI", attribute, 0, len(value)) + value
        return {"base": self.base + CONTROL, "length": 8 + len(value), "tuples": 1}

    def target(self, address):
        host, port = address.rsplit(":", 1)
        value = struct.pack("<BBHHH16x4s28xQ", 6, 4, 1, 0, int(port), bytes(map(int, host.split("."))), 0)
        return self.tuple(0x8001, value)

    def attribute(self, conn, attribute, value):
        conn, type = int(conn), CONNECTION if int(conn) else ADAPTER
        self.done(self.post(type, conn, **self.tuple(attribute, value)), good=(0, 1))  # 1: see the tuple
        _, status, length = struct.unpack_from("<HHI", self.memory, CONTROL)
        if status:
            raise Status(status, "refused by the adapter")
        return self.memory[CONTROL + 8:CONTROL + 8 + length]

    def connect(self, address):
        return [self.done(self.post(CONNECT, **self.target(address)))]

    def cancel(self, address):
        tag = self.post(CONNECT, **self.target(address))
        cancellation = self.post(CANCEL, offset=tag)
        status = self.take(tag)[0]
        self.done(cancellation)
        return [status]

    def listen(self, port):
        return [self.done(self.post(LISTEN, **self.tuple(0x8001, struct.pack("<BBHH58x", 6, 4, 1, int(port)))))]

    def accept(self, _):
        if not self.arrivals:
            self.take(0)
        return [self.arrivals.pop(0)]

    def send(self, conn, n, seed):
        data = payload(int(seed), int(n))
        for i in range(0, len(data), PIECE):
            part = data[i:i + PIECE]
            self.memory[TX:TX + len(part)] = part
            self.done(self.post(SEND, int(conn), self.base + TX, len(part)))
        return [n]

    def recv(self, conn, n):
        sum, total, n = hashlib.sha256(), 0, int(n)
        while total < n and conn not in self.ended:
            tag, final = self.post(AVAILABLE, int(conn), self.base + RX, min(PIECE, n - total)), False
            while not final:
                status, final, _, length, offset = self.take(tag)
                if status in (5, 12):
                    raise Status(status, "the connection is gone")
                if status == 13:  # end of the stream
                    self.ended.add(conn)
                sum.update(self.memory[RX + offset:RX + offset + length])
                total += length
        return [total, sum.hexdigest()]

    def close(self, conn, mode):
        self.done(self.post(TERMINATE, int(conn), length=("graceful", "abort", "half").index(mode)))

    def get(self, conn, attribute, room):
        return [self.attribute(conn, int(attribute), bytes(int(room))).hex()]

    def set(self, conn, attribute, value):
        self.attribute(conn, 0x8000 | int(attribute), bytes.fromhex(value))

    def stats(self, index):
        self.write(0x200, int(index))  # STAT_SELECT
        return [self.read(0x204) | self.read(0x208) << 32]

serve(Driver(), "reset connect listen accept send recv close get set cancel stats".split())

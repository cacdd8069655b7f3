"""Load on a server, from a process of its own: reads what to send as JSON from stdin, writes how it went as JSON to stdout.

Closed loop: each of `connections` sends its next request when the last one is answered. Open loop, where `per_second` is given: a request
leaves at its appointed time whatever came back, on a connection that is free or a new one, and its latency counts from that time.
"""

import asyncio
import itertools
import json
import sys
import time

import numpy as np
import uvloop


class Connection(asyncio.Protocol):
    """One request at a time as bytes made beforehand; `heard(connection, ok)` is called when its answer is whole."""

    def __init__(self, heard):
        self.heard, self.received, self.length, self.since, self.good = heard, 0, None, 0.0, False

    def connection_made(self, transport):
        self.transport = transport

    def send(self, message, since):
        self.received, self.length, self.since = b"", None, since
        self.transport.write(message)

    def data_received(self, data):
        self.received += data
        if self.length is None and (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end].lower()
            self.good = head.startswith(b"http/1.1 200")
            self.length = end + 4 + int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        if self.length is not None and len(self.received) >= self.length:
            self.heard(self, self.good)

    def connection_lost(self, error):
        if self.length is None or len(self.received) < self.length:
            self.heard(self, False)


class Load:
    """Counts answers from `warm_up` seconds on, for `seconds`."""

    def __init__(self, port, path, bodies, warm_up, seconds, connections=0, per_second=0):
        self.port, self.connections, self.per_second = port, connections, per_second
        self.warm_up, self.seconds, self.taken, self.failed, self.free = warm_up, seconds, [], 0, []
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: "
        self.messages = itertools.cycle([f"{head}{len(body)}\r\n\r\n{body}".encode() for body in bodies])

    async def connect(self):
        return (await asyncio.get_running_loop().create_connection(lambda: Connection(self.heard), "127.0.0.1", self.port))[1]

    def heard(self, connection, good):
        moment = time.perf_counter()
        self.failed += not good
        if self.begin <= moment < self.end:
            self.taken.append(moment - connection.since)
        if self.per_second:
            self.free.append(connection)
        elif good and moment < self.end:
            connection.send(next(self.messages), moment)

    async def send_at(self, moment):
        connection = self.free.pop() if self.free else await self.connect()
        connection.send(next(self.messages), moment)

    async def run(self):
        opened = [await self.connect() for _ in range(self.connections or 64)]
        start = time.perf_counter()
        self.begin, self.end = start + self.warm_up, start + self.warm_up + self.seconds
        if self.per_second:
            self.free = opened
            await self.at_fixed_times(start)
        else:
            for connection in opened:
                connection.send(next(self.messages), time.perf_counter())
            await asyncio.sleep(self.end - time.perf_counter())
        await asyncio.sleep(0.2)
        p50, p99 = (1000 * np.quantile(self.taken, [0.5, 0.99])).tolist()
        return {"per_second": len(self.taken) / self.seconds, "p50": p50, "p99": p99, "failed": self.failed}

    async def at_fixed_times(self, start):
        sending = set()
        for number in range(int(self.per_second * (self.warm_up + self.seconds))):
            moment = start + number / self.per_second
            if (wait := moment - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.ensure_future(self.send_at(moment))
            sending.add(task)
            task.add_done_callback(sending.discard)


if __name__ == "__main__":
    print(json.dumps(uvloop.run(Load(**json.load(sys.stdin)).run())))

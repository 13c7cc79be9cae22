"""A pipeline stepped a cycle at a time, with registers and valid bits: slow, and written from the words, not from the code.

Every server has a register (query, cycles left); every buffer a state. In a cycle, servers whose time is up let go of the buffer that
they read and mark the one they wrote as full; then idle servers look whether the next query is there and a buffer is empty; then
all clocks tick. What an idle server found wanting is counted, a cycle at a time.
"""

import dataclasses

import numpy as np

IDLE = None


@dataclasses.dataclass
class Server:
    query: int | None = IDLE
    left: int = 0
    has_worked: bool = False
    waiting: list = dataclasses.field(default_factory=list)  # cause of every cycle since its last query
    waited: list = dataclasses.field(default_factory=list)  # of those before


@dataclasses.dataclass
class Buffer:
    state: str = "empty"  # writing, full, reading
    query: int | None = IDLE


class SteppedUnit:
    """One pipeline. `queries` maps a query's number to its cycles by stage; only those dispatched to this unit are known."""

    def __init__(self, num_stages, first_servers, buffers):
        self.servers = [[Server() for _ in range(first_servers if s == 0 else 1)] for s in range(num_stages)]
        self.buffers = [
            [Buffer() for _ in range(buffers * (first_servers if s == 0 else 1))] for s in range(num_stages - 1)
        ]
        self.order = []  # queries in the order of dispatch
        self.taken = [0] * num_stages  # how many of `order` each stage has started

    def end_of_work(self, time, finish):
        for stage, servers in enumerate(self.servers):
            for server in servers:
                if server.query is not IDLE and server.left == 0:
                    finish[server.query, stage] = time
                    if stage > 0:
                        (read,) = [b for b in self.buffers[stage - 1] if b.query == server.query]
                        assert read.state == "reading"
                        read.state, read.query = "empty", IDLE
                    if stage < len(self.buffers):
                        (written,) = [b for b in self.buffers[stage] if b.query == server.query]
                        assert written.state == "writing"
                        written.state = "full"
                    server.query = IDLE

    def has_room(self, stage):
        return stage == len(self.buffers) or any(b.state == "empty" for b in self.buffers[stage])

    def idle_server(self, stage):
        """The one that has been idle for longest, of equals the first."""
        idle = [server for server in self.servers[stage] if server.query is IDLE]
        return max(idle, key=lambda server: len(server.waiting), default=None)

    def could_start_first(self):
        return self.idle_server(0) is not None and self.has_room(0)

    def begin(self, stage, query, cycles, time, start):
        server = self.idle_server(stage)
        if stage > 0:
            (read,) = [b for b in self.buffers[stage - 1] if b.query == query]
            assert read.state == "full"
            read.state = "reading"
        if stage < len(self.buffers):
            written = next(b for b in self.buffers[stage] if b.state == "empty")
            written.state, written.query = "writing", query
        server.query, server.left = query, int(cycles[query, stage])
        server.has_worked = True
        server.waited, server.waiting = server.waited + server.waiting, []
        start[query, stage] = time
        self.taken[stage] += 1

    def next_is_there(self, stage):
        if self.taken[stage] == len(self.order):
            return False
        query = self.order[self.taken[stage]]
        return any(b.query == query and b.state == "full" for b in self.buffers[stage - 1])

    def start_later_stages(self, cycles, time, start):
        for stage in range(1, len(self.servers)):
            if self.idle_server(stage) is not None and self.next_is_there(stage) and self.has_room(stage):
                self.begin(stage, self.order[self.taken[stage]], cycles, time, start)

    def tick(self):
        for stage, servers in enumerate(self.servers):
            for server in servers:
                if server.query is not IDLE:
                    server.left -= 1
                elif not server.has_worked:
                    server.waiting.append("fill")
                elif stage > 0 and not self.next_is_there(stage):
                    server.waiting.append("starved")
                else:
                    server.waiting.append("blocked")


def stepped(cycles, first_servers, buffers, units, in_turn):
    """Start and finish of every query in every stage, its unit, and idle cycles by cause as `PipelineTrace.accounts`."""
    num_queries, num_stages = cycles.shape
    start, finish = np.full((2, num_queries, num_stages), -1)
    pipelines = [SteppedUnit(num_stages, first_servers, buffers) for _ in range(units)]
    unit_of, waiting, time = np.full(num_queries, -1), list(range(num_queries)), 0
    while True:
        for unit in pipelines:
            unit.end_of_work(time, finish)
        if (finish[:, -1] >= 0).all():
            break
        for unit in pipelines:
            unit.start_later_stages(cycles, time, start)
        dispatch(waiting, pipelines, unit_of, cycles, time, start, in_turn)
        for unit in pipelines:
            unit.tick()
        time += 1
    return start, finish, unit_of, idle_cycles(pipelines, num_stages)


def dispatch(waiting, pipelines, unit_of, cycles, time, start, in_turn):
    units = len(pipelines)
    for query in list(waiting):
        if in_turn:
            able = [query % units] if pipelines[query % units].could_start_first() else []
        else:
            able = [unit for unit in range(units) if pipelines[unit].could_start_first()]
        if able:
            unit = min(able, key=lambda unit: len(pipelines[unit].order))
            waiting.remove(query)
            unit_of[query] = unit
            pipelines[unit].order.append(query)
            pipelines[unit].begin(0, query, cycles, time, start)
        elif not in_turn:
            break  # in order


def idle_cycles(pipelines, num_stages):
    """Idle cycles after a server's last query are drain, whatever they were taken for as they passed."""
    causes = {cause: np.zeros((len(pipelines), num_stages)) for cause in ("fill", "starved", "blocked", "drain")}
    for index, unit in enumerate(pipelines):
        for stage, servers in enumerate(unit.servers):
            for server in servers:
                for cause in [*server.waited, *["drain"] * len(server.waiting)]:
                    causes[cause][index, stage] += 1
    return causes

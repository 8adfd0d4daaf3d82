"""A deterministic world of many exchanges, in which everything that can break does.

Law: the core is the shipped one (Kernel, Router, Discovery, Ledger, Links, Session, Outbox, Inbox, Backoff), and what
it says goes over the wire as the bytes that it made. Only clock, wire and chance are ours: time is a number, events
wait in one heap, and one generator, begun with the seed, draws whatever is drawn. So a seed is a history.

    options.py      what a seed stands for
    world.py        time, the heap, the generator, the exchanges and what lies between them
    wire.py         one connection: latency, loss, partition; and what a bad transport does to frames
    line.py         the pump of `transports/link.py`, without asyncio
    node.py         one exchange: the shipped core, and handlers that are late, fail or never end
    workload.py     what the exchanges do
    faults.py       what befalls them
    invariants.py   what must hold all the same: the law of the mesh
    transitions.py  what the sessions went through, counted
    planted.py      bugs that must be found
    play.py         one seed, from its beginning to its end

`python -m simulation --seed 7`, in `tests/`, plays one seed and says what it stood for.
"""

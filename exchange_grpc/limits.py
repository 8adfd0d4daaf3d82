"""Every limit: a number, a name and a reason. `docs/limits.md` lists them for users; a test compares."""

# What a message may be.
MESSAGE_BYTES = 4 * 2**20  # gRPC's own default for what is received: any stub takes it
FRAME_BYTES = 16 * 2**20  # a few of the largest messages; set on both ends, for a larger one kills the stream
NAME_BYTES = 255  # fits one length byte everywhere, and nobody types more
ID_LENGTH = 64  # a host name with a suffix
CONTENT_TYPE_BYTES = 255  # the media types that are registered stay far below
HEADERS_BYTES = 8 * 2**10  # what HTTP servers take
LOST_NAMES = 256  # exchanges named in the end of the replies to many
PAYLOAD_DEPTH = 30  # protobuf stops at 100 levels, that is 33 of `Value`: a deeper one poisons its readers

# What a trace may be.
HOPS = 16  # a longer way is a mistake in the mesh
CAUSES = 16  # what stands directly behind one message
PATH = 32  # exchanges visited before
TRACE_BYTES = 4 * 2**10  # all of it, so that a trace never outweighs what it explains
TRACE_BASE_BYTES = 2_560  # its causes and path alone: the rest of TRACE_BYTES is kept for 16 hops

# How long things live, in seconds.
REQUEST_SECONDS = 30.0  # the deadline of a request that says none
MESSAGE_SECONDS = 30.0  # the life of any other message that says none
SEEN_SECONDS = 60.0  # ids of publications are remembered for twice their life
QUESTION_SECONDS = 0.5  # how long a discovery waits for its answers
NO_SECONDS = 1.0  # how long a "nobody" is believed, for an offer far away does not clear it
HANDSHAKE_SECONDS = 5.0  # from connection to Hello or Welcome
DRAIN_SECONDS = 2.0  # how long a close waits for what was queued to leave
STOP_SECONDS = 10.0  # how long a close waits for running handlers
GRPC_HANDSHAKE_MS = 2_000  # a connection that never speaks HTTP/2 is dropped

# How much is kept.
NAMES_PER_PEER = 10_000  # what one peer may handle, and subscribe to
SEEN_IDS = 65_536  # publications remembered against coming twice
OPEN_REQUESTS = 65_536  # requests passing through or handled here, awaiting their reply
OPEN_QUESTIONS = 4_096  # discoveries under way
HELD_MESSAGES = 10_000  # messages that wait for a discovery
ROUTES = 65_536  # names and exchanges whose way was found out or learned
LINKS = 10_000  # peers linked at once
LEDGER_MESSAGES = 20_000  # messages whose history can be asked for, about 1 KB each
LEDGER_EVENTS = 64  # events kept of one message
TRANSACTIONS = 10_000  # changes of the state whose history can be asked for
RECORDED_ITEMS = 64  # of a value that a record keeps: of a larger one, only what it was
RECORDED_TEXT = 1_000  # characters of a text that a record keeps
WATCH_QUEUE = 4_096  # transactions that wait for one watcher of the state; then its watch ends
WATCH_QUEUE_BYTES = 8 * 2**20  # the same in bytes
WATCHERS = 10_000  # watches of the state at once
REPLIES = 4_096  # of a request to many, waiting for whoever asked; beyond that it is withdrawn
REPLIES_BYTES = 64 * 2**20  # the same in bytes
TRACE_ANSWER_BYTES = 2**20  # what one exchange tells of one trace
MIRROR_PAUSE_SECONDS = 1.0  # at most, before a mirror whose watch has ended watches again
TRACE_SECONDS = 2.0  # how long the others are asked about a trace
TRACE_EXCHANGES = 64  # how many of them
OBSERVER_QUEUE = 1_024  # messages that wait for one slow observer; beyond that they are counted, not kept
OBSERVER_QUEUE_BYTES = 8 * 2**20  # the same in bytes of payloads
OBSERVER_RATE = 300  # messages a second shown by the door `Observe`, on average: more would slow down those who work
OBSERVER_BURST = 200  # that many at once, after a while with fewer
OBSERVER_PAUSE_SECONDS = 0.1  # between two calls of plain functions that observe: threads hold up the loop

# How much waits on a link, and how much leaves it in one write.
LINK_QUEUE_MESSAGES = 65_536  # beyond either, what should be forwarded is refused
LINK_QUEUE_BYTES = 64 * 2**20
LINK_HIGH_WATER = 1_024  # beyond this many, `await send` waits
LINK_HIGH_WATER_BYTES = 8 * 2**20
BATCH_MESSAGES = 1_024  # grpcio moves a few thousand writes a second, whatever their size
BATCH_BYTES = 2**20  # larger writes gain nothing and delay control frames
CONTROL_FRAMES = 16_384  # questions, answers and changes of interest that wait on one link

# How much runs here.
HANDLER_CONCURRENCY = 1_024  # one async handler, running at once
HANDLER_QUEUE = 65_536  # one handler, waiting to run
HANDLER_THREADS = 32  # plain `def` handlers of one exchange, running at once

HOPS_OF_A_QUESTION = HOPS  # a message could not go further anyway

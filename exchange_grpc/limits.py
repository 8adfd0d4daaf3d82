"""Every limit: a number, a name and a reason. `docs/limits.md` lists them for users; a test compares.

What the protocol fixes, and what only bounds memory far from any use, is a constant. What depends on the
network and the machine can be set for each exchange: see `Limits`, at the end.
"""

from dataclasses import dataclass, fields

# What a message may be.
MESSAGE_BYTES = 4 * 2**20  # gRPC's own default for what is received: any stub takes it
FRAME_BYTES = 16 * 2**20  # a few of the largest messages; set on both ends, for a larger one kills the stream
TEXT_FRAME_BYTES = 24 * 2**20  # ... as JSON on a WebSocket: base64 makes four bytes of three, and fields have names
TEXT_ITEMS = 200_000  # commas and brackets of such a text: what is between two takes up to 10 us to read
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
REPEAT_SECONDS = 0.1  # before a question is asked again, while somebody is expected back
SETTLE_SECONDS = 3.0  # so long others are expected back as well, after a relay came back without its memory
NO_SECONDS = 1.0  # how long a "nobody" is believed, for an offer far away does not clear it
HANDSHAKE_SECONDS = 5.0  # from connection to Hello or Welcome
HEARTBEAT_SECONDS = 5.0  # of silence, before a peer is asked whether it is there
SILENCE_SECONDS = 15.0  # of silence, before it is taken for gone: three heartbeats
CONTEST_SECONDS = 2.0  # ... while another connection claims its id: a live peer answers at once
AWAY_SECONDS = 5.0  # a broken link is waited for; then what waits for it fails or goes another way
RESUME_SECONDS = 30.0  # a session is kept after a break: what was under way has expired by then
ACK_SECONDS = 0.1  # before messages are acknowledged, if they are few: no write for each
DIAL_SECONDS = 2.0  # one attempt to link again: the next may find the network as it was
RECONNECT_MIN_SECONDS = 0.1  # the first attempt is at once, the next within this, and then twice that, and again ...
RECONNECT_MAX_SECONDS = 1.0  # ... up to this; each at a random part of it, so that many do not come together
RETRY_AFTER_MS = 500  # of a planned stop: whoever starts again is hardly back before
DRAIN_SECONDS = 2.0  # how long a close waits for what was queued to leave
STOP_SECONDS = 10.0  # how long a close waits for running handlers
GRPC_HANDSHAKE_MS = 1_000  # a connection that never speaks HTTP/2 is dropped
HTTP_REQUEST_SECONDS = 5.0  # from connecting, or its first byte, until an HTTP request is there; then it is dropped

# How much is kept.
NAMES_PER_PEER = 10_000  # what one peer may handle, and subscribe to
SEEN_IDS = 65_536  # publications remembered against coming twice
OPEN_REQUESTS = 65_536  # requests passing through or handled here, awaiting their reply
OPEN_QUESTIONS = 4_096  # discoveries under way
HELD_MESSAGES = 10_000  # messages that wait for a discovery
ROUTES = 65_536  # names and exchanges whose way was found out or learned
LINKS = 10_000  # peers linked at once
LINKS_PER_ADDRESS = 2_000  # ... from one network address
STREAMS_PER_CONNECTION = 2_000  # gRPC streams at once on one connection
HTTP_WAITING = 512  # connections to an HTTP server that are no WebSocket (yet); the oldest makes room for a new one
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
LINK_QUEUE_BYTES = 32 * 2**20
LINK_HIGH_WATER = 1_024  # beyond this many, `await send` waits
LINK_HIGH_WATER_BYTES = 2 * 2**20  # two writes: more only waits
CREDIT_MESSAGES = 1_024  # that one peer may have waiting here
CREDIT_BYTES = 8 * 2**20  # the same in bytes: two of the largest messages
UNACKED_MESSAGES = 4_096  # sent and not acknowledged, whatever credit there is: kept for a resume
UNACKED_BYTES = 16 * 2**20  # the same in bytes
UNSETTLED_IDS = 65_536  # of messages that were acknowledged, and would be lost if the peer was
MESSAGES_PER_SECOND = 100_000  # of one peer, on average over a second; then it is read no faster
FRAME_COST = 10  # a frame counts as so many messages: it costs that much, whatever is in it
ACK_MESSAGES = 256  # taken before they are acknowledged: a quarter of the credit
BATCH_MESSAGES = 1_024  # grpcio moves a few thousand writes a second, whatever their size
FRAME_MESSAGES = 4_096  # in one frame, from whoever writes more at once than we do: they are read in one go
BATCH_BYTES = 2**20  # larger writes gain nothing and delay control frames
WRITE_BUFFER_BYTES = 64 * 2**10  # of a WebSocket: beyond this the next write waits until a quarter is left
READ_BYTES = 32 * 2**10  # read of a WebSocket at once: it could be 5,000 frames, which take 15 ms
TEXT_TURN_BYTES = 16 * 2**10  # a larger frame becomes JSON, or JSON a frame, in a thread: a turn of the loop is short
CONTROL_FRAMES = 16_384  # questions, answers and changes of interest that wait on one link

# How much runs here.
HANDLER_CONCURRENCY = 1_024  # one async handler, running at once
HANDLER_QUEUE = 65_536  # one handler, waiting to run
HANDLER_TURN_SECONDS = 0.01  # handlers that never wait run one after another for so long: answers leave together
HANDLER_THREADS = 32  # plain `def` handlers of one exchange, running at once

HOPS_OF_A_QUESTION = HOPS  # a message could not go further anyway


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one exchange that can be set: `Exchange("hub", limits=Limits(away_seconds=3))`.

    Each is a positive number, by default the constant of the same name. Raises ValueError for what cannot work.
    """

    handshake_seconds: float = HANDSHAKE_SECONDS
    heartbeat_seconds: float = HEARTBEAT_SECONDS
    silence_seconds: float = SILENCE_SECONDS
    away_seconds: float = AWAY_SECONDS
    resume_seconds: float = RESUME_SECONDS
    reconnect_min_seconds: float = RECONNECT_MIN_SECONDS
    reconnect_max_seconds: float = RECONNECT_MAX_SECONDS
    credit_messages: int = CREDIT_MESSAGES
    credit_bytes: int = CREDIT_BYTES
    messages_per_second: float = MESSAGES_PER_SECOND
    links_per_address: int = LINKS_PER_ADDRESS

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{field.name} is a positive number, not {value!r}")
        if self.heartbeat_seconds * 2 > self.silence_seconds:
            raise ValueError("silence_seconds is at least two heartbeats: one may be late")
        if self.credit_bytes < MESSAGE_BYTES + CREDIT_BYTES // 4:
            raise ValueError(
                f"credit_bytes is at least {MESSAGE_BYTES + CREDIT_BYTES // 4}: the largest message must fit"
            )

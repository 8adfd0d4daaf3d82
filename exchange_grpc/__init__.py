"""Exchange: what if everything was built using messages?

    from exchange_grpc import Exchange, State

Start at `Exchange`. The rooms, each importing only from those above it:

    errors, kernel, limits      the error tree; the signal kernel; every bound
    patterns, payload           names and what fits them; Python values <-> JSON
    message, frames             what travels; what two peers say
    wire                        both <-> bytes
    ledger, traces              what happened and because of what; put together of several
    graph, reactive, tasks      state: the algorithm, transactions, asyncio and the clock
    changes                     what has changed in the state, and who watches
    outbox, inbox, peer         what leaves, what comes, and the session of two exchanges over all connections
    discovery, scatter, balance the way to what is far; a request to many; which of several
    routing, links              who takes a message; who is linked
    handlers, observers         what runs; what looks on
    transports                  what carries
    system, service             what every exchange answers; gRPC doors for callers who are none
    replies, emitter            the replies of many; what an exchange emits, and waits for
    remote, mirror              the state of another exchange; values that follow it
    running                     an exchange as the main thing of a process
    exchange                    all of it together, and the only loop
    blocking                    a client for scripts and notebooks
    cli                         the command line, a room of its own
"""

from .errors import (
    AddressError,
    Cancelled,
    CircularDependency,
    Code,
    DeadlineExceeded,
    ExchangeError,
    HandlerFailed,
    InvalidMessage,
    LimitExceeded,
    LinkError,
    Refused,
    RequestError,
    SideEffect,
    StateError,
    SubscriberError,
    Unavailable,
    Unhandled,
    UnknownName,
)
from .exchange import Exchange, Peer
from .limits import Limits
from .message import Hop, Kind, Message, Outcome, Seen
from .remote import RemoteState, StateValue
from .replies import Replies
from .tasks import State
from .version import VERSION

__version__ = VERSION

__all__ = [
    "AddressError",
    "Cancelled",
    "CircularDependency",
    "Code",
    "DeadlineExceeded",
    "Exchange",
    "ExchangeError",
    "HandlerFailed",
    "Hop",
    "InvalidMessage",
    "Kind",
    "LimitExceeded",
    "Limits",
    "LinkError",
    "Message",
    "Outcome",
    "Peer",
    "Refused",
    "RemoteState",
    "Replies",
    "RequestError",
    "Seen",
    "SideEffect",
    "State",
    "StateError",
    "StateValue",
    "SubscriberError",
    "Unavailable",
    "Unhandled",
    "UnknownName",
    "__version__",
]

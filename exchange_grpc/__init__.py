"""Exchange: what if everything was built using messages?

    from exchange_grpc import Exchange, State

Start at `Exchange`. The rooms, each importing only from those above it:

    errors, kernel, limits      the error tree; the signal kernel; every bound
    patterns, payload           names and what fits them; Python values <-> JSON
    message, frames             what travels; what two peers say
    wire, ledger                both <-> bytes; what happened and because of what
    graph, reactive, tasks      state: the algorithm, transactions, asyncio and the clock
    peer, discovery, routing    one link's session; the way to what is far; who takes a message
    handlers, transports        what runs; what carries
    service                     gRPC doors for callers who are no exchange
    exchange                    all of it together, and the only loop
    cli                         the command line, with demo, tree, console and doctor
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
from .message import Hop, Kind, Message, Outcome, Seen
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
    "LinkError",
    "Message",
    "Outcome",
    "Peer",
    "Refused",
    "RequestError",
    "Seen",
    "SideEffect",
    "State",
    "StateError",
    "SubscriberError",
    "Unavailable",
    "Unhandled",
    "UnknownName",
    "__version__",
]

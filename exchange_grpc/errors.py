"""Every error of the package, one tree.

    ExchangeError
    ├── StateError                  reactive state refused something
    │   ├── CircularDependency      a computed value depends on itself; `.path` is the circle
    │   ├── SideEffect              a computed value tried to set something
    │   ├── UnknownName             no such name (also an AttributeError)
    │   └── SubscriberError         subscribers raised after the change was made; `.errors`
    ├── InvalidMessage              a name, id, payload or frame breaks a rule of the protocol
    │   └── LimitExceeded           ... because it is larger or deeper than a named limit
    ├── AddressError                a URL that no transport takes, or that names nothing usable
    ├── LinkError                   a link could not be made or was lost: *we* concluded so
    └── RequestError                a request ended without its answer; `.code`, `.reason`, `.at`
        ├── Unhandled               nobody handles the name, or nobody has that id
        ├── DeadlineExceeded        no answer in the time given
        ├── Unavailable             the way was lost; `.delivered` is False (surely not) or None (unknown)
        ├── Cancelled               the caller withdrew it
        ├── Refused                 the message broke a rule or a bound of whoever took it
        └── HandlerFailed           the handler raised: *the peer* said so

A `RequestError` crosses the wire as a `google.rpc.Status` (`code`, `message`) with a
`google.rpc.ErrorInfo` (`reason`, and in `metadata` where it happened and whether it was delivered).
Nothing above a transport ever sees `grpc.RpcError` or `OSError`.
"""

from collections.abc import Iterable
from enum import IntEnum


class Code(IntEnum):
    """The status codes of gRPC that exchanges use, with their numbers in `google/rpc/code.proto`."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ExchangeError(Exception):
    """The root: `except ExchangeError` catches all that this package raises on purpose."""


class StateError(ExchangeError):
    """Reactive state refused something, and stands as it stood before."""


class CircularDependency(StateError):
    """A computed value depends on itself. `path` is the circle, such as `("tick", "tock", "tick")`."""

    def __init__(self, path: Iterable[str]) -> None:
        self.path = tuple(path)
        super().__init__("circular dependency: " + " -> ".join(self.path))


class SideEffect(StateError):
    """A computed value tried to set something: it may only read."""

    def __init__(self, function: str, target: str) -> None:
        self.function, self.target = function, target
        super().__init__(f"computed {function!r} tried to set {target!r}: a computed value may only read")


class UnknownName(StateError, AttributeError):
    """The state has no such name."""

    def __init__(self, unknown: str) -> None:
        super().__init__(f"the state has no name {unknown!r}")
        self.unknown = unknown


class SubscriberError(StateError):
    """Subscribers raised after a change was committed. The change stands, and all of them have run."""

    def __init__(self, errors: Iterable[Exception]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(f"{type(error).__name__}: {error}" for error in self.errors))


class InvalidMessage(ExchangeError):
    """A name, an id, a payload or a frame breaks a rule of the protocol."""


class LimitExceeded(InvalidMessage):
    """Something is larger, longer or deeper than the limit its text names."""


class AddressError(ExchangeError):
    """A URL that no transport takes, or that cannot be listened on or dialled."""


class LinkError(ExchangeError):
    """A link could not be made, or was lost."""


class RequestError(ExchangeError):
    """A request ended without its answer.

    `code` is a status code, `reason` a fixed upper-case word for programs, `at` the id of the
    exchange that concluded it, and `delivered` whether a handler may have seen the request:
    False (surely not), True, or None (unknown).
    """

    code = Code.UNKNOWN
    reason = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        code: Code | None = None,
        reason: str | None = None,
        at: str = "",
        delivered: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = self.code if code is None else code
        self.reason = self.reason if reason is None else reason
        self.at = at
        self.delivered = delivered


class Unhandled(RequestError):
    """Nobody within reach handles the name, or nobody within reach has that exchange id."""

    code, reason = Code.UNIMPLEMENTED, "UNHANDLED"


class DeadlineExceeded(RequestError):
    """The time given was over before the answer came."""

    code, reason = Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"


class Unavailable(RequestError):
    """The way to the handler was lost, or could not be found out in time."""

    code, reason = Code.UNAVAILABLE, "UNAVAILABLE"


class Cancelled(RequestError):
    """The request was withdrawn before it was answered."""

    code, reason = Code.CANCELLED, "CANCELLED"


class Refused(RequestError):
    """Whoever took the message refused it: a rule or a bound, which `reason` names."""

    code, reason = Code.INVALID_ARGUMENT, "REFUSED"


class HandlerFailed(RequestError):
    """The handler raised, or its answer could not be sent. Details are in the log of `at`."""

    code, reason = Code.INTERNAL, "HANDLER_FAILED"


_BY_CODE: dict[Code, type[RequestError]] = {
    Code.UNIMPLEMENTED: Unhandled,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.UNAVAILABLE: Unavailable,
    Code.CANCELLED: Cancelled,
    Code.INTERNAL: HandlerFailed,
    Code.UNKNOWN: RequestError,
}


def request_error(
    code: Code, message: str, *, reason: str | None = None, at: str = "", delivered: bool | None = None
) -> RequestError:
    """The error of the tree that stands for a status, as it came over a link."""
    kind = _BY_CODE.get(code, Refused)
    return kind(message, code=code, reason=reason, at=at, delivered=delivered)

"""A request to many, while those who have it answer.

Law: sans-IO, and no routing: `routing.py` sends the copies and tells what came back of them.

Each copy is a *branch*: a linked peer, or this exchange itself for its own handler. A branch ends by
its `end`; if nobody behind it is asked in turn (our own handler, a peer that does not relay) also by
its last reply. A branch that says that nobody there handles the name was none. One that could not take
it, for whatever reason, is lost.
"""

from .errors import Code
from .limits import LOST_NAMES
from .message import Message

NOBODY = ("UNHANDLED", "LOOP")  # reasons that say: this way leads nowhere


class Scatter:
    """The branches of one request."""

    __slots__ = ("branches", "lost", "taken")

    def __init__(self) -> None:
        self.branches: dict[str, bool] = {}  # those that have not ended: who has it -> whether he relays
        self.lost: dict[str, None] = {}  # whose replies are not all there
        self.taken = False  # somebody handles it

    def heard(self, branch: str, reply: Message) -> bool:
        """A reply came from this branch: whether it is one, and not only the branch's end."""
        error = reply.error
        nobody = error is not None and error.code is Code.UNIMPLEMENTED and error.reason in NOBODY
        self.taken = self.taken or not nobody
        end = reply.lost is not None or nobody
        for exchange in reply.lost or ():
            self.miss(exchange)
        if end and reply.error is not None and not nobody:
            self.lose(branch)
        if end or (reply.last and not self.branches[branch]):
            self.branches.pop(branch, None)
        return not end

    def miss(self, exchange: str) -> None:
        """Not all replies of somebody behind a branch will come; the branch goes on."""
        if len(self.lost) < LOST_NAMES:
            self.lost.setdefault(exchange)

    def lose(self, branch: str) -> None:
        """Nothing more will come of this branch. Named first: a liar must not crowd it out."""
        self.branches.pop(branch, None)
        self.lost = dict.fromkeys([branch, *self.lost][:LOST_NAMES])

"""`exchange trace` and `why`: how something came about."""

import click

from . import reason, tree
from .console import ask, emit, of_option, run, show, told, url_option


@click.command()
@url_option
@click.option("--json", "as_json", is_flag=True, help="The answer as it came, in place of the tree.")
@click.argument("id")
def trace(id: str, url: str, as_json: bool) -> None:
    """Print where the message ID came from and what came of it.

    \b
    exchange trace $(exchange send echo 1)
    exchange trace $(exchange send echo 1) --json

    It is a tree from the root to the leaves. ID is what send, publish and observe print. Exchanges
    remember their newest messages; all that the messages have passed are asked, and those that could
    not be asked are named.
    """
    id = _bare(id)
    _, answer = run(ask(url, "exchange.trace", {"id": id}))
    with told():
        known = tree.read(answer)
    if as_json:
        emit(answer)
    else:
        show(tree.draw(known, id))


@click.command()
@url_option
@of_option
@click.option("--json", "as_json", is_flag=True, help="The answer as it came.")
@click.argument("key")
def why(key: str, url: str, of: str, as_json: bool) -> None:
    """Print why a state name has its value, or what became of a message.

    \b
    exchange request compute.sum '{"a":5,"b":3}' && exchange why total
    exchange why $(exchange send echo 1)
    exchange why mean --json | jq .transaction

    KEY is a state name, which the exchange must export, or the id of a message. Of a state name: the answer
    in a sentence, what changed, when, in which handler, for which message, and what caused that, back to
    where it all began. Of a message: what became of it, and the tree.
    """
    _, answer = run(ask(url, "exchange.why", {"key": _bare(key)}, of))
    if as_json:
        emit(answer)
        return
    with told():
        show(reason.tell(answer))


def _bare(text: str) -> str:
    """The text, which may come straight from `exchange send`: then it is JSON."""
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] == '"' else text

"""`exchange serve`: an exchange as a process."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, nullcontext
from typing import Any

import click

from .. import AddressError, Exchange, Limits, LinkError, Peer
from . import demo as demos
from . import logs
from .config import Config, blame, load
from .console import DEFAULT, FAILED, UNREACHABLE, fail, full_url, log, run, signalled

STOP_SECONDS = 20.0  # an exchange needs at most 10 s for its handlers, and a few for its links


@click.command()
@click.option(
    "--config",
    "path",
    envvar="EXCHANGE_CONFIG",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Settings in TOML; variables and flags come before it.",
)
@click.option("--id", envvar="EXCHANGE_ID", help="Its name in the mesh; made up if not given.")
@click.option(
    "--grpc",
    envvar="EXCHANGE_GRPC",
    metavar="ADDR",
    help=f"Where to listen: HOST:PORT (port 0: a free one), grpc://HOST:PORT or unix:PATH; without --http {DEFAULT}.",
)
@click.option(
    "--http",
    envvar="EXCHANGE_HTTP",
    metavar="ADDR",
    help="Where to listen for WebSockets: HOST:PORT (port 0: a free one), in place of --grpc or beside it.",
)
@click.option(
    "--origin",
    "origins",
    multiple=True,
    envvar="EXCHANGE_ORIGINS",
    metavar="URL",
    help="Pages from there may connect too, besides those of the same origin: https://example.com; repeatable.",
)
@click.option("--demo/--no-demo", default=None, envvar="EXCHANGE_DEMO", help="Handle compute.sum, echo and demo.*.")
@click.option(
    "--connect",
    multiple=True,
    envvar="EXCHANGE_CONNECT",
    metavar="URL",
    help="Link to this exchange at the start; repeatable.",
)
@click.option("--relay/--no-relay", default=None, envvar="EXCHANGE_RELAY", help="Pass on what others send each other.")
@click.option(
    "--balance",
    envvar="EXCHANGE_BALANCE",
    metavar="POLICY",
    help="Who gets what several handle: round_robin, least_pending, random or sticky:HEADER.",
)
@click.option(
    "--when-full",
    envvar="EXCHANGE_WHEN_FULL",
    metavar="POLICY",
    help="What comes for a peer that reads too slowly: wait, drop_oldest, drop_newest or disconnect.",
)
@logs.options
@click.pass_context
def serve(context: click.Context, /, path: str | None, **_: Any) -> None:
    """Run an exchange until SIGTERM or Ctrl-C.

    \b
    exchange serve --demo
    exchange serve --id hub --grpc 127.0.0.1:50052 --connect grpc://127.0.0.1:50051
    exchange serve --http 127.0.0.1:8080 --origin https://app.example.com
    exchange serve --config hub.toml --log-format json

    Others link to it, and it passes on what they send each other. Reflection and health are on. It logs
    what it runs with, and where each setting comes from, and prints one line when it is ready. When it
    is told to stop, it lets running handlers end first.

    \b
    FILE has the long names of the options as keys, limits, and the state:
      id = "hub"
      connect = ["grpc://127.0.0.1:50051"]
      exports = ["total", "goal"]     what peers may read and watch
      accepts = ["goal"]              what they may set
      [limits]                        see docs/limits.md
      away_seconds = 3
      [state]
      total = 0
      goal = 100
    """
    config = load(path, _given(context))
    logs.set_up(config.log_level, config.log_format)
    for line in config.told():
        log.info(line)
    run(_serve(config))


def _given(context: click.Context) -> dict[str, tuple[Any, str]]:
    """The settings that flags and variables say, each with the one that says it."""
    given: dict[str, tuple[Any, str]] = {}
    for option in context.command.params:
        key = option.name or ""
        source = context.get_parameter_source(key)
        value = context.params.get(key)
        if key == "path" or value is None or source is None:
            continue
        value = list(value) if isinstance(value, tuple) else value
        if source is click.core.ParameterSource.COMMANDLINE:
            given[key] = (value, (option.secondary_opts if value is False else option.opts)[0])
        elif source is click.core.ParameterSource.ENVIRONMENT:
            given[key] = (value, str(option.envvar))
    return given


async def _serve(config: Config) -> None:
    stop = signalled(signal.SIGTERM, signal.SIGINT)
    with demos.handlers() if config.demo else nullcontext(demos.Handlers()) as handlers:
        app = Exchange(
            config.id,
            state=config.state,
            handlers=handlers,
            exports=config.exports,
            accepts=config.accepts,
            relay=config.relay,
            balance=config.balance,
            when_full=config.when_full,
            limits=Limits(**config.limits),
        )
        async with AsyncExitStack() as ending:
            ending.push_async_callback(_close, app)
            urls = [url async for url in _listen(app, config)]
            for other in config.connect:
                peer = await _link(app, config, other)
                ending.callback(asyncio.create_task(_watch(other, peer)).cancel)
            names = ", ".join(sorted(handlers)) or "no handlers of its own"
            click.echo(f"{app.id} is ready at {' and '.join(urls)}: {names}")
            await stop.wait()
            log.info("stopping")


async def _listen(app: Exchange, config: Config) -> AsyncIterator[str]:
    """Listen wherever it should; what the ready line says of each."""
    if config.grpc is not None:
        try:
            yield f"{await app.listen(full_url(config.grpc))} (reflection and health on)"
        except AddressError as error:
            hint = "" if "unix:" in config.grpc else " (another --grpc? port 0 takes a free one)"
            fail(FAILED, f"{error}{hint}")
    if config.http is not None:
        address = config.http.removeprefix("http://").removeprefix("ws://")
        try:
            yield f"{await app.listen(f'ws://{address}', origins=config.origins)} (WebSocket)"
        except AddressError as error:
            fail(FAILED, f"{error} (another --http? port 0 takes a free one)")


async def _link(app: Exchange, config: Config, url: str) -> Peer:
    try:
        peer = await app.connect(full_url(url))
    except AddressError as error:
        blame(config, "connect", str(error))
    except LinkError as error:
        fail(UNREACHABLE, f"{config.sources['connect']}: {error}")
    log.info("linked to %s at %s", peer.id, url)
    return peer


async def _watch(url: str, peer: Peer) -> None:
    await peer.wait_closed()
    log.warning("the link to %s at %s is over: it wants us to stay away", peer.id, url)


async def _close(app: Exchange) -> None:
    try:
        await asyncio.wait_for(app.close(), STOP_SECONDS)
    except TimeoutError:
        log.error("stopped after %g s, with something still running", STOP_SECONDS)

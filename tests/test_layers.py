"""The layers are real: behaviour goes with its handler, imports go one way, and the core knows no world."""

import ast
import re
from pathlib import Path

import pytest

import exchange_grpc
from exchange_grpc import Exchange, ExchangeError, State, StateError, limits

PACKAGE = Path(exchange_grpc.__file__).parent

# Each room imports only from rooms before it.
ORDER = [
    "errors", "kernel", "limits", "version", "patterns", "payload", "message", "frames", "wire", "ledger", "traces",
    "graph", "reactive", "changes", "tasks", "outbox", "inbox", "peer", "discovery", "scatter", "balance", "routing",
    "links", "handlers", "observers", "replies", "remote", "mirror",
    "transports", "transports.link", "transports.local", "emitter", "system", "running",
    "service", "transports.grpc", "transports.origins", "transports.http", "transports.websocket",
    "blocking", "exchange", "__init__",
    "cli.pretty", "cli.console", "cli.logs", "cli.demo", "cli.config", "cli.serve", "cli.child", "cli.handle",
    "cli.talk", "cli.observe", "cli.look", "cli.state", "cli.tree", "cli.reason", "cli.explain", "cli.bench",
    "cli.doctor", "cli.completion", "cli",
]  # fmt: skip
CORE = ORDER[: ORDER.index("handlers")]
WORLD = {"asyncio", "grpc", "socket", "time", "random", "os", "threading", "concurrent"}
EXCEPTIONS = {
    "graph": {"threading"},  # a lock: plain handlers may set from their threads
    "reactive": {"threading"},
    "tasks": {"asyncio", "threading", "time"},  # the clock and the loop of a State, kept apart for that reason
}


def module_path(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(module: str) -> tuple[set[str], set[str]]:
    """The modules of the package that a module imports, and the top-level names of all others."""
    inside: set[str] = set()
    outside: set[str] = set()
    path = module_path(module)
    here = path.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            outside |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) - node.level], *(node.module or "").split(".")]
            names = [".".join(filter(None, [*base, alias.name])) for alias in node.names]
            joined = ".".join(filter(None, base))
            inside |= {name if name in ORDER else joined or "__init__" for name in names}
    return inside, outside


def test_every_module_has_its_place() -> None:
    found = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
    }
    assert found == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_go_one_way(module: str) -> None:
    inside, _ = imports(module)
    assert inside <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("module", CORE)
def test_the_core_knows_no_loop_socket_or_clock(module: str) -> None:
    _, outside = imports(module)
    assert outside & WORLD <= EXCEPTIONS.get(module, set())


def test_only_the_door_and_the_edge_know_generated_code() -> None:
    users = {module for module in ORDER if "exchange" in imports(module)[1]}
    assert users == {"wire", "service", "blocking", "cli.observe", "cli.doctor"}


def test_the_command_line_uses_what_users_have() -> None:
    rooms = {module for module in ORDER if module == "cli" or module.startswith("cli.")}
    used = {used for module in rooms for used in imports(module)[0]} - rooms
    assert used == {"__init__", "limits", "transports.grpc", "transports.origins", "version"}


def test_the_kernel_imports_nothing_of_the_package() -> None:
    assert imports("kernel")[0] == set()


def test_the_public_names_are_these() -> None:
    assert sorted(exchange_grpc.__all__) == [
        "AddressError", "Cancelled", "CircularDependency", "Code", "DeadlineExceeded", "Exchange",
        "ExchangeError", "HandlerFailed", "Hop", "InvalidMessage", "Kind", "LimitExceeded", "Limits", "LinkError",
        "Message", "Outcome", "Peer", "Refused", "RemoteState", "Replies", "RequestError", "Seen", "SideEffect",
        "State", "StateError", "StateValue", "SubscriberError", "Unavailable", "Unhandled", "UnknownName",
        "__version__",
    ]  # fmt: skip


@pytest.mark.parametrize("signal", ["set", "get", "run", "check circle"])
def test_a_state_without_its_handler_cannot_do_what_it_did(signal: str) -> None:
    app = Exchange("app", state={"data": 1, "double": lambda s: s.data * 2})
    app.state.data = 2
    assert app.state.double == 4
    del app.kernel.immediate[signal]
    if signal == "check circle":  # it only ever refused: what it would have refused is no longer seen by it
        app.state.data = 3
        assert app.state.double == 6
        return
    if signal == "get":
        with pytest.raises(StateError, match=signal):
            _ = app.state.data
        return
    with pytest.raises(StateError, match=signal):
        app.state.data = 3
    assert app.state.data == 2


def test_a_circle_is_refused_by_its_handler_and_by_nobody_else() -> None:
    state = State({"on": False, "tick": lambda s: s.tock if s.on else 0, "tock": lambda s: s.tick})
    with pytest.raises(StateError, match="tick"):
        state.on = True
    assert (state.on, state.tick, state.tock) == (False, 0, 0)


async def test_an_exchange_without_route_routes_nothing() -> None:
    async with Exchange("one") as one, Exchange("two", handlers={"echo": lambda msg: msg.value}) as two:
        await one.connect(two)
        assert await one.request("echo", 1) == 1
        route = one.kernel.delayed.pop("route")
        with pytest.raises(ExchangeError, match="route"):
            await one.request("echo", 2)
        with pytest.raises(ExchangeError, match="route"):
            await one.send("echo", 2)
        one.kernel.delayed["route"] = route
        assert await one.request("echo", 3) == 3


async def test_broadcast_goes_with_its_handler() -> None:
    async with Exchange("one") as one:
        del one.kernel.delayed["broadcast"]
        with pytest.raises(ExchangeError, match="broadcast"):
            await one.broadcast("news")


@pytest.mark.parametrize("name", ["set", "get", "run", "route", "peer.connect", "peer.disconnect", "deliver", "offer"])
async def test_a_remote_message_named_like_a_signal_touches_nothing(name: str) -> None:
    seen: list[str] = []
    async with Exchange("one") as one, Exchange("two", state={"secret": 1}) as two:
        peer = await one.connect(two)
        before = dict(two.state)
        two.kernel.hook = lambda event, signal, value: seen.append(signal) if value_is(value) else None

        def value_is(value: object) -> bool:
            return value == {"name": "secret", "value": 2}

        with pytest.raises(ExchangeError, match=r"nobody handles|does not handle"):
            await peer.request(name, {"name": "secret", "value": 2})
        assert dict(two.state) == before
        assert seen == []
        assert [p.id for p in two.peers] == ["one"]


def test_the_page_of_limits_has_every_limit_and_its_number() -> None:
    page = (PACKAGE.parent / "docs" / "limits.md").read_text()
    shown = {name: float(value) for name, value in re.findall(r"^\| `([A-Z_]+)` \| ([0-9.]+) \|", page, re.MULTILINE)}
    assert shown == {name: value for name, value in vars(limits).items() if name.isupper()}

"""Test an app without a network: the fake server is an exchange in the same process.

    python examples/fake_server.py

`weather_app` is the app, as it runs in production. The tests link it to a server that says what they
want to hear. That takes no port, no mocking library and no waiting.
"""

import asyncio

from exchange_grpc import Exchange, Refused


def weather_app() -> Exchange:
    """The app under test: it asks a server for the weather, and keeps what it hears."""
    app = Exchange("app", state={"celsius": None, "text": text})

    @app.handle("weather.refresh")
    async def refresh(msg, sig, state):
        try:
            weather = await app.request("weather.get", {"town": msg.value})
        except Refused:
            weather = {"celsius": None}
        state.celsius = weather["celsius"]
        return state.text

    return app


def text(state):
    return "no idea" if state.celsius is None else f"{state.celsius} degrees"


async def test_shows_the_temperature() -> None:
    async def weather(msg):
        assert msg.value == {"town": "Bergen"}
        return {"celsius": 21}

    async with weather_app() as app, Exchange("fake-server", handlers={"weather.get": weather}) as server:
        await app.connect(server)
        assert await app.request("weather.refresh", "Bergen") == "21 degrees"


async def test_has_no_idea_of_a_town_that_is_not_there() -> None:
    async def weather(msg):
        raise Refused("there is no such town")

    async with weather_app() as app, Exchange("fake-server", handlers={"weather.get": weather}) as server:
        await app.connect(server)
        assert await app.request("weather.refresh", "Atlantis") == "no idea"


async def main() -> None:
    for test in (test_shows_the_temperature, test_has_no_idea_of_a_town_that_is_not_there):
        await test()
        print("passed:", test.__name__)


if __name__ == "__main__":
    asyncio.run(main())

"""Test an app without a network: the fake server is an exchange in the same process.

    python examples/fake_server.py

`weather_app` is the app, as it runs in production. The two tests link it to a server that says what
they want to hear. They need no port, no mock library and no sleep.
"""

import asyncio

from exchange_grpc import Exchange, Refused


def weather_app() -> Exchange:
    """The app under test: it asks a server for the weather and keeps what it hears."""
    app = Exchange(
        "app",
        state={
            "celsius": None,
            "text": lambda s: "no idea" if s.celsius is None else f"{s.celsius} degrees",
        },
    )

    @app.handle("weather.refresh")
    async def refresh(msg, sig, state):
        try:
            weather = await app.request("weather.get", {"town": msg.value})
        except Refused:
            weather = {"celsius": None}
        state.celsius = weather["celsius"]
        return state.text

    return app


async def test_shows_the_temperature() -> None:
    asked = []

    async def weather(msg):
        asked.append(msg.value)
        return {"celsius": 21}

    async with weather_app() as app, Exchange("fake-server", handlers={"weather.get": weather}) as server:
        await app.connect(server)
        assert await app.request("weather.refresh", "Bergen") == "21 degrees"
        assert asked == [{"town": "Bergen"}]


async def test_has_no_idea_when_the_server_refuses() -> None:
    async def weather(msg):
        raise Refused("there is no such town")

    async with weather_app() as app, Exchange("fake-server", handlers={"weather.get": weather}) as server:
        await app.connect(server)
        assert await app.request("weather.refresh", "Atlantis") == "no idea"


async def main() -> None:
    for test in (test_shows_the_temperature, test_has_no_idea_when_the_server_refuses):
        await test()
        print("passed:", test.__name__)


if __name__ == "__main__":
    asyncio.run(main())

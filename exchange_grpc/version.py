"""The version of this library, and what it calls itself."""

from importlib.metadata import version

VERSION = version("exchange-grpc")
AGENT = f"python/{VERSION}"

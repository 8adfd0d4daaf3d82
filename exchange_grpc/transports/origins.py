"""Which web pages may talk to an exchange. A browser says in `Origin` whose page it is; programs say nothing.

Law: exact. A page may, if its origin is listed, or if it came from this very server. The latter counts only where the
name of the server cannot be made up: as a number, as `localhost`, or as the name that it listens at. Under any
other name a stranger's page could be "of the same origin", by pointing his own domain at this machine.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence

from ..errors import AddressError
from ..patterns import shown

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:[1-9][0-9]{0,4})?")
_DEFAULT_PORTS = ("http://", ":80"), ("https://", ":443")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:[0-9]{1,5})?")


class Origins:
    """The origins that may, of a server that listens at the host `own`. Raises AddressError for what is no origin."""

    def __init__(self, listed: Iterable[str], own: str) -> None:
        self._listed = frozenset(map(_checked, listed))
        self._own = own.lower()

    def permit(self, origins: Sequence[str], hosts: Sequence[str]) -> bool:
        """Whether a request with these headers `Origin` and `Host` may."""
        if not origins:
            return True
        if len(origins) > 1:
            return False
        return origins[0] in self._listed or (len(hosts) == 1 and self._is_here(origins[0], hosts[0].lower()))

    def _is_here(self, origin: str, host: str) -> bool:
        found = _HOST.fullmatch(host)
        return found is not None and origin == f"http://{host}" and self._is_certain(found[1])

    def _is_certain(self, name: str) -> bool:
        if name in ("localhost", self._own):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


def _checked(origin: str) -> str:
    if _ORIGIN.fullmatch(origin) is None or any(
        origin.startswith(scheme) and origin.endswith(port) for scheme, port in _DEFAULT_PORTS
    ):
        raise AddressError(
            f"{shown(origin)} is no origin as browsers send it: https://example.com or http://localhost:3000, "
            "in small letters, without a path, and without the port if that is the usual one"
        )
    return origin

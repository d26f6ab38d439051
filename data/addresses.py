"""Addresses on the network: as messages tell them, as requests need them, and who opens them."""

from email.message import Message
from typing import IO
from urllib.parse import quote, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from utils.options import InputError


def shown(address: str) -> str:
    """What may be told of an address: without the user's name and password, and what follows the path."""
    if address.isdecimal():
        return f"camera {address}"
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def requestable(address: str) -> str:
    """The address of a file with what none may have, such as spaces, percent-encoded.

    Raises:
        InputError: it has a name or password, which are not sent.
    """
    if "@" in urlsplit(address).netloc:
        raise InputError(f"{shown(address)}: files are fetched without a name and password; leave them out")
    return quote(address, safe="!#$%&'()*+,/:;=?@[]~")


class _Redirects(HTTPRedirectHandler):
    def __init__(self, schemes: tuple[str, ...]) -> None:
        self._schemes = schemes

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme not in self._schemes:
            allowed = " or ".join(self._schemes)
            raise InputError(f"{shown(req.full_url)}: redirected to {shown(newurl)}, which is not {allowed}: refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def web_opener(*, http: bool) -> OpenerDirector:
    """An opener for https, with `http` for both: no other scheme has one, whatever an address or a redirect says.

    What a user names himself may come over http; what a file of somebody else's names, as a data YAML, may not.
    """
    opener = OpenerDirector()
    for handler in (ProxyHandler(), UnknownHandler(), HTTPDefaultErrorHandler(), HTTPErrorProcessor(), HTTPSHandler()):
        opener.add_handler(handler)
    if http:
        opener.add_handler(HTTPHandler())
    opener.add_handler(_Redirects(("http", "https") if http else ("https",)))
    return opener

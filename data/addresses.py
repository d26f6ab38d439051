"""Addresses on the network: as messages tell them, and as requests need them."""

from urllib.parse import quote, urlsplit

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

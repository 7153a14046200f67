# SPDX-License-Identifier: Apache-2.0
"""Typed access to the fields of a manifest: whatever is of the wrong shape becomes an error that names the field.

What comes out can be written again, wherever it goes: into a log, a Lease, a page, a file name. Half a character (a
lone surrogate, which JSON can hold and UTF-8 cannot) ends here, and so does what is longer than anybody means it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from kmesh.text import shown
from kmesh_bpf import Address, ConfigError, Network

LONGEST, LONGEST_WORD = 1 << 20, 1024
"""Characters of a string, certificates being the longest, and of one that names something: names in Kubernetes have
253, a boot id 36."""
LONGEST_NAME = 253
LONGEST_ADDRESS = 64
"""Characters of an address or CIDR; IPv6 with an IPv4 address in it and a prefix length has 49."""
LONGEST_KEY, LONGEST_LABEL, LARGEST_ANNOTATIONS = 253 + 1 + 63, 63, 256 << 10
"""Characters of a label's or annotation's key (prefix/name) and of a label's value, and of all annotations of an
object, keys and values together: what the API server takes (k8s.io/apimachinery: api/validation, util/validation)."""


class Fields:
    """The fields of a mapping that stands at ``path`` of a manifest; null counts as absent, as in Kubernetes.

    Every method raises ConfigError, naming the field, for a value it cannot use. No string but an annotation may have
    more than ``longest`` characters.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "", longest: int = LONGEST) -> None:
        self._values = values
        self._path = path
        self._longest = longest

    def has(self, name: str) -> bool:
        """Tell whether the field is there."""
        return self._values.get(name) is not None

    def names(self) -> tuple[str, ...]:
        """Give the names of all fields that are there."""
        return tuple(name for name in self._values if isinstance(name, str) and self.has(name))

    def value(self, name: str) -> Any:
        """Give a field as it stands, for whoever hands it on; None: it is not there."""
        return self._values.get(name)

    def part(self, name: str) -> Fields:
        """Give a mapping below; an absent one is empty."""
        return self._fields(self._values.get(name), self._at(name))

    def parts(self, name: str) -> tuple[Fields, ...]:
        """Give a list of mappings; an absent one is empty."""
        return tuple(self._fields(one, f"{self._at(name)}[{i}]") for i, one in enumerate(self._list(name)))

    def text(self, name: str, default: str | None = None) -> str:
        """Give a string; without a default it must be there and not be empty."""
        value = self._values.get(name)
        if value is None or (value == "" and default is None):
            if default is None:
                raise ConfigError(f"{self._at(name)} is missing")
            return default
        return self._text(value, self._at(name))

    def texts(self, name: str) -> tuple[str, ...]:
        """Give a list of strings; an absent one is empty."""
        return tuple(self._text(one, f"{self._at(name)}[{i}]") for i, one in enumerate(self._list(name)))

    def flag(self, name: str) -> bool:
        """Give a boolean; an absent one is false."""
        value = self._values.get(name, False)
        if not isinstance(value, bool | None):
            raise ConfigError(f"{self._at(name)} is neither true nor false")
        return bool(value)

    def number(self, name: str, least: int, most: int, default: int | None = None) -> int:
        """Give an integer within bounds, both included; without a default it must be there."""
        return _number(self._values.get(name, default), self._at(name), least, most)

    def numbers(self, name: str, least: int, most: int) -> tuple[int, ...]:
        """Give a list of integers within bounds, both included; an absent one is empty."""
        return tuple(_number(one, f"{self._at(name)}[{i}]", least, most) for i, one in enumerate(self._list(name)))

    def real(self, name: str, least: float, most: float) -> float:
        """Give a number, whole or not, within bounds, both included."""
        value = self._values.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            raise ConfigError(f"{self._at(name)} is no number from {least} to {most}")
        return float(value)

    def labels(self, name: str) -> dict[str, str]:
        """Give labels; an absent mapping is empty."""
        found, at = self._pairs(name), self._at(name)
        for key, value in found.items():
            if len(value) > LONGEST_LABEL:
                raise ConfigError(f"{at}: {shown(key)} has {len(value)} characters, more than {LONGEST_LABEL}")
        return found

    def annotations(self, name: str) -> dict[str, str]:
        """Give annotations, whose values may be long; an absent mapping is empty."""
        found = self._pairs(name)
        size = sum(len(key) + len(value) for key, value in found.items())
        if size > LARGEST_ANNOTATIONS:
            raise ConfigError(f"{self._at(name)} has {size} characters, more than {LARGEST_ANNOTATIONS}")
        return found

    def address(self, name: str) -> Address:
        """Give an address."""
        return _address(self.text(name), self._at(name))

    def address_of(self, text: str, name: str) -> Address:
        """Read an address that stands in the field of this name."""
        return _address(text, self._at(name))

    def address_if_any(self, name: str) -> Address | None:
        """Give an address; None where there is none, or a text that is none."""
        try:
            return self.address_of(self.text(name, ""), name)
        except ConfigError:
            return None

    def addresses(self, name: str) -> tuple[Address, ...]:
        """Give a list of addresses; an absent one is empty."""
        return tuple(_address(one, f"{self._at(name)}[{i}]") for i, one in enumerate(self.texts(name)))

    def claim(self, name: str) -> Address:
        """Give an address, with its zone if it has one: whoever reads it judges whether it can be anybody's."""
        return _any_address(self.text(name), self._at(name))

    def claims(self, name: str) -> tuple[Address, ...]:
        """Give a list of addresses, with their zones; an absent one is empty."""
        return tuple(_any_address(one, f"{self._at(name)}[{i}]") for i, one in enumerate(self.texts(name)))

    def cidrs(self, name: str) -> tuple[Network, ...]:
        """Give a list of CIDRs; an absent one is empty."""
        return self.cidrs_of(self.texts(name), name)

    def cidrs_of(self, texts: Sequence[str], name: str) -> tuple[Network, ...]:
        """Read CIDRs that stand in the field of this name."""
        at = self._at(name)
        try:
            return tuple(ip_network(_short(text, at)) for text in texts)
        except ValueError as error:
            raise ConfigError(f"{at}: {error}") from error

    def _pairs(self, name: str) -> dict[str, str]:
        values, at = self.part(name)._values, self._at(name)
        found = {_quoted(key, at): _quoted(value, at) for key, value in values.items()}
        for key in found:
            if len(key) > LONGEST_KEY:
                raise ConfigError(f"{at}: the key {shown(key)} is too long: more than {LONGEST_KEY} characters")
        return found

    def _at(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _list(self, name: str) -> list[Any]:
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise ConfigError(f"{self._at(name)} is no list")
        return value

    def _fields(self, value: Any, path: str) -> Fields:
        if value is None:
            return Fields({}, path, self._longest)
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} is no mapping")
        return Fields(value, path, self._longest)

    def _text(self, value: Any, path: str) -> str:
        if not isinstance(value, str):
            raise ConfigError(f"{path} is no string")
        if len(value) > self._longest:
            raise ConfigError(f"{path} has {len(value)} characters, more than {self._longest}")
        if not whole(value):
            raise ConfigError(f"{path} holds half a character (a lone surrogate)")
        return value


def whole(text: str) -> bool:
    """Tell whether a text can be written: no half of a character is in it."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def nameable(name: str) -> bool:
    """Tell whether something may be called so: what goes into a path, a log line or a table as it is.

    Servers are stricter, and a folder has no server.
    """
    return len(name) <= LONGEST_NAME and name.isprintable() and not {" ", "/"} & set(name)


def _quoted(value: Any, path: str) -> str:
    """Give a text; numbers and truths that somebody forgot to quote are as if quoted."""
    if isinstance(value, str):
        if not whole(value):
            raise ConfigError(f"{path} holds half a character (a lone surrogate)")
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    raise ConfigError(f"{path} holds something that is no string")


def _short(text: str, path: str) -> str:
    if len(text) > LONGEST_ADDRESS:
        raise ConfigError(f"{path}: {shown(text)} is too long for an address")
    return text


def _number(value: Any, path: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{path} is no number from {least} to {most}")
    return value


def _any_address(text: str, path: str) -> Address:
    try:
        return ip_address(_short(text, path))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _address(text: str, path: str) -> Address:
    address = _any_address(text, path)
    if "%" in text:
        raise ConfigError(f"{path}: {text!r} has a zone, which means nothing on another node")
    return address

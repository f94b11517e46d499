"""How byte-level vocabularies spell bytes: GPT-2's table, which every one of them uses."""

import functools


@functools.cache
def byte_of_character() -> dict[str, int]:
    """The bytes that characters of a byte-level vocabulary stand for: printable ones for themselves,
    the others for those from U+0100 on, in order.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}

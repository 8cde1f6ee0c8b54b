"""GPT-2's alphabet for bytes: printable Latin-1 stands for itself, other bytes for the characters from U+0100 on."""


def _byte_of_char() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if chr(byte) not in table)
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF_CHAR = _byte_of_char()
_TO_CHAR = {byte: char for char, byte in BYTE_OF_CHAR.items()}


def text_of_bytes(data: bytes) -> str:
    """The text by which a byte-level vocabulary names a token of these bytes."""
    return "".join(map(_TO_CHAR.__getitem__, data))

"""How messages count rows: from 1 in files of every kind, headers, comments and empty lines left out; and they say so."""


def nth_row(index: int) -> str:
    """What a message calls the row with `index` rows before it."""
    return f"row {index + 1} (counting from 1)"

"""Text of strangers, made safe to print: names of files, people and domains may hold anything."""

__all__ = ["printable"]


def printable(text: object) -> str:
    """Return `text` on one line: a character that is not printable is written as \\t, \\x1b, \\u2028 or the like."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(text))

"""Damages a file as disks, editors, networks and people do; the same seed does the same damage."""

import random
from collections.abc import Callable

Mutation = Callable[[bytes, random.Random], bytes]


def _place(content: bytes, rng: random.Random) -> int:
    return rng.randrange(len(content) + 1)


def flip_bits(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_off(content: bytes, rng: random.Random) -> bytes:
    return content[: _place(content, rng)]


def lose_a_stretch(content: bytes, rng: random.Random) -> bytes:
    start = _place(content, rng)
    return content[:start] + content[start + rng.randint(1, 60) :]


def swap_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return b"\n".join(lines)


def repeat_a_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return b"\n".join(lines)


def swap_fields(content: bytes, rng: random.Random) -> bytes:
    separator = rng.choice([b",", b": ", b" "])
    fields = content.split(separator)
    one, other = rng.randrange(len(fields)), rng.randrange(len(fields))
    fields[one], fields[other] = fields[other], fields[one]
    return separator.join(fields)


NUMBERS = [
    b"0", b"-1", b"-0", b"1e308", b"1e999", b"-1e-400", b"nan", b".nan", b"inf", b"-.inf", b"9" * 30, b"9" * 400,
    b"9" * 5000, b"0x"+b"f" * 5000, b"1_000", b"0o17", b"1:59:59", b"1.5", b"\xd9\xa3", b"true", b"null", b"~", b"",
    b"2026-02-31",
]  # fmt: skip


def another_number(content: bytes, rng: random.Random) -> bytes:
    digits = [index for index, byte in enumerate(content) if 48 <= byte <= 57]
    if not digits:
        return content
    start = end = rng.choice(digits)
    while end < len(content) and 48 <= content[end] <= 57:
        end += 1
    return content[:start] + rng.choice(NUMBERS) + content[end:]


INSERTS = [
    b"\0", b"\0" * 100, b"\r", b"\n", b"\t", b'"', b"'", b"\\", b"\x1b[31m", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80",
    b"&a ", b"*a", b"<<: *a\n", b"!!python/object/apply:os.system [ls]", b"!!binary x", b"!!int ''", b"!!timestamp x",
    b"!!bool x", b"!!set {a}", b"? [a]\n: b\n", b"- ", b"{", b"}", b"[", b"]", b"[" * 3000, b"{a: " * 1500,
    b"%YAML 9.9\n", b"---\n", b"...\n", b"#", b"|", b">-", b"@", b"`", b",", b",,,", b":", b": : :", b"x" * 10_000,
    b"x,y\n" * 500, b"- a\n" * 500, b"\n" * 2_000, "é→×﷽🧨".encode(), "\u202e\u2028\x85".encode(), b"\xef\xbb\xbf",
    b"=cmd|' /C calc'!A0", b"a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]\n",
]  # fmt: skip


def insert(content: bytes, rng: random.Random) -> bytes:
    at = rng.choice([0, len(content), _place(content, rng), content.rfind(b"\n", 0, _place(content, rng)) + 1])
    return content[:at] + rng.choice(INSERTS) + content[at:]


def replace_a_value(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    index = rng.randrange(len(lines))
    head, separator, _ = lines[index].rpartition(rng.choice([b": ", b","]))
    lines[index] = head + separator + rng.choice(INSERTS + NUMBERS)
    return b"\n".join(lines)


def change_the_encoding(content: bytes, rng: random.Random) -> bytes:
    text = content.decode("utf-8", "replace")
    return rng.choice([
        content.replace(b"\n", b"\r\n"), content.replace(b"\n", b"\r"), b"\xef\xbb\xbf" + content,
        text.encode("utf-16"), text.encode("utf-32"), text.encode("utf-7"), content.replace(b" ", "\xa0".encode()),
    ])  # fmt: skip


MUTATIONS: list[Mutation] = [
    flip_bits, cut_off, lose_a_stretch, swap_lines, repeat_a_line, swap_fields, another_number, insert, replace_a_value,
    change_the_encoding,
]  # fmt: skip


def damaged(content: bytes, seed: int) -> bytes:
    """`content` after one to three mutations; each is the first one in its turn."""
    rng = random.Random(seed)
    chosen = [MUTATIONS[seed % len(MUTATIONS)], *rng.choices(MUTATIONS, k=rng.choice([0, 0, 1, 2]))]
    for mutation in chosen:
        content = mutation(content, rng)
    return content

"""A GGUF file without tensors that has the real vocabulary of qwen2, for `bench-engine --only json_mask,regex_mask`.

    pip download --no-deps --dest target dashscope    # Apache 2.0; it has the ranks of the tokens
    python3 bench/vocabulary.py target/dashscope-*.whl target/bench-models/qwen2-vocabulary.gguf
"""

import base64
import struct
import sys
import zipfile

RANKS = "dashscope/resources/qwen.tiktoken"
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ROWS = 151936  # of the head of the published models

STRING, ARRAY, U32, I32 = 8, 9, 4, 5
NORMAL, CONTROL_TYPE, UNUSED = 1, 3, 5


def characters():
    """The character that stands for each byte in byte-level BPE."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def halves(token, ranks):
    """The two tokens that the last merge makes this one of."""
    parts = [bytes([byte]) for byte in token]
    limit = ranks[token]
    while len(parts) > 2:
        pairs = [(ranks.get(a + b, limit), i) for i, (a, b) in enumerate(zip(parts, parts[1:]))]
        rank, i = min(pairs)
        assert rank < limit, token
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def array(kind, items):
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def main(package, target):
    lines = zipfile.ZipFile(package).read(RANKS).split(b"\n")
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    letters = characters()

    def name(token):
        return "".join(letters[byte] for byte in token)

    tokens = sorted(ranks, key=ranks.get)
    merges = [" ".join(map(name, halves(token, ranks))) for token in tokens if len(token) > 1]
    names = [*map(name, tokens), *CONTROL]
    types = [NORMAL] * len(tokens) + [CONTROL_TYPE] * len(CONTROL)
    names += [f"[PAD{row}]" for row in range(len(names), ROWS)]
    types += [UNUSED] * (ROWS - len(types))

    values = [
        ("general.architecture", STRING, string("qwen2")),
        ("tokenizer.ggml.model", STRING, string("gpt2")),
        ("tokenizer.ggml.pre", STRING, string("qwen2")),
        ("tokenizer.ggml.tokens", ARRAY, array(STRING, [string(name) for name in names])),
        ("tokenizer.ggml.token_type", ARRAY, array(I32, [struct.pack("<i", kind) for kind in types])),
        ("tokenizer.ggml.merges", ARRAY, array(STRING, [string(merge) for merge in merges])),
        ("tokenizer.ggml.eos_token_id", U32, struct.pack("<I", names.index("<|im_end|>"))),
    ]
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, len(values))
    data += b"".join(string(key) + struct.pack("<I", kind) + value for key, kind, value in values)
    with open(target, "wb") as file:
        file.write(data + b"\0" * (-len(data) % 32))
    print(f"{len(names)} tokens, {len(merges)} merges")


if __name__ == "__main__":
    main(*sys.argv[1:])

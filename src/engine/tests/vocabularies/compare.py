"""Compare the tokenizers with llama.cpp's on random text, vocabulary by vocabulary.

    compare.py random ENGINE FOLDER [COUNT]   compares ENGINE's tokens of COUNT random texts (10,000) with llama.cpp's, for each
                                                model or vocabulary *.gguf in FOLDER; prints differences, and fails on any
                                                that is not explained below
    compare.py patterns ENGINE FOLDER [COUNT]   the same for each known value of tokenizer.ggml.pre (500 texts), put into the vocabulary of
                                                Qwen 2 or Gemma 4 in FOLDER
    compare.py sample FOLDER                  writes texts.jsonl and llama_cpp.json beside this file, which the tests compare with

Needs the package llama-cpp-python. Texts are made of characters that Unicode has had for long, as the two sides have tables
of different versions.
"""
import ctypes
import hashlib
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile

import llama_cpp as api

# Vocabularies of old converters, without a pattern or without test vectors.
IGNORED = {"aquila", "gpt-neox", "baichuan"}
PIECES = [
    "a", "B", "the", " the", "er", "ing", "Hello", "WORLD", "'s", "'LL", "'S", "'", " ", "  ", "   ", "      ", "\n", "\n\n", "\r\n", "\r", "\t",
    "\u00a0", "\u3000", "\u2028", "\u0085", "0", "12", "345", "2024", "1234567", "٣", "½", "Ⅷ", "²", ".", ",", "...", "!?", "_", "--", "<", ">",
    "/", "//", "$", "+", "=", "^", "~", "|", "`", "```", "(", ")", "[", "]", "{", "}", "\"", "#", "@", "&", "*", "\\", "é", "e\u0301", "ß", "Ä", "ñ", "語",
    "日本", "中文", "。", "、", "「", "ひらがな", "カタカナ", "한국어", "я", "Привет", "ع", "مرحبا", "שלום", "नमस्ते", "สวัสดี", "Ελλάδα",
    "😀", "👩\u200d👩\u200d👧", "🏳️\u200d🌈", "\u200d", "\u200b", "\ufeff", "\x01", "\x7f", "\ufdd0", "\ue000", "▁", "▁▁", "ﬁ", "Ａ", "①", "ǅ", "ʰ",
    "ᾳ", "𝐀", "𐐀", "𠀀", "ﷺ", "<0x41>", "…", "“", "”", "—", "؟", "।",
]
BLOCKS = [
    (0x20, 0x7E), (0x20, 0x7E), (0x20, 0x7E), (0xA1, 0x17F), (0x300, 0x344), (0x391, 0x3A1), (0x410, 0x44F), (0x5D0, 0x5EA), (0x621, 0x64A), (0x905, 0x939),
    (0xE01, 0xE2E), (0x10A0, 0x10C5), (0x1100, 0x1112), (0x1E00, 0x1EFF), (0x2010, 0x205E), (0x20A0, 0x20B5), (0x2150, 0x2188), (0x2190, 0x23CF),
    (0x3001, 0x303F), (0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0xFF01, 0xFF5E), (0x1D400, 0x1D454), (0x1F600, 0x1F640),
]


def text(rng):
    parts = []
    for _ in range(rng.randint(1, 24)):
        if rng.random() < 0.7:
            parts.append(rng.choice(PIECES))
        else:
            first, last = rng.choice(BLOCKS)
            parts.append("".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 6))))
    return "".join(parts)


class Vocabulary:
    """llama.cpp's tokenizer of a file."""

    def __init__(self, path):
        params = api.llama_model_default_params()
        params.vocab_only = True
        self.model = api.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise SystemExit(f"{path}: llama.cpp cannot load it")
        self.vocab = api.llama_model_get_vocab(self.model)

    def __del__(self):
        if self.model:
            api.llama_model_free(self.model)

    def tokens(self, text):
        data = text.encode()
        room = 2 * len(data) + 16
        ids = (api.llama_token * room)()
        count = api.llama_tokenize(self.vocab, data, len(data), ids, room, False, False)
        assert count >= 0, count
        return ids[:count]

    def is_wordpiece(self):
        return api.llama_vocab_type(self.vocab) == api.LLAMA_VOCAB_TYPE_WPM


def vocabularies(folder):
    paths = sorted(pathlib.Path(folder).glob("*.gguf"))
    names = {path.stem.removeprefix("ggml-vocab-"): path for path in paths}
    return {name: path for name, path in names.items() if name not in IGNORED}


def compare(engine, folder, count):
    unexplained = 0
    for name, path in vocabularies(folder).items():
        rng = random.Random(name)
        texts = [text(rng) for _ in range(count)]
        theirs = Vocabulary(path)
        lines = "".join(json.dumps(text) + "\n" for text in texts)
        command = [engine, "tokenize", str(path), "--jsonl"]
        done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"{name}: {done.stderr.strip()}")
            unexplained += 1
            continue
        different = []
        for one, line in zip(texts, done.stdout.removesuffix("\n").split("\n"), strict=True):
            ours, expected = json.loads(line)["ids"], theirs.tokens(one)
            if ours != expected:
                different.append((one, ours, expected))
        # WordPiece follows transformers, which decompose Hangul into its letters, drop U+0085 instead of cutting there, and do not take
        # a written U+2581 for the beginning of a word.
        explained = theirs.is_wordpiece()
        print(f"{name}: {count} texts, {len(different)} differ{', as explained in this file' if explained and different else ''}")
        for one, ours, expected in different[: 0 if explained else 5]:
            print(f"    {one!r}\n        ours {ours}\n        llama.cpp {expected}")
        unexplained += 0 if explained else len(different)
    return unexplained


def with_string(data, key, value):
    """The bytes of a vocabulary, which has no tensors, with another value for a key that is a string."""
    at = data.index(len(key).to_bytes(8, "little") + key.encode()) + 8 + len(key) + 4
    length = int.from_bytes(data[at : at + 8], "little")
    return data[:at] + len(value).to_bytes(8, "little") + value.encode() + data[at + 8 + length :]


def patterns(engine, folder, count):
    source = pathlib.Path(__file__).parents[2] / "tokenizer" / "pre.rs"
    table = source.read_text().split("const ALL")[1].split("];\n\n")[0]
    names = ["default"]
    for listed in re.findall(r"names: &\[(.*?)\]", table, re.S):
        names += re.findall(r'"([^"]+)"', listed)
    folder = pathlib.Path(folder)
    words = (folder / "ggml-vocab-qwen2.gguf").read_bytes()
    # Its tokens are written as text, and it has no key for the pattern.
    lines = with_string((folder / "ggml-vocab-gemma-4.gguf").read_bytes(), "tokenizer.ggml.model", "gpt2")
    unexplained = 0
    with tempfile.TemporaryDirectory() as made:
        for name in [*names, "granite-embed-multi-311m", "sarvam-moe"]:
            data = words
            if name in ("granite-embed-multi-311m", "sarvam-moe"):
                data = with_key(lines, "tokenizer.ggml.pre", name)
            else:
                data = with_string(data, "tokenizer.ggml.pre", name)
            path = pathlib.Path(made) / f"{name}.gguf"
            path.write_bytes(data)
            unexplained += compare(engine, made, count)
            path.unlink()
    return unexplained


def with_key(data, key, value):
    """The bytes of a vocabulary with one more key that is a string."""
    keys = int.from_bytes(data[16:24], "little") + 1
    made = b"".join([len(key).to_bytes(8, "little"), key.encode(), (8).to_bytes(4, "little")])
    made += len(value).to_bytes(8, "little") + value.encode()
    return data[:16] + keys.to_bytes(8, "little") + made + data[24:]


def digest(lists):
    """SHA-256 of the tokens of all texts: 32-bit little endian, all bits set behind each text."""
    sha = hashlib.sha256()
    for ids in lists:
        for number in [*ids, 0xFFFFFFFF]:
            sha.update(number.to_bytes(4, "little"))
    return sha.hexdigest()


def sample(folder):
    here = pathlib.Path(__file__).parent
    rng = random.Random(1)
    texts = [text(rng) for _ in range(300)]
    (here / "texts.jsonl").write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts))
    made = {}
    for name, path in vocabularies(folder).items():
        vocabulary = Vocabulary(path)
        if not vocabulary.is_wordpiece():
            made[name] = digest(vocabulary.tokens(text) for text in texts)
    (here / "llama_cpp.json").write_text(json.dumps(made, indent=1) + "\n")


def main():
    @api.llama_log_callback
    def silent(_level, _text, _data):
        pass

    api.llama_log_set(silent, ctypes.c_void_p(0))
    match sys.argv[1:]:
        case ["random", engine, folder, *rest]:
            sys.exit(1 if compare(engine, folder, int(rest[0]) if rest else 10_000) else 0)
        case ["patterns", engine, folder, *rest]:
            sys.exit(1 if patterns(engine, folder, int(rest[0]) if rest else 500) else 0)
        case ["sample", folder]:
            sample(folder)
        case _:
            sys.exit(__doc__)


main()

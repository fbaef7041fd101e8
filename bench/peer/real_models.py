"""Writes src/engine/tests/real_models/reference.jsonl: what llama.cpp computes with the models of
scripts/fetch-real-models.sh, for the engine's tests of the same name.

    scripts/fetch-real-models.sh && PYTHON_WITH_LLAMA_CPP bench/peer/real_models.py

Of each model: a line with the perplexity of the first 2,000 tokens of text.txt, and a line for each of 20 prompts with its
tokens, the most likely answer, token by token, and by how much each of its tokens was ahead of the second one, in logits.
"""

import ctypes
import hashlib
import json
import pathlib

import llama_cpp as api
import numpy as np

from llama_cpp_peer import Context, Peer, silent

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "src/engine/tests/real_models"
TOKENS = 2000
ANSWER = 48
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

# Name, file, what is put around a prompt.
MODELS = [
    ("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", CHAT),
    ("gemma3", "gemma-3-270m-Q4_K_M.gguf", "{}"),
]

PROMPTS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "The first ten prime numbers are",
    "Translate to Spanish: Good morning, my friend.",
    "List three uses of a hammer.",
    "Why is the sky blue?",
    "Summarize in one sentence: The parcel was sent on Monday, came back on Wednesday because nobody was at home, and was "
    "collected at the post office on Friday.",
    "SELECT name, count(*) FROM orders GROUP BY",
    "A haiku about autumn:",
    "Is 17 larger than 12? Answer yes or no.",
    "def fibonacci(n):",
    "Give me a recipe for pancakes.",
    "The opposite of \"cold\" is",
    "Der schnelle braune Fuchs springt über",
    "Who wrote Hamlet?",
    "In 1969, for the first time,",
    "Explain to a child what a database is.",
    "Return a JSON object with the keys name and age for Anna, who is 31.",
    "1, 1, 2, 3, 5, 8,",
    "Once upon a time, in a village by the river,",
]


def tokenize(peer, text, special):
    """Tokens of a text, with whatever the model wants at its beginning; control tokens stand for themselves where special."""
    data = text.encode()
    ids = (api.llama_token * (len(data) + 8))()
    vocabulary = api.llama_model_get_vocab(peer.model)
    count = api.llama_tokenize(vocabulary, data, len(data), ids, len(ids), True, special)
    if count < 0:
        raise RuntimeError("the text has too many tokens")
    return list(ids[:count])


def rows(peer, context, count):
    found = api.llama_get_logits(context.context)
    return np.ctypeslib.as_array(found, (count, peer.vocabulary)).astype(np.float64)


def perplexity(peer, ids):
    context = Context(peer, 1, len(ids), 0)
    losses = []
    for begin in range(0, len(ids), 64):
        part = ids[begin:begin + 64]
        context.run([(token, begin + at, 0, True) for at, token in enumerate(part)])
        following = ids[begin + 1:begin + 65]
        logits = rows(peer, context, len(part))[:len(following)]
        largest = logits.max(axis=1)
        total = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
        losses.extend(total - logits[np.arange(len(following)), following])
    return float(np.exp(np.mean(losses)))


def answer(peer, ids):
    context = Context(peer, 1, len(ids) + ANSWER, 0)
    vocabulary = api.llama_model_get_vocab(peer.model)
    context.run([(token, at, 0, at == len(ids) - 1) for at, token in enumerate(ids)])
    tokens, margins = [], []
    for step in range(ANSWER):
        logits = rows(peer, context, 1)[0]
        best = int(logits.argmax())
        second = np.partition(logits, -2)[-2]
        tokens.append(best)
        margins.append(round(float(logits[best] - second), 3))
        if api.llama_vocab_is_eog(vocabulary, best):
            break
        context.run([(best, len(ids) + step, 0, True)])
    return tokens, margins


def main():
    api.llama_log_set(silent, ctypes.c_void_p(0))
    api.llama_backend_init()
    text = (DATA / "text.txt").read_text()
    peer = Peer()
    with open(DATA / "reference.jsonl", "w") as out:
        for name, file, around in MODELS:
            # One thread: others would wait for each other by spinning, however busy the machine is.
            peer.open(1, str(ROOT / "target/real-models" / file))
            ids = tokenize(peer, text, False)[:TOKENS]
            if len(ids) != TOKENS:
                raise RuntimeError(f"the text has {len(ids)} tokens only")
            digest = hashlib.sha256(np.array(ids, dtype="<u4").tobytes()).hexdigest()
            line = {"model": name, "file": file, "ids_sha256": digest, "perplexity": round(perplexity(peer, ids), 4)}
            print(json.dumps(line), file=out, flush=True)
            for prompt in PROMPTS:
                around_it = around.format(prompt)
                ids = tokenize(peer, around_it, True)
                tokens, margins = answer(peer, ids)
                line = {"model": name, "text": around_it, "ids": ids, "answer": tokens, "margins": margins}
                print(json.dumps(line, ensure_ascii=False, separators=(",", ":")), file=out, flush=True)


main()

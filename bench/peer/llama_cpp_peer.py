"""llama.cpp under measurement: reads commands, one a line, and answers each with `ok NUMBER` or `error TEXT`.

    open THREADS PATH             loads a model
    load THREADS PATH             loads a model; milliseconds until the first token of a short prompt
    prefill TOKENS                tokens a second
    decode REQUESTS PROMPT STEPS  tokens a second of all requests together, STEPS tokens each after PROMPT
    embed TEXTS TOKENS            texts a second, pooling last
    logits TOKENS OUT             i32 tokens from one file, f32 logits after each of them to the other
    peak                          peak resident memory of this process, in MB

Uses llama_cpp's low-level API only. Where a setting is a matter of speed (flash attention; for embeddings the batch
as well), the first run of a command tries all and keeps the fastest.
"""

import ctypes
import sys
import time

import llama_cpp as api
import numpy as np

UBATCH = 512


class Batch:
    """Rows of a forward pass: (token, position, sequence, whether its output is wanted)."""

    def __init__(self, capacity):
        self.batch = api.llama_batch_init(capacity, 0, 1)

    def fill(self, rows):
        batch = self.batch
        batch.n_tokens = len(rows)
        for row, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[row] = token
            batch.pos[row] = position
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = sequence
            batch.logits[row] = wanted
        return batch

    def __del__(self):
        api.llama_batch_free(self.batch)


class Context:
    """A context of the model with room for `sequences` of `tokens` each."""

    def __init__(self, peer, sequences, tokens, flash, ubatch=UBATCH, unified=False, embeddings=False):
        params = api.llama_context_default_params()
        room = -(-tokens // 256) * 256
        params.n_ctx = room * sequences
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = ubatch
        params.n_threads = params.n_threads_batch = peer.threads
        params.flash_attn_type = flash
        params.kv_unified = unified
        params.no_perf = True
        if embeddings:
            params.embeddings = True
            params.pooling_type = api.LLAMA_POOLING_TYPE_LAST
        self.context = api.llama_init_from_model(peer.model, params)
        if not self.context:
            raise RuntimeError("no context")
        self.memory = api.llama_get_memory(self.context)
        self.ubatch = ubatch
        self.batch = Batch(max(ubatch, sequences))

    def run(self, rows):
        """Computes rows in slices of the batch size and waits for the last."""
        for begin in range(0, len(rows), self.ubatch):
            code = api.llama_decode(self.context, self.batch.fill(rows[begin:begin + self.ubatch]))
            if code != 0:
                raise RuntimeError(f"llama_decode says {code}")
            api.llama_synchronize(self.context)

    def clear(self):
        api.llama_memory_clear(self.memory, False)

    def __del__(self):
        if getattr(self, "context", None):
            api.llama_free(self.context)


class Peer:
    def __init__(self):
        self.model = None
        self.threads = 1
        self.best = None  # (name, what was found fastest for it)
        self.random = np.random.default_rng(1)

    def open(self, threads, path):
        self.best = None
        if self.model:
            api.llama_model_free(self.model)
        self.threads = int(threads)
        self.model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
        if not self.model:
            raise RuntimeError("the model does not load")
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        return 0

    def load(self, threads, path):
        begin = time.perf_counter()
        self.open(threads, path)
        context = Context(self, 1, 64, -1)
        context.run(self.prompt(16, 0))
        return (time.perf_counter() - begin) * 1000

    def prompt(self, tokens, sequence):
        """Rows of a random prompt; the last one is to be continued."""
        ids = self.random.integers(300, self.vocabulary, tokens)
        return [(int(token), at, sequence, at == tokens - 1) for at, token in enumerate(ids)]

    def fastest(self, name, candidates, run):
        """What `make` of the fastest candidate made: (make, …) in, the one with the highest run() out."""
        if self.best is None or self.best[0] != name:
            self.best = None
            found = None
            for make in candidates:
                made = make()
                rate = run(made)
                if found is None or rate > found[0]:
                    found = (rate, made)
            self.best = (name, found[1])
        return self.best[1]

    def prefill(self, tokens):
        tokens = int(tokens)

        def run(context):
            context.clear()
            rows = self.prompt(tokens, 0)
            begin = time.perf_counter()
            context.run(rows)
            return tokens / (time.perf_counter() - begin)

        candidates = [lambda flash=flash: Context(self, 1, tokens, flash) for flash in (0, 1)]
        return run(self.fastest(("prefill", tokens), candidates, run))

    def decode(self, requests, prompt, steps):
        requests, prompt, steps = int(requests), int(prompt), int(steps)

        def make(flash):
            context = Context(self, requests, prompt + steps + 1, flash)
            for sequence in range(requests):
                context.run(self.prompt(prompt, sequence))
            return context

        def run(context, steps=steps):
            for sequence in range(requests):
                api.llama_memory_seq_rm(context.memory, sequence, prompt, -1)
            begin = time.perf_counter()
            for step in range(steps):
                tokens = self.random.integers(300, self.vocabulary, requests)
                context.run([(int(token), prompt + step, at, True) for at, token in enumerate(tokens)])
            return requests * steps / (time.perf_counter() - begin)

        candidates = [lambda flash=flash: make(flash) for flash in (0, 1)]
        best = self.fastest(("decode", requests, prompt), candidates, lambda context: run(context, 16))
        return run(best)

    def embed(self, texts, tokens):
        texts, tokens = int(texts), int(tokens)

        def run(made, count=16):
            context, batch = made
            # Embeddings of all sequences of a batch are there when it is done; the next one reuses their ids.
            prompts = [[self.prompt(tokens, at) for at in range(min(batch, count - done))]
                       for done in range(0, count, batch)]
            begin = time.perf_counter()
            for group in prompts:
                context.clear()
                context.run([row for rows in group for row in rows])
                for at in range(len(group)):
                    if not api.llama_get_embeddings_seq(context.context, at):
                        raise RuntimeError("no embedding")
            return count / (time.perf_counter() - begin)

        def make(flash, batch, unified):
            return lambda: (Context(self, batch, tokens, flash, batch * tokens, unified, True), batch)

        candidates = [make(flash, batch, unified)
                      for flash in (0, 1) for batch in (8, 16) for unified in (False, True)]
        return run(self.fastest(("embed", tokens), candidates, run), texts)

    def logits(self, tokens, out):
        ids = np.fromfile(tokens, dtype="<i4")
        self.best = None
        context = Context(self, 1, len(ids), 0)
        with open(out, "wb") as file:
            for begin in range(0, len(ids), UBATCH):
                part = ids[begin:begin + UBATCH]
                context.run([(int(token), begin + at, 0, True) for at, token in enumerate(part)])
                found = api.llama_get_logits(context.context)
                np.ctypeslib.as_array(found, (len(part), self.vocabulary)).astype("<f4").tofile(file)
        return len(ids)

    def peak(self):
        with open("/proc/self/status") as status:
            kilobytes = next(line for line in status if line.startswith("VmHWM:")).split()[1]
        return int(kilobytes) * 1024 / 1e6


@api.llama_log_callback
def silent(_level, _text, _data):
    """llama.cpp tells a lot."""


def main():
    api.llama_log_set(silent, ctypes.c_void_p(0))
    api.llama_backend_init()
    peer = Peer()
    for line in sys.stdin:
        command, *words = line.split()
        if command in ("open", "load"):
            words = line.split(maxsplit=2)[1:]
            words[1] = words[1].rstrip("\n")  # a path may contain spaces
        try:
            print(f"ok {getattr(peer, command)(*words)}", flush=True)
        except Exception as error:  # whatever it is, the other side must hear of it
            print(f"error {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()

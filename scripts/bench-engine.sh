#!/usr/bin/env bash
# Runs bench-engine with options from the environment: QUANTS, SHAPE, MODEL, ONLY, THREADS, ROUNDS, INSTRUCTIONS.
# PEER=1 runs llama.cpp beside it, from PEER_PYTHON or a virtual environment in target/peer-venv that is made when
# missing (llama-cpp-python is built from source for this processor, which takes minutes).

set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
options=()
for name in QUANTS SHAPE MODEL ONLY THREADS ROUNDS INSTRUCTIONS; do
    if [ -n "${!name:-}" ]; then options+=("--${name,,}" "${!name}"); fi
done

if [ "${PEER:-0}" != 0 ]; then
    python=${PEER_PYTHON:-target/peer-venv/bin/python}
    if [ -z "${PEER_PYTHON:-}" ] && ! "$python" -c 'import llama_cpp' 2>/dev/null; then
        python3 -m venv target/peer-venv
        CMAKE_ARGS=-DGGML_NATIVE=ON target/peer-venv/bin/pip install --no-binary llama-cpp-python \
            llama-cpp-python numpy
    fi
    options+=(--peer "$python")
fi

"$cargo" build --release -p steadytext-bench --bin bench-engine
exec target/release/bench-engine ${options[@]+"${options[@]}"}

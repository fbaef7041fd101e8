#!/usr/bin/env bash
# Runs bench-engine with options from the environment: QUANTS, SHAPE, MODEL, ONLY, THREADS, ROUNDS, INSTRUCTIONS,
# KV_CACHE_TYPE.
# PEER=1 runs llama.cpp beside it, from PEER_PYTHON or a virtual environment in target that is made when missing:
# llama-cpp-python is built from source, which takes minutes, for this processor, or with INSTRUCTIONS=avx2 without
# AVX-512, so that both sides may use the same instructions.

set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
options=()
for name in QUANTS SHAPE MODEL ONLY THREADS ROUNDS INSTRUCTIONS KV_CACHE_TYPE; do
    if [ -n "${!name:-}" ]; then options+=("--${name,,}" "${!name}"); fi
done

if [ "${PEER:-0}" != 0 ]; then
    venv=target/peer-venv cmake=-DGGML_NATIVE=ON
    if [ "${INSTRUCTIONS:-}" = avx2 ]; then
        venv=target/peer-venv-avx2
        cmake='-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON'
        cmake+=' -DLLAVA_BUILD=OFF -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TOOLS=OFF'
    fi
    python=${PEER_PYTHON:-$venv/bin/python}
    if [ -z "${PEER_PYTHON:-}" ] && ! "$python" -c 'import llama_cpp' 2>/dev/null; then
        python3 -m venv "$venv"
        CMAKE_ARGS=$cmake "$venv/bin/pip" install --no-cache-dir --no-binary llama-cpp-python llama-cpp-python numpy
    fi
    options+=(--peer "$python")
fi

"$cargo" build --release -p steadytext-bench --bin bench-engine
exec target/release/bench-engine ${options[@]+"${options[@]}"}

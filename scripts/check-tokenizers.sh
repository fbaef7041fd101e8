#!/usr/bin/env bash
# Compares the tokens of 10,000 random texts with those of llama.cpp, for each vocabulary that it is tested with; fails on differences that
# are not explained. Needs the package llama-cpp-python in PYTHON (python3).
#
#     scripts/check-tokenizers.sh [FOLDER]     FOLDER has other files *.gguf to be compared

set -euo pipefail
cd "$(dirname "$0")/.."

scripts/fetch-vocabularies.sh
"${CARGO:-cargo}" build --quiet --release -p steadytext-engine --bin steadytext-engine
"${PYTHON:-python3}" src/engine/tests/vocabularies/compare.py random target/release/steadytext-engine "${1:-target/vocabularies}"
"${PYTHON:-python3}" src/engine/tests/vocabularies/compare.py patterns target/release/steadytext-engine target/vocabularies

#!/usr/bin/env bash
# Fetches the vocabularies with which llama.cpp tests its tokenizers (75 MB), into target/vocabularies, unless they are there:
# the files models/ggml-vocab-* of the source distribution llama-cpp-python, as PyPI carries it (70 MB). Needs Python 3 with pip.

set -euo pipefail
cd "$(dirname "$0")/.."

directory=target/vocabularies
[ ! -f "$directory/ggml-vocab-gpt-2.gguf.out" ] || exit 0

mkdir -p target
new=$(mktemp -d target/vocabularies.XXXXXX)
trap 'rm -rf "$new"' EXIT
cat >"$new/requirements.txt" <<'EOF'
llama-cpp-python==0.3.36 --hash=sha256:832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
EOF
# Nothing of it is built; pip wants to know its metadata all the same.
python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
    --require-hashes --dest "$new" --requirement "$new/requirements.txt"
tar -xzf "$new"/llama_cpp_python-*.tar.gz -C "$new" --wildcards --strip-components=4 '*/vendor/llama.cpp/models/ggml-vocab-*'
rm "$new"/llama_cpp_python-*.tar.gz "$new/requirements.txt"
rm -rf "$directory"
mv "$new" "$directory"

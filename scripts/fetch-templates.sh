#!/usr/bin/env bash
# Fetches the chat templates that the engine's tests render, those of llama.cpp as the source distribution of
# llama-cpp-python carries them, into target/templates, unless they are there. LLAMA_CPP_PYTHON=FILE takes them out of an
# archive that was fetched before. Needs Python 3 with pip.

set -euo pipefail
cd "$(dirname "$0")/.."

directory=target/templates
version=0.3.36
[ ! -f "$directory/Qwen-Qwen3-0.6B.jinja" ] || exit 0

mkdir -p target
new=$(mktemp -d target/templates.XXXXXX)
trap 'rm -rf "$new"' EXIT
archive=${LLAMA_CPP_PYTHON:-}
if [ -z "$archive" ]; then
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --dest "$new" \
        "llama-cpp-python==$version"
    archive=$(echo "$new"/llama_cpp_python-*.tar.gz)
fi
mkdir "$new/templates"
tar --extract --gzip --file "$archive" --directory "$new/templates" --strip-components 5 --wildcards \
    '*/vendor/llama.cpp/models/templates/*.jinja'
rm -rf "$directory"
mv "$new/templates" "$directory"

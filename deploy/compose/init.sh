#!/bin/bash
# Runs once, when the server's data directory is made: the extension, a role for workers elsewhere and one for the exporter.
set -euo pipefail

psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    -v worker="$(cat /run/secrets/worker)" -v monitor="$(cat /run/secrets/monitor)" <<'END'
create extension pg_steadytext cascade;
create role steadytext_elsewhere login password :'worker' in role steadytext_worker;
create role steadytext_monitor login password :'monitor' in role pg_monitor;
END

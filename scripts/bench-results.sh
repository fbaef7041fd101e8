#!/usr/bin/env bash
# Prints a page for bench/results from files of bench/out: date, machine, and a table of engine, llama.cpp and ratio.
# usage: scripts/bench-results.sh [FILE.tsv…] > bench/results/YYYY-MM-DD-MACHINE.md

set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -eq 0 ]; then set -- bench/out/*.tsv; fi
processor=$(sed -nE 's/^model name[^:]*: *//p' /proc/cpuinfo | sed -n 1p)
flags=$(grep -m 1 '^flags' /proc/cpuinfo | grep -oE '\b(avx2|avx512_vnni|avx_vnni)\b' | sort -u | paste -sd ' ')
memory=$(awk '/^MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo)
echo "# $(date +%Y-%m-%d), ${processor:-$(uname -m)}"
echo
echo "$(nproc) cores, $flags, $memory GiB of memory, $(uname -sr). Medians; ratios are medians of neighbouring runs."
echo
echo "| metric | value | llama.cpp | ratio | unit |"
echo "|---|---|---|---|---|"
awk -F '\t' '
    $1 ~ /^peer\./ { peer[substr($1, 6)] = $2; next }
    $1 ~ /^ratio\./ { ratio[substr($1, 7)] = $2; next }
    { names[++count] = $1; value[$1] = $2; unit[$1] = $3 }
    END {
        for (i = 1; i <= count; i++) {
            name = names[i]
            printf "| %s | %s | %s | %s | %s |\n", name, value[name], peer[name], ratio[name], unit[name]
        }
    }' "$@"

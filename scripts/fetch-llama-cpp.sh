#!/usr/bin/env bash
# Fetches what llama.cpp tests its tokenizers and chat templates with, as the source distribution of llama-cpp-python carries it
# on PyPI (70 MB): its vocabularies into target/vocabularies, its templates into target/templates, unless they are there.
# LLAMA_CPP_PYTHON=FILE takes them out of an archive that was fetched before. Needs Python 3. The archive is downloaded as a file:
# pip would build what the package is built with first.

set -euo pipefail
cd "$(dirname "$0")/.."

archive_name=llama_cpp_python-0.3.36.tar.gz
sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
if [ -f target/vocabularies/ggml-vocab-gpt-2.gguf.out ] && [ -f target/templates/Qwen-Qwen3-0.6B.jinja ]; then
    exit 0
fi

mkdir -p target
new=$(mktemp -d target/llama-cpp.XXXXXX)
trap 'rm -rf "$new"' EXIT
archive=${LLAMA_CPP_PYTHON:-$new/$archive_name}
if [ -z "${LLAMA_CPP_PYTHON:-}" ]; then
    # The index and the certificates that pip would use.
    python3 - "$archive_name" "$archive" <<'EOF'
import os, re, shutil, ssl, sys, urllib.parse, urllib.request

name, target = sys.argv[1:]
index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/llama-cpp-python/"
context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT"))
page = urllib.request.urlopen(index, context=context, timeout=60).read().decode()
links = re.findall(r'href="([^"]*/' + re.escape(name) + r')(?:#[^"]*)?"', page)
if not links:
    sys.exit(f"fetch-llama-cpp: {index} does not offer {name}")
with urllib.request.urlopen(urllib.parse.urljoin(index, links[0]), context=context, timeout=60) as source:
    with open(target, "wb") as file:
        shutil.copyfileobj(source, file)
EOF
fi
echo "$sha256  $archive" | sha256sum --check --quiet
mkdir "$new/vocabularies" "$new/templates"
tar -xzf "$archive" -C "$new/vocabularies" --strip-components=4 --wildcards '*/vendor/llama.cpp/models/ggml-vocab-*'
tar -xzf "$archive" -C "$new/templates" --strip-components=5 --wildcards '*/vendor/llama.cpp/models/templates/*.jinja'
rm -rf target/vocabularies target/templates
mv "$new/vocabularies" "$new/templates" target

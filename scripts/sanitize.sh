#!/usr/bin/env bash
# Runs the engine's unit tests and the mutated files under AddressSanitizer: the kernels of every instruction set that
# this processor has, the readers of files, mappings, the socket. Builds everything anew, into target/sanitize.
#
# The stable toolchain brings the sanitizer's runtime; only its switch is unstable, hence RUSTC_BOOTSTRAP.

set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
host=$(rustc --version --verbose | sed -n 's/^host: //p')
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=address"
# The tests of lost mappings raise SIGBUS on purpose, and those of readers leak files, to have them for good.
export ASAN_OPTIONS="${ASAN_OPTIONS:-}:allow_user_segv_handler=1:handle_sigbus=0:detect_stack_use_after_return=0"
# One test asks for more than there is, on purpose.
export ASAN_OPTIONS="$ASAN_OPTIONS:detect_leaks=0:allocator_may_return_null=1"

test() {
    "$cargo" test --release --target "$host" --target-dir target/sanitize -p steadytext-engine "$@"
}
test --lib -- "$@"
test --test engine -- gguf_mutants:: lost_files::

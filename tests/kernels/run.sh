#!/bin/sh
# All gates of the GPU kernels that need no GPU; see gates.py for what they are. Needs python3 with venv, g++ 11 or
# newer and, the first time, a package index. Arguments go to gates.py.
set -eu
cd "$(dirname "$0")/../.."
tools=.tools/kernels
if ! [ -f "$tools/ready" ] || ! cmp -s tests/kernels/requirements.txt "$tools/ready"; then
    python3 -m venv "$tools/venv"
    "$tools/venv/bin/pip" download -q --disable-pip-version-check --no-deps --require-hashes \
        -r tests/kernels/requirements.txt -d "$tools/wheels"
    for wheel in "$tools"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$tools/unpacked/$(basename "$wheel" | cut -d- -f1)"; done
    chmod -R u+rx "$tools/unpacked"
    cp tests/kernels/requirements.txt "$tools/ready"
fi
exec python3 tests/kernels/gates.py "$@"

#!/bin/sh
# All gates of the GPU kernels that need no GPU; see gates.py for what they are. Needs python3 with venv, g++ 11 or
# newer and, the first time, a package index. Arguments go to gates.py.
set -eu
cd "$(dirname "$0")/../.."
tools=.tools/kernels
if ! [ -f "$tools/ready" ] || ! cmp -s tests/kernels/requirements.txt "$tools/ready"; then
    [ -x "$tools/venv/bin/pip" ] || python3 -m venv "$tools/venv"
    # 200 MB, a few seconds from a near index. A wheel that is there already, with the right hash, is not fetched again.
    if ! timeout -k 5 90 "$tools/venv/bin/pip" download -q --disable-pip-version-check --no-deps --require-hashes \
        --timeout 10 --retries 1 -r tests/kernels/requirements.txt -d "$tools/wheels"; then
        echo "not ok  compilers: the package index did not give the wheels of tests/kernels/requirements.txt within 90 s;" \
            "try again, or set PIP_INDEX_URL to an index that has them"
        exit 1
    fi
    for wheel in "$tools"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$tools/unpacked/$(basename "$wheel" | cut -d- -f1)"; done
    chmod -R u+rx "$tools/unpacked"
    cp tests/kernels/requirements.txt "$tools/ready"
fi
exec python3 tests/kernels/gates.py "$@"

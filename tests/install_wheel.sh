#!/usr/bin/env bash
# Install the built wheel into a fresh environment and draw the showcase there, outside the checkout:
# what is missing from the wheel, or found only because the checkout is near, fails here.
#   usage: tests/install_wheel.sh [PYTHON]
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "==> building the wheel"
mkdir "$work/source"
# A copy, because setuptools would reuse what an earlier build left in build/.
(cd "$checkout" && tar cf - setup.cfg pyproject.toml README.md LICENSE dit_heads pipelines loras demo) |
    tar xf - -C "$work/source" --exclude __pycache__
"$python" -m venv "$work/env"
pip() { "$work/env/bin/python" -m pip --disable-pip-version-check "$@"; }
pip wheel --quiet --quiet --no-deps --wheel-dir "$work/dist" "$work/source"

echo "==> installing it into a fresh environment"
pip install --quiet --quiet --no-compile --constraint "$checkout/constraints.txt" "$work"/dist/*.whl
cd "$work"
echo "==> the showcase, outside the checkout"
HF_HUB_OFFLINE=1 "$work/env/bin/dit-heads" showcase --out "$work/showcase.png"
test -s "$work/showcase.png"
echo "==> the installed wheel works"

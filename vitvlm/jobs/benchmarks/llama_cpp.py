"""llama.cpp's server as a peer: `python -m vitvlm.jobs.benchmarks.llama_cpp model.gguf`, requests on standard input.

A request is one line of JSON, {"prompts": [[1, 2], …], "count": 5}, and its answer a line "done", when so many tokens
have been written after each prompt, all prompts at once. It runs in a process of its own: its threads wait by spinning.
"""

import concurrent.futures
import json
import os
import sys

SLOTS, ROOM = 8, 1024  # prompts at once, and tokens of each


def main() -> None:
    from xllamacpp import CommonParams, Server

    params = CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx, params.n_parallel, params.warmup = SLOTS * ROOM, SLOTS, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count() or 1
    server = Server(params)

    def complete(prompt: list[int], count: int) -> None:
        wishes = {"temperature": 0, "ignore_eos": True, "cache_prompt": False, "stream": False}
        found = server.handle_completions({"prompt": prompt, "n_predict": count, **wishes})
        found = found if isinstance(found, dict) else json.loads(found)
        if found["timings"]["predicted_n"] != count or found["timings"]["prompt_n"] != len(prompt):
            raise RuntimeError(f"llama.cpp wrote {found['timings']}, not {count} tokens after {len(prompt)}")

    print("done loading", flush=True)
    with concurrent.futures.ThreadPoolExecutor(SLOTS) as threads:
        for line in sys.stdin:
            request = json.loads(line)
            list(threads.map(complete, request["prompts"], [request["count"]] * len(request["prompts"])))
            print("done", flush=True)


if __name__ == "__main__":
    main()

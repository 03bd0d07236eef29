#!/usr/bin/env python3
"""Measures Weldment from outside, beside llama.cpp where it is installed, and prints one table.

Pairs are interleaved (ours, theirs, ours, theirs, ...) and the ratio is the median over pairs, so that a machine that slows
down slows both. The bandwidth probe runs in the same process list. Needs nothing but Python's standard library; llama.cpp is
measured through llama-cpp-python in the interpreter named by --llama-python (default: this one).

Usage: bench.py --bin-dir target/release --model MODEL.gguf [--pairs 7] [--threads 2] [--llama-python PYTHON] [--only decode,prefill,...]
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

SECTIONS = ["decode", "prefill", "compile", "start", "size", "depth", "determinism"]
DECODE = 128
PREFILL = 512

# The peer in its own process, one JSON line a request: {"decode": n} or {"prefill": n} -> seconds.
PEER = r"""
import ctypes, json, sys, time
import llama_cpp as L

@L.llama_log_callback
def quiet(level, text, user):
    pass

L.llama_log_set(quiet, ctypes.c_void_p(0)); L.llama_backend_init()
started = time.perf_counter()
mp = L.llama_model_default_params(); mp.n_gpu_layers = 0
model = L.llama_model_load_from_file(sys.argv[1].encode(), mp)
cp = L.llama_context_default_params(); cp.n_ctx, cp.n_batch = 1024, 512; cp.n_threads = cp.n_threads_batch = int(sys.argv[2])
context = L.llama_init_from_model(model, cp)

def decode(tokens):
    assert L.llama_decode(context, L.llama_batch_get_one(tokens, len(tokens))) == 0

one = (L.llama_token * 1)(5)
decode(one); L.llama_synchronize(context)
print(json.dumps({"first_token": time.perf_counter() - started}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    L.llama_memory_clear(L.llama_get_memory(context), True)
    if "decode" in request:
        decode(one); t = time.perf_counter()
        for _ in range(request["decode"]):
            decode(one)
    else:
        n = request["prefill"]
        many = (L.llama_token * n)(*[(i * 37) % 40000 + 100 for i in range(n)])
        t = time.perf_counter(); decode(many)
    L.llama_synchronize(context)
    print(json.dumps({"seconds": time.perf_counter() - t}), flush=True)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin-dir", required=True, type=pathlib.Path)
    parser.add_argument("--model", required=True, type=pathlib.Path)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--only", default=",".join(SECTIONS))
    args = parser.parse_args()
    wanted = args.only.split(",")
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section {unknown[0]}; {', '.join(SECTIONS)} are accepted")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, pathlib.Path(folder))
        try:
            for name in wanted:
                getattr(bench, name)()
        finally:
            bench.close()
        bench.table()


class Bench:
    def __init__(self, args, folder):
        self.args, self.folder, self.rows = args, folder, []
        bins = args.bin_dir.resolve()
        self.weldment, self.runtime = bins / "weldment", bins / "weldment-rt"
        self.model = args.model.resolve()
        self.environment = dict(os.environ, XDG_CACHE_HOME=str(folder / "cache"))
        self.artifact = folder / "model.weld"
        note("compiling and packing")
        self.run(self.weldment, "compile", self.model, "-o", self.artifact)
        self.one = self.tokens("one.json", [5])
        self.many = self.tokens("many.json", [(i * 37) % 40000 + 100 for i in range(PREFILL)])
        self.generate(self.one, 1)
        self.peer = self.start_peer()
        self.bandwidth = None

    def tokens(self, name, ids):
        path = self.folder / name
        path.write_text(json.dumps(ids))
        return path

    def run(self, *command, **options):
        options.setdefault("env", self.environment)
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
        if done.returncode != 0:
            sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
        return done.stdout

    def timed(self, *command, **options):
        start = time.perf_counter()
        out = self.run(*command, **options)
        return time.perf_counter() - start, out

    def generate(self, tokens, count):
        """Seconds from exec to exit, and the ids."""
        command = [self.runtime, "run", self.artifact, "--tokens", tokens, "--max-tokens", count, "--ignore-eos"]
        command += ["--threads", self.args.threads, "--weights-file", self.model]
        return self.timed(*command)

    def start_peer(self):
        command = [self.args.llama_python, "-c", PEER, str(self.model), str(self.args.threads)]
        peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        hello = peer.stdout.readline()
        if not hello:
            note(f"llama.cpp is not measured: {self.args.llama_python} has no llama_cpp (pip install llama-cpp-python)")
            return None
        self.peer_first_token = json.loads(hello)["first_token"]
        return peer

    def ask(self, **request):
        self.peer.stdin.write(json.dumps(request) + "\n")
        self.peer.stdin.flush()
        return json.loads(self.peer.stdout.readline())["seconds"]

    def close(self):
        if self.peer:
            self.peer.stdin.close()
            self.peer.wait()

    def pairs(self, name, count, ours, theirs, bar):
        """`count` tokens; `ours` and `theirs` give seconds."""
        mine, other, ratios = [], [], []
        for i in range(self.args.pairs):
            note(f"{name}: pair {i + 1} of {self.args.pairs}")
            mine.append(count / ours())
            if self.peer:
                other.append(count / theirs())
                ratios.append(mine[-1] / other[-1])
        peer = f"{statistics.median(other):.0f} tok/s" if other else "not installed"
        ratio = f"{statistics.median(ratios):.2f}x" if ratios else ""
        self.row(name, f"{statistics.median(mine):.0f} tok/s", peer, ratio, bar)

    def decode(self):
        def ours():
            first, _ = self.generate(self.one, 1)
            whole, out = self.generate(self.one, DECODE + 1)
            ids = out.split()
            if len(ids) != DECODE + 1:
                sys.exit(f"{len(ids)} ids came back, {DECODE + 1} were asked for: {out}")
            return max(whole - first, 1e-9)

        self.pairs(f"decode {DECODE}", DECODE, ours, lambda: self.ask(decode=DECODE), ">= 1.0x")

    def prefill(self):
        def ours():
            short, _ = self.generate(self.one, 1)
            whole, _ = self.generate(self.many, 1)
            return max(whole - short, 1e-9)

        self.pairs(f"prefill {PREFILL}", PREFILL, ours, lambda: self.ask(prefill=PREFILL), ">= 1.0x")
        out = self.run(self.runtime, "bench", self.artifact, "--threads", self.args.threads, "--weights-file", self.model, "--json")
        found = json.loads(out)
        self.row("read bandwidth", f"{found['read_bandwidth_gbps']:.1f} GB/s", "", "", "")
        self.row("steps in process", f"{found['decode_tokens_per_second']:.0f} tok/s at context 1024", "", "", "")

    def compile(self):
        times, answers = [], []
        for i in range(3):
            output = self.folder / f"cold{i}.weld"
            cache = dict(self.environment, XDG_CACHE_HOME=str(self.folder / f"cold{i}"))
            times.append(self.timed(self.weldment, "compile", self.model, "-o", output, env=cache)[0])
            cache = dict(self.environment, XDG_CACHE_HOME=str(self.folder / f"answer{i}"))
            command = [self.weldment, "run", self.model, "--tokens", self.one, "--max-tokens", 1, "--ignore-eos"]
            answers.append(self.timed(*command, env=cache)[0])
        self.row("compile, cold", f"{statistics.median(times):.2f} s", "XLA 2.46 s, IREE 5.2 s", "", "<= 2.5 s")
        self.row("compile and first answer", f"{statistics.median(answers):.2f} s", "", "", "<= 3.5 s")

    def start(self):
        times = [self.generate(self.one, 1)[0] for _ in range(15)]
        peer = f"{self.peer_first_token * 1e3:.0f} ms from load" if self.peer else ""
        self.row("exec to first token", f"{statistics.median(times) * 1e3:.1f} ms", peer, "", "<= 40 ms")

    def size(self):
        stripped = self.folder / "weldment-rt"
        shutil.copy(self.runtime, stripped)
        if shutil.which("strip"):
            self.run("strip", stripped)
        dist = self.args.bin_dir.resolve().parent / "dist" / "weldment-rt"
        note = "" if dist.exists() else " (cargo build --profile dist -p weldment-runtime makes the small one)"
        size = (dist if dist.exists() else stripped).stat().st_size
        self.row("weldment-rt, stripped", f"{size / 1e6:.2f} MB{note}", "iree-run-module 1.93 MB", "", "<= 2 MB")

    def depth(self):
        times = {}
        for layers in (15, 60):
            config = {
                "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536,
                "num_hidden_layers": layers, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
                "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
                "tie_word_embeddings": True, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
            }
            folder = self.folder / f"depth{layers}"
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(config))
            command = [self.weldment, "compile", folder, "-o", folder / "m.weld", "--weights", "random:1"]
            times[layers] = statistics.median(self.timed(*command)[0] for _ in range(3))
        self.row("compile, 60 layers over 15", f"{times[60]:.2f} s / {times[15]:.2f} s", "", f"{times[60] / times[15]:.2f}x", "<= 1.5x")

    def determinism(self):
        made = []
        for i, threads in enumerate((1, 2)):
            home = self.folder / f"home{i}"
            home.mkdir()
            environment = dict(self.environment, HOME=str(home), XDG_CACHE_HOME=str(home / "cache"))
            command = [self.weldment, "compile", self.model, "-o", home / "m.weld", "--threads", threads]
            self.run(*command, env=environment, cwd=home)
            made.append((home / "m.weld").read_bytes())
        self.row("two homes, 1 and 2 threads", "identical" if made[0] == made[1] else "DIFFERENT", "", "", "identical")

    def row(self, *cells):
        self.rows.append(cells)

    def table(self):
        head = ("measure", "weldment", "peer", "ratio", "bar")
        widths = [max(len(row[i]) for row in [head, *self.rows]) for i in range(len(head))]
        for row in [head, tuple("-" * w for w in widths), *self.rows]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def note(text):
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""All-reduce + add + RMSNorm inside captured graphs, beside NCCL and PyTorch's symmetric memory in the same run.

A graph is a chain: x = shard of an embedding (each rank holds other rows), then ROUNDS times
    norm, residual = rms_norm(all_reduce(x) + residual); x = norm
so that a round costs one collective. What one round takes is (time of LONG rounds - time of SHORT rounds) / (LONG - SHORT), of the
slowest rank, which leaves out everything that is not a round.

    collectives.py graphs DIR [--world 2] [--hidden 7168] [--dtype bf16]
        writes short.wir and long.wir; compile each: weldment compile short.wir --weights random:1 --target sm_90a -o short.weld
    collectives.py run DIR --runtime weldment-rt [--peer nccl_ar_rms.py] [--tokens 1,4,...] [--pairs 3]
        on a machine with that many GPUs: ours and the peer in turn, medians, ratios
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

SHORT, LONG = 4, 44
ROWS, LOGITS = 64, 16


def graph(rounds, world, hidden, dtype, most):
    lines = [f"graph @step (T: 1..{most}, B: 1..{most}, P: 1..64, R: 1..{most}, N: 1..{64 * most}, C: 1..1024) {{"]
    put = lambda name, text, path: lines.append(f'  %{name} = {text} @ "{path}"')
    put("tokens", 'input {name: "tokens", dtype: i32, shape: [T]}', "tokens")
    put("rows", 'input {name: "logit_rows", dtype: i32, shape: [R]}', "logit_rows")
    for name, rows in [("embed", ROWS * world), ("residual", ROWS)]:
        put(f"{name}_w", f'weight {{name: "{name}.weight", dtype: {dtype}, shape: [{rows}, {hidden}]}}', name)
    put("embed_part", f"shard(%embed_w) {{axis: 0, parts: {world}, replicas: 1}}", "embed")
    put("x0", f"gather(%embed_part, %tokens) {{dtype: {dtype}}}", "embed")
    put("r0", f"gather(%residual_w, %tokens) {{dtype: {dtype}}}", "residual")
    for i in range(rounds):
        at = f"layers.{i}"
        put(f"w{i}", f'weight {{name: "{at}.norm.weight", dtype: {dtype}, shape: [{hidden}]}}', f"{at}.norm")
        put(f"a{i}", f"all_reduce(%x{i}) {{world: {world}}}", at)
        put(f"r{i + 1}", f"add(%a{i}, %r{i})", at)
        put(f"x{i + 1}", f"rms_norm(%r{i + 1}, %w{i}) {{eps: 1e-5, dtype: {dtype}}}", f"{at}.norm")
    put("last", f"gather(%x{rounds}, %rows) {{dtype: {dtype}}}", "head.rows")
    put("head_w", f'weight {{name: "head.weight", dtype: {dtype}, shape: [{LOGITS}, {hidden}]}}', "head")
    put("logits", "matmul(%last, %head_w) {dtype: f32}", "head")
    lines += ['  output result "logits" = %logits', "}"]
    return "\n".join(lines) + "\n"


def graphs(args):
    args.dir.mkdir(parents=True, exist_ok=True)
    for name, rounds in [("short", SHORT), ("long", LONG)]:
        (args.dir / f"{name}.wir").write_text(graph(rounds, args.world, args.hidden, args.dtype, args.most))


def step_us(args, name, tokens):
    command = [args.runtime, "bench", str(args.dir / f"{name}.weld"), "--batch", str(tokens), "--device", args.device, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
    found = json.loads(done.stdout)
    return 1e3 * found.get("device_ms_per_step", found["ms_per_step"])


def ours(args, tokens):
    return (step_us(args, "long", tokens) - step_us(args, "short", tokens)) / (LONG - SHORT)


def peer(args, tokens):
    command = ["torchrun", f"--nproc_per_node={args.world}", args.peer, "--hidden", str(args.hidden), "--tokens", ",".join(map(str, tokens))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")
    return {line["tokens"]: line for line in lines}


def run(args):
    tokens = [int(t) for t in args.tokens.split(",")]
    mine, theirs = {t: [] for t in tokens}, {t: [] for t in tokens}
    for _ in range(args.pairs):
        for t in tokens:
            mine[t].append(ours(args, t))
        if args.peer:
            for t, line in peer(args, tokens).items():
                theirs[t].append((line["ar_plus_norm_us"], line["symm_plus_norm_us"]))
    print(f"{'tokens':>6} {'fused us':>9} {'nccl+norm':>10} {'symm+norm':>10} {'ratio':>6} {'ratio':>6}")
    for t in tokens:
        us = statistics.median(mine[t])
        peers = [statistics.median(column) for column in zip(*theirs[t])] if theirs[t] else []
        columns = "".join(f" {p:10.2f}" for p in peers) + "".join(f" {p / us:6.2f}" for p in peers)
        print(f"{t:6} {us:9.2f}{columns}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["graphs", "run"])
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--most", type=int, default=1024, help="tokens that the graphs take at most")
    parser.add_argument("--runtime", default="weldment-rt")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--peer", help="shared peers' nccl_ar_rms.py")
    parser.add_argument("--tokens", default="1,4,8,16,32,64,256,1024")
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    {"graphs": graphs, "run": run}[args.action](args)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""All-reduce + add + RMSNorm inside captured graphs: its forms beside NCCL and PyTorch's symmetric memory, and its sums beside f64.

A timed graph is a chain: x = shard of an embedding (each rank holds other rows), then ROUNDS times
    norm, residual = rms_norm(all_reduce(x) + residual); x = norm
so that a round costs one collective. What one round takes is (time of LONG rounds - time of SHORT rounds) / (LONG - SHORT), of the
slowest rank, which leaves out everything that is not a round. A checked graph multiplies x by weights of the rank's own in between,
so that ranks' sums differ in every round.

    collectives.py compile DIR --weldment weldment [--world 2] [--hidden 7168] [--target sm_90a]
        writes graphs and artifacts of random weights: DIR/FORM/*.weld, FORM one of auto, one, two; DIR/parts.weld for the host
    collectives.py time DIR --runtime weldment-rt [--peer nccl_ar_rms.py] [--tokens 1,4,...] [--pairs 3]
        on a machine with that many GPUs: the forms and the peer in turn, medians, what the automatic choice costs
    collectives.py check DIR --runtime weldment-rt [--tokens ...] [--repeat 10000]
        there: each form's sums and norms beside f64 (first replay, cold), and replays that must all be the same bits on all ranks
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

SHORT, LONG, CHECKED = 4, 44, 4
ROWS, LOGITS = 64, 16
FORMS = {"auto": [], "one": ["--set", "all_reduce=1"], "two": ["--set", "all_reduce=2"]}


class Graph:
    """Text of a graph whose weights are random, with what all of them begin with."""

    def __init__(self, args):
        self.args = args
        most = args.most
        counts = f"T: 1..{most} tokens, B: 1..{most} sequences, R: 1..{most} logit_rows, C: 1..1024 context"
        self.lines = [f"graph @step ({counts}, P: 1..64 blocks(N), N: 1..{64 * most} pool(16)) {{"]
        self.put("tokens", 'input {name: "tokens", dtype: i32, shape: [T], role: tokens}', "tokens")
        self.put("rows", 'input {name: "logit_rows", dtype: i32, shape: [R], role: logit_rows}', "logit_rows")
        self.weight("embed", ROWS * args.world)
        self.weight("residual", ROWS)
        self.gather("r0", "residual")

    def put(self, name, text, path):
        self.lines.append(f'  %{name} = {text} @ "{path}"')

    def weight(self, name, *rows):
        shape = ", ".join(str(n) for n in [*rows, self.args.hidden])
        self.put(name, f'weight {{name: "{name}.weight", dtype: {self.args.dtype}, shape: [{shape}]}}', name)

    def gather(self, name, table, ids="tokens", dtype=None):
        self.put(name, f"gather(%{table}, %{ids}) {{dtype: {dtype or self.args.dtype}}}", name)

    def finish(self, logits):
        self.lines += [f'  output result "logits" = %{logits}', "}"]
        return "\n".join(self.lines) + "\n"


def ranks(args, rounds, mixed):
    """`rounds` collectives; `mixed`: between products by weights of each rank, and with the last norm and sum as logits."""
    g = Graph(args)
    g.put("embed_part", f"shard(%embed) {{axis: 0, parts: {args.world}, replicas: 1}}", "embed")
    g.gather("x0", "embed_part")
    for i in range(rounds):
        at, x = f"layers.{i}", f"x{i}"
        if mixed:
            g.weight(f"mix{i}", args.world)
            g.put(f"own{i}", f"shard(%mix{i}) {{axis: 0, parts: {args.world}, replicas: 1}}", at)
            g.put(f"m{i}", f"mul(%x{i}, %own{i})", at)
            x = f"m{i}"
        g.weight(f"norm{i}")
        g.put(f"a{i}", f"all_reduce(%{x}) {{world: {args.world}}}", at)
        g.put(f"r{i + 1}", f"add(%a{i}, %r{i})", at)
        g.put(f"x{i + 1}", f"rms_norm(%r{i + 1}, %norm{i}) {{eps: 1e-5, dtype: {args.dtype}}}", at)
    if not mixed:
        g.gather("last", f"x{rounds}", "rows")
        g.weight("head", LOGITS)
        g.put("logits", "matmul(%last, %head) {dtype: f32}", "head")
        return g.finish("logits")
    return head(g, [f"x{rounds}", f"r{rounds}"])


def parts(args):
    """What the ranks of a checked graph of one round sum, rank by rank, then the residual and the norm's weights; for one host."""
    g = Graph(args)
    g.weight("mix0", args.world)
    g.weight("norm0")
    for rank in range(args.world):
        g.put(f"e{rank}", f"slice(%embed) {{axis: 0, start: {rank * ROWS}, end: {(rank + 1) * ROWS}}}", "embed")
        g.gather(f"x{rank}", f"e{rank}")
        g.put(f"v{rank}", f"slice(%mix0) {{axis: 0, start: {rank}, end: {rank + 1}}}", "mix0")
        g.put(f"m{rank}", f"mul(%x{rank}, %v{rank})", "layers.0")
    g.put("zero", f"constant() {{value: 0.0, dtype: {args.dtype}}}", "zero")
    g.put("zeros", "mul(%r0, %zero)", "zero")
    g.put("weights", "add(%zeros, %norm0)", "norm0")
    return head(g, [*(f"m{rank}" for rank in range(args.world)), "r0", "weights"])


def head(g, values):
    g.put("all", f"concat({', '.join('%' + v for v in values)}) {{axis: 1}}", "head")
    g.put("wide", "cast(%all) {dtype: f32}", "head")
    g.gather("logits", "wide", "rows", "f32")
    return g.finish("logits")


def compile_all(args):
    texts = {
        "short": ranks(args, SHORT, False),
        "long": ranks(args, LONG, False),
        "check": ranks(args, 1, True),
        "repeat": ranks(args, CHECKED, True),
        "parts": parts(args),
    }
    args.dir.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (args.dir / f"{name}.wir").write_text(text)
    (args.dir / "about.json").write_text(json.dumps({"world": args.world, "hidden": args.hidden, "dtype": args.dtype}) + "\n")
    command = lambda name, out, rest: [args.weldment, "compile", f"{args.dir / name}.wir", "--weights", "random:1", "-o", str(out), *rest]
    call(command("parts", args.dir / "parts.weld", ["--target", "x86-64-v3"]), 600)
    for form, options in FORMS.items():
        if form == "two" and args.hidden % (8 * args.world) != 0:
            continue
        (args.dir / form).mkdir(exist_ok=True)
        for name in ["short", "long", "check", "repeat"]:
            call(command(name, args.dir / form / f"{name}.weld", ["--target", args.target, *options]), 600)


def call(command, timeout):
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def step_us(args, form, name):
    """Microseconds of a step of each number of tokens."""
    artifact, tokens = args.dir / form / f"{name}.weld", ",".join(map(str, args.tokens))
    command = [args.runtime, "bench", artifact, "--batch", tokens, "--seconds", args.seconds, "--prefill", "1"]
    found = [json.loads(line) for line in call([*map(str, command), "--device", args.device, "--json"], 300).splitlines()]
    return [1e3 * line.get("device_ms_per_step", line["ms_per_step"]) for line in found]


def round_us(args, form):
    long, short = step_us(args, form, "long"), step_us(args, form, "short")
    return [(a - b) / (LONG - SHORT) for a, b in zip(long, short)]


def peer_us(args, world, hidden):
    tokens = ",".join(map(str, args.tokens))
    out = call(["torchrun", f"--nproc_per_node={world}", args.peer, "--hidden", str(hidden), "--tokens", tokens], 300)
    found = {line["tokens"]: line for line in (json.loads(line) for line in out.splitlines() if line.startswith("{"))}
    return [[found[t][key] for t in args.tokens] for key in ["ar_plus_norm_us", "symm_plus_norm_us"]]


def time_all(args):
    about = json.loads((args.dir / "about.json").read_text())
    forms = [form for form in FORMS if (args.dir / form / "long.weld").exists()]
    columns = {name: [] for name in [*forms, *(["nccl+norm", "symm+norm"] if args.peer else [])]}
    for _ in range(args.pairs):
        for form in forms:
            columns[form].append(round_us(args, form))
        if args.peer:
            for name, us in zip(["nccl+norm", "symm+norm"], peer_us(args, about["world"], about["hidden"])):
                columns[name].append(us)
    medians = {name: [statistics.median(us) for us in zip(*runs)] for name, runs in columns.items()}
    print(f"{about['world']} ranks, hidden {about['hidden']} {about['dtype']}, microseconds, medians of {args.pairs}")
    # What the choice loses to the better form; and how many times faster than NCCL the choice is.
    extra = ["lost"] * ("one" in medians and "two" in medians) + ["x"] * ("nccl+norm" in medians)
    print("".join(f"{name:>10}" for name in ["tokens", *medians, *extra]))
    for i, t in enumerate(args.tokens):
        row = {name: us[i] for name, us in medians.items()}
        more = [row["auto"] - min(row["one"], row["two"])] if "lost" in extra else []
        more += [row["nccl+norm"] / row["auto"]] if "x" in extra else []
        print(f"{t:10}" + "".join(f"{us:10.2f}" for us in [*row.values(), *more]), flush=True)


def evaluate(args, artifact, tokens, device, rest=()):
    """The logits of `tokens` tokens, [tokens, columns]."""
    from safetensors.numpy import load_file

    with tempfile.TemporaryDirectory() as dir:
        ids, out = pathlib.Path(dir, "ids.json"), pathlib.Path(dir, "logits.safetensors")
        ids.write_text(json.dumps([i * 37 % ROWS for i in range(tokens)]))
        call([args.runtime, "eval", artifact, "--tokens", ids, "--logits", out, "--device", device, *rest], 590)
        return load_file(out)["logits"]


def check_all(args):
    import numpy as np

    about = json.loads((args.dir / "about.json").read_text())
    world, hidden = about["world"], about["hidden"]
    if about["dtype"] != "bf16":
        sys.exit("check measures steps of bf16: compile DIR with --dtype bf16")

    def bf16(x):
        """Rounded to the nearest, ties to even: its bits in order, so that neighbours differ by 1."""
        bits = np.asarray(x, dtype=np.float32).view(np.uint32).astype(np.int64)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(bits & 0x8000, -(bits & 0x7FFF), bits)

    print("  form  tokens  sum: bits of f32 in rank order  sum, norm: bf16 steps from f64  replays")
    failed = False
    for tokens in args.tokens:
        p = evaluate(args, args.dir / "parts.weld", tokens, "host").reshape(tokens, world + 2, hidden)
        ordered = np.zeros_like(p[:, 0])
        for value in np.moveaxis(p[:, : world + 1], 1, 0):
            ordered = ordered + value
        exact = p[:, : world + 1].astype(np.float64).sum(axis=1)
        normed = exact / np.sqrt((exact**2).mean(axis=-1, keepdims=True) + 1e-5) * p[:, world + 1]
        for form in FORMS:
            artifact = args.dir / form / "check.weld"
            if not artifact.exists():
                continue
            found = evaluate(args, artifact, tokens, args.device)
            norm, total = found[:, :hidden], found[:, hidden:]
            same = bool((bf16(total) == bf16(ordered)).all())
            steps = [int(np.abs(bf16(a) - bf16(b)).max()) for a, b in [(total, exact), (norm, normed)]]
            evaluate(args, args.dir / form / "repeat.weld", tokens, args.device, ["--repeat", str(args.repeat)])
            print(f"{form:>6}{tokens:8}  {'all' if same else 'NOT ALL':<30}  {steps[0]}, {steps[1]:<28}  {args.repeat} the same", flush=True)
            failed |= not same or max(steps) > 2
    sys.exit(failed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = {"compile": compile_all, "time": time_all, "check": check_all}
    parser.add_argument("action", choices=list(actions))
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--target", default="sm_90a")
    parser.add_argument("--most", type=int, default=1024, help="tokens that the graphs take at most")
    parser.add_argument("--weldment", default="weldment")
    parser.add_argument("--runtime", default="weldment-rt")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--peer", help="shared peers' nccl_ar_rms.py")
    parser.add_argument("--tokens", default="1,2,4,8,16,32,64,128,256,512,1024", type=lambda s: [int(t) for t in s.split(",")])
    parser.add_argument("--pairs", type=int, default=3, help="turns that all forms and the peer take")
    parser.add_argument("--seconds", default="0.3", help="of each measurement")
    parser.add_argument("--repeat", type=int, default=10000, help="replays of a checked graph")
    args = parser.parse_args()
    actions[args.action](args)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Runs launches of AMD code objects on the CPU, in the CDNA emulator of a tinygrad source checkout.

Started by `cargo run -p weldment-tests --bin emulate` (`make emulate`); not meant for hands. Takes job files, writes each
job's buffers back where they were and one JSON line a job to stdout:

    {"job": FILE, "status": "done" | "refused" | "failed", "reason": ...}

A job is JSON: `object` (path), `target` (gfx942, ...), `buffers` (list of {"path", "bytes"}; a file holds the buffer and is
rewritten), `launches` (list of {"kernel", "grid", "block", "args": [[buffer, offset], ...]}; every argument is a pointer).
Each buffer lies between two guards whose bytes must still be as they were after every launch. Guards are all ones, which is
NaN in every float format, so that a value read from one shows in the results.

Needs TINYGRAD_PATH, numpy, llvm-objdump-22, and a `clang` on PATH for the emulator's own code generation.
"""

import ctypes
import json
import mmap
import os
import re
import struct
import subprocess
import sys

GUARD = 4096

# What the emulator is known to get wrong or to lack: (pattern in the disassembly, the one target it holds for, reason).
NOT_EMULATED = [
    (r"v_s?mfma_\w*32x32", None, "32x32 matrix instructions leave their sums in other places than the hardware does"),
    (r"v_mfma_\w*(?:fp8|bf8)|v_cvt_\w*(?:fp8|bf8)", "gfx942", "FP8 is read as OCP, the hardware's is FNUZ"),
    (r"v_mfma_scale\S*.*\b(?:cbsz|blgp):[2-4]", None, "scaled matrix instructions of FP6 and FP4 are missing"),
    (r"v_cvt_scalef32\w*fp4", None, "conversions of FP4 are missing"),
    (
        r"v_(?!cvt_f32)\w*(?:f16|b16|i16|u16)\w*_e32 (?:v\d+, [^,\n]+, )?v(?:12[89]|1[3-9]\d|2\d\d)\b",
        None,
        "the high registers of 16-bit instructions are taken for upper halves of the low ones, as on RDNA",
    ),
    (r"_dpp (v\d+), \1\b", None, "DPP onto its own source reads lanes that it has written"),
    (r"row_(?:new)?bcast", None, "DPP row broadcasts go to the wrong lanes"),
    (r"ds_swizzle\w*", None, "ds_swizzle is missing"),
    (r"v_permlane32_swap\w*", None, "v_permlane32_swap is missing"),
    (r"global_load_lds\w*", None, "loads straight into LDS are missing"),
    (r"global_atomic_pk_add_bf16", None, "packed bf16 atomics are missing"),
    (r"s_memtime", None, "s_memtime is missing"),
    (
        r"(?:ds|global|flat|buffer|scratch)_\w+ [^/\n]*\ba(?:\d+|\[)",
        None,
        "memory instructions take accumulation registers for vector ones",
    ),
    (
        r"v_s?mfma_\w+ [^,\n]+, (?:[^,\n]+, )?a(?:\d+|\[)[^,\n]*, [^,\n]+",
        None,
        "matrix operands in accumulation registers are read from vector ones",
    ),
]


def refusal(path, target):
    """Why the object cannot be witnessed here, or None."""
    text = subprocess.run(["llvm-objdump-22", "-d", path], capture_output=True, text=True, check=True).stdout
    for pattern, only, reason in NOT_EMULATED:
        found = re.search(pattern, text) if only in (None, target) else None
        if found:
            return f"{found.group(0)}: {reason}"
    return None


class Image:
    """A code object at its addresses, with what the kernel descriptors say."""

    def __init__(self, path):
        with open(path, "rb") as file:
            data = file.read()
        if data[:4] != b"\x7fELF":
            raise ValueError("not an ELF file")
        (segments, sections), (segment_count,), (section_count,) = (
            struct.unpack_from("<QQ", data, 32),
            struct.unpack_from("<H", data, 56),
            struct.unpack_from("<H", data, 60),
        )
        loads = []
        for i in range(segment_count):
            kind, _, offset, address, _, size, memory, _ = struct.unpack_from("<IIQQQQQQ", data, segments + 56 * i)
            if kind == 1:
                loads.append((offset, address, size, memory))
        # Instructions are fetched a few words ahead.
        self.size = max(address + memory for _, address, _, memory in loads) + GUARD
        self.memory = mmap.mmap(-1, self.size)
        for offset, address, size, _ in loads:
            self.memory[address : address + size] = data[offset : offset + size]
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        headers = [struct.unpack_from("<IIQQQQIIQQ", data, sections + 64 * i) for i in range(section_count)]
        self.symbols = {}
        for _, kind, _, _, offset, size, link, _, _, entry in headers:
            if kind == 11 and entry:
                names = headers[link][4]
                for at in range(offset, offset + size, entry):
                    name, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", data, at)
                    end = data.index(b"\0", names + name)
                    self.symbols[data[names + name : end].decode()] = value

    def descriptor(self, kernel):
        """Entry address and the fields of the kernel descriptor that set up a wave."""
        at = self.symbols[kernel + ".kd"]
        lds, scratch, arguments = struct.unpack_from("<III", self.memory, at)
        (entry,) = struct.unpack_from("<q", self.memory, at + 16)
        (resources,) = struct.unpack_from("<I", self.memory, at + 52)
        properties, preload = struct.unpack_from("<HH", self.memory, at + 56)
        if preload:
            raise ValueError(f"{kernel}: preloaded arguments are not emulated")
        return self.base + at + entry, lds, scratch, arguments, resources, properties


class Buffer:
    """A buffer of a job, between guards."""

    def __init__(self, path, size):
        self.path, self.size = path, size
        self.memory = mmap.mmap(-1, size + 2 * GUARD)
        self.memory[:] = b"\xff" * len(self.memory)
        with open(path, "rb") as file:
            data = file.read()
        if len(data) != size:
            raise ValueError(f"{path}: {len(data)} bytes, {size} expected")
        self.memory[GUARD : GUARD + size] = data
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) + GUARD

    def intact(self):
        guard = b"\xff" * GUARD
        return self.memory[:GUARD] == guard and self.memory[GUARD + self.size :] == guard

    def save(self):
        with open(self.path, "wb") as file:
            file.write(self.memory[GUARD : GUARD + self.size])


def user_registers(properties, dispatch, arguments):
    """Scalar registers that the hardware fills before a wave starts, in the order of the ABI."""
    registers = []
    pair = lambda value: registers.extend([value & 0xFFFFFFFF, value >> 32])
    if properties & 1:
        registers.extend([0] * 4)
    for bit, value in [(2, dispatch), (4, 0), (8, arguments), (16, 0), (32, 0)]:
        if properties & bit:
            pair(value)
    if properties & 64:
        registers.append(0)
    return registers


class SharedMemory:
    """LDS for the emulator. It loads from LDS for lanes that are switched off as well, whose addresses may be anything; so
    what it gets reaches as far as an address can, and is backed by memory only where a launch writes."""

    WATCHED = 1 << 20

    def __init__(self, emulator):
        self.size = (1 << 32) + self.WATCHED
        lazily = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        self.memory = mmap.mmap(-1, self.size, flags=lazily)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.original, self.spec = emulator.Buffer, emulator.BufferSpec
        self.wanted = False
        emulator.Buffer = self.allocate

    def allocate(self, device, size, dtype, *rest, **options):
        """The emulator's own allocation, except the first of plain memory in a launch, which is LDS."""
        if self.wanted and not rest and not options:
            self.wanted = False
            options = {"options": self.spec(external_ptr=self.address)}
            size = self.size // 4
        return self.original(device, size, dtype, *rest, **options)

    def prepare(self):
        ctypes.memset(self.address, 0, self.WATCHED)
        self.wanted = True

    def intact(self, lds):
        """Nothing was written close behind a launch's own LDS."""
        end = (lds + 511) // 512 * 512
        return not self.wanted and not any(self.memory[end : self.WATCHED])


def launch(emulator, shared, image, buffers, step):
    entry, lds, scratch, argument_bytes, resources, properties = image.descriptor(step["kernel"])
    pointers = [buffers[buffer].address + offset for buffer, offset in step["args"]]
    if argument_bytes != 8 * len(pointers):
        raise ValueError(f"{step['kernel']}: {argument_bytes} bytes of arguments, {8 * len(pointers)} given")
    arguments = ctypes.create_string_buffer(struct.pack(f"<{len(pointers)}Q", *pointers) + bytes(GUARD))
    grid, block = ((step[key] + [1, 1])[:3] for key in ("grid", "block"))
    packet = bytearray(64)
    struct.pack_into("<3H", packet, 4, *block)
    struct.pack_into("<3I", packet, 12, *(g * b for g, b in zip(grid, block)))
    dispatch = ctypes.create_string_buffer(bytes(packet), 64)
    registers = user_registers(properties, ctypes.addressof(dispatch), ctypes.addressof(arguments))
    # The loader, not the compiler, writes the LDS size into the resource word.
    resources = resources & ~(0x1FF << 15) | (lds + 511) // 512 << 15
    shared.prepare()
    emulator.run_asm(
        entry, image.size, *grid, *block, ctypes.addressof(arguments), resources, scratch, "cdna", registers
    )
    if not shared.intact(lds):
        raise ValueError(f"{step['kernel']} wrote past its LDS")


def run(emulator, shared, path):
    with open(path) as file:
        job = json.load(file)
    reason = refusal(job["object"], job["target"])
    if reason:
        return {"status": "refused", "reason": reason}
    image = Image(job["object"])
    buffers = [Buffer(b["path"], b["bytes"]) for b in job["buffers"]]
    for step in job["launches"]:
        launch(emulator, shared, image, buffers, step)
        for buffer in buffers:
            if not buffer.intact():
                reason = f"{step['kernel']} wrote past {os.path.basename(buffer.path)}"
                return {"status": "failed", "reason": reason}
    for buffer in buffers:
        buffer.save()
    return {"status": "done"}


def main():
    sys.path.insert(0, os.environ["TINYGRAD_PATH"])
    os.environ["DEV"] = "CPU"
    from test.mockgpu.amd import emu

    shared = SharedMemory(emu)
    for line in sys.stdin:
        path = line.strip()
        try:
            result = run(emu, shared, path)
        except Exception as error:  # whatever it is, the case failed and the next one may not
            result = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        print(json.dumps({"job": path} | result), flush=True)


if __name__ == "__main__":
    main()

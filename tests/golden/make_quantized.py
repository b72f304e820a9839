"""Weights packed by the packers of the formats, and what their own code reads of them: tests/golden/quantized.

    python tests/golden/make_quantized.py GPTQMODEL_SOURCE AUTOAWQ_SOURCE

needs torch, transformers, compressed-tensors and safetensors, and the unpacked source distributions of gptqmodel 7.7.0
and autoawq 0.2.9: their functions are taken out of the files, because the packages import what needs a GPU.
"""

import ast
import contextlib
import importlib.util
import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import torch
import transformers
from compressed_tensors.compressors import NaiveQuantizationCompressor, PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file
from torch import nn
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

GOLDEN = Path(__file__).parent / "quantized"
MODULE = "model.layers.0.mlp.up_proj"


def save(name, tensors, expected, options):
    folder = GOLDEN / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"quantization_config": options}, indent=1) + "\n")
    stored = {f"{MODULE}.{key}": value.contiguous() for key, value in tensors.items()}
    save_file(stored, folder / "model.safetensors")
    np.save(folder / "expected.npy", expected.float().numpy())


def random(*shape):
    return torch.randn(*shape) * torch.rand(shape[0], 1) + 0.1


def fp8():
    weight = random(48, 96)
    scale = weight.abs().max() / 448
    values = (weight / scale).to(torch.float8_e4m3fn)
    options = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    expected = _dequantize_fp8_weight(values, scale, None, torch.float32)
    save("fp8_tensor", {"weight": values, "weight_scale_inv": scale}, expected, options | {"weight_block_size": None})
    for name, inputs in (("fp8_block", 96), ("fp8_block_cut", 88)):
        weight = random(40, inputs)  # 40 rows are 2.5 blocks
        scales = torch.rand(3, 3) / 100
        spread = scales.repeat_interleave(16, 0)[:40].repeat_interleave(32, 1)[:, :inputs]
        values = (weight / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        expected = _dequantize_fp8_weight(values, scales, [16, 32], torch.float32)
        tensors = {"weight": values, "weight_scale_inv": scales}
        save(name, tensors, expected, options | {"weight_block_size": [16, 32]})


def compressed_tensors():
    cases = {
        "w4a16": (PackedQuantizationCompressor, {"num_bits": 4, "strategy": "group", "group_size": 32}),
        "w4a16_asymmetric": (
            PackedQuantizationCompressor, {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
        ),
        "w4a16_channel": (PackedQuantizationCompressor, {"num_bits": 4, "strategy": "channel"}),
        "w8a16": (PackedQuantizationCompressor, {"num_bits": 8, "strategy": "group", "group_size": 32}),
        "w8a8": (NaiveQuantizationCompressor, {"num_bits": 8, "strategy": "channel"}),
        "w8a8_fp8": (NaiveQuantizationCompressor, {"num_bits": 8, "type": "float", "strategy": "channel"}),
        "w8a8_fp8_tensor": (NaiveQuantizationCompressor, {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    }  # fmt: skip
    for name, (compressor, arguments) in cases.items():
        args = QuantizationArgs(**arguments)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        weight = random(40, 96)
        groups = {"group": 3, "channel": 1, "tensor": 0}[arguments["strategy"]]
        grouped = weight.reshape(40, groups, -1) if groups else weight.reshape(1, -1)
        scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
        scale, zero = (number if groups else number.reshape(1) for number in (scale, zero))
        state = compressor.compress({"weight": weight, "weight_scale": scale, "weight_zero_point": zero}, scheme)
        expected = compressor.decompress(state, scheme)["weight"]
        options = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": arguments}}}
        save("compressed_" + name, state, expected, options)


def function_of(path, name, names):
    """One function of a file, as it stands there."""
    tree = ast.parse(Path(path).read_text())
    found = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)
    scope = dict(names)
    exec(compile(ast.Module([found], []), str(path), "exec"), scope)
    return scope[name]


def gptq(source):
    limits = types.SimpleNamespace(threadpool_limits=lambda count: contextlib.nullcontext())
    names = {"t": torch, "np": np, "nn": nn, "math": math, "transformers": transformers, "THREADPOOLCTL": limits}
    names["_ConvNd"] = nn.modules.conv._ConvNd
    pack = function_of(f"{source}/gptqmodel/nn_modules/qlinear/__init__.py", "pack_original", names)
    for name, bits, symmetric, ordered in (
        ("gptq", 4, True, True), ("gptq_asymmetric", 4, False, True), ("gptq_desc_act", 4, False, False),
        ("gptq_int8", 8, True, True), ("gptq_v2", 4, False, True),
    ):  # fmt: skip
        outputs, inputs, groups = 40, 96, 3
        g_idx = torch.arange(inputs, dtype=torch.int32) // 32
        g_idx = g_idx if ordered else g_idx[torch.randperm(inputs)]
        linear = nn.Linear(inputs, outputs, bias=False)
        half = 1 << bits - 1
        scales = (torch.rand(outputs, groups) + 0.5) / half
        zeros = torch.full((outputs, groups), half) if symmetric else torch.randint(1, 2 * half, (outputs, groups))
        packed = types.SimpleNamespace(
            bits=bits, maxq=2 * half - 1, planar=False, pack_dtype_bits=32, pack_factor=32 // bits, bias=None,
            pack_np_math_dtype=np.uint32, pack_np_dtype=np.int32,
        )  # fmt: skip
        packed.register_buffer = packed.__setattr__
        pack(packed, linear, scales, zeros.float(), g_idx)
        # the packer rounds to float16 after it has divided by the scale: what it means is scale * (q - zero)
        codes = (linear.weight / scales[:, g_idx.long()] + zeros[:, g_idx.long()]).round().clamp(0, packed.maxq)
        expected = (codes - zeros[:, g_idx.long()]) * packed.scales.float().T[:, g_idx.long()]
        qzeros = packed.qzeros
        if name != "gptq_v2":  # as gptqmodel writes what older engines read: zero points less one
            qzeros = qzeros - (0x11111111 if bits == 4 else 0x01010101)
        tensors = {"qweight": packed.qweight, "qzeros": qzeros, "scales": packed.scales, "g_idx": g_idx}
        options = {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": not ordered}
        options["checkpoint_format"] = "gptq_v2" if name == "gptq_v2" else "gptq"
        save(name, tensors, expected.detach(), options)


def module_of(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def awq(gptqmodel, autoawq):
    packing = module_of(f"{gptqmodel}/gptqmodel/quantization/awq/utils/packing_utils.py")
    reading = module_of(f"{autoawq}/awq/utils/packing_utils.py")
    inputs, outputs, groups = 96, 40, 3
    codes, zeros = torch.randint(0, 16, (inputs, outputs)), torch.randint(0, 16, (groups, outputs))
    qweight, qzeros = packing.pack_awq(codes.int(), zeros.int(), 4)
    scales = (torch.rand(groups, outputs) / 8).half()
    expected = reading.dequantize_gemm(qweight, qzeros, scales.float(), 4, inputs // groups).T
    options = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
    save("awq", {"qweight": qweight, "qzeros": qzeros, "scales": scales}, expected, options)


if __name__ == "__main__":
    torch.manual_seed(0)
    fp8()
    compressed_tensors()
    gptq(sys.argv[1])
    awq(*sys.argv[1:])
